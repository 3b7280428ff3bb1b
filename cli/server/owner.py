"""The command whose part a monitor is, seen from the monitor, which is another's child."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import sys

from .connection import peer

_F_SETSIG = 10  # fcntl(2); Python has no name for it
_LIMITS = {getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_INFINITE = 1 << 64


class Owner:
    """Who is at the other end of a connection; owns its descriptor in this process alone."""

    __slots__ = ("_fd", "_pid")

    def __init__(self, fd: int) -> None:
        """Have its end be a SIGHUP here, as that of a terminal is.

        The kernel sees to that, whatever this process is at: fcntl(2), O_ASYNC.
        """
        self._fd = fd
        with socket.socket(fileno=os.dup(fd)) as connection:
            self._pid = peer(connection)[0]
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGHUP)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(0):  # it was gone before
            os.kill(os.getpid(), signal.SIGHUP)

    def leave(self) -> None:
        """Tell it that all is well, and have no more to do with it."""
        fcntl.fcntl(self._fd, fcntl.F_SETOWN, 0)
        self._say(b'{"left": 0}\n')
        os.close(self._fd)
        self._fd = -1

    def lend(self, env: dict[str, str], umask: int) -> None:
        """Take on what a process has from the one that starts it, as far as that may be."""
        os.environ.clear()
        os.environ.update(env)
        os.umask(umask)
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, os.sched_getaffinity(self._pid))
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, self._pid))
        with contextlib.suppress(OSError):
            for number in _LIMITS:
                _limit(number, resource.prlimit(self._pid, number))

    def tell(self, status: int) -> None:
        """Say how this process ends."""
        if self._fd >= 0:
            self._say(b'{"status": %d}\n' % status)

    def _say(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, line)


def _limit(number: int, wanted: tuple[int, int]) -> None:
    """Set a limit, but not above the one that this process may not leave."""
    has = resource.getrlimit(number)
    if has == wanted:
        return
    try:
        resource.setrlimit(number, wanted)
    except ValueError:
        least = min(wanted[0] % _INFINITE, has[1] % _INFINITE)
        resource.setrlimit(number, (least, has[1]))
