"""A guest's way to the host's networks without privileges: a passt process of its own.

passt translates between the guest's frames and ordinary sockets of the user who runs it. It
answers the guest's DHCP with the host's own address and routes, and takes connections to the
host's gateway for ones to the host itself. Source: passt(1).
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import signal

from ..errors import BackendError
from .child import Complaints, end
from .stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = "passt"
_START_S = 10
_NULL_FD, _READY_FD, _COMPLAINT_FD, _SOCKET_FD = 0, 1, 2, 3
# It writes its process id into a file when it is ready to serve.
_OPTIONS = ("--foreground", "--quiet", "--stderr", "--pid", f"/proc/self/fd/{_READY_FD}")
# What it says in good health: without a system logger, and to root.
_CHATTER = ("Failed to send ", "Don't run as root")


class PasstConfig:
    """A passt of the guest's own, as it was asked for."""

    __slots__ = ("arguments",)
    queues = 1

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        """`arguments` are more options of passt(1)."""
        self.arguments = tuple(arguments)

    def open(self) -> Passt:
        """Return a passt that runs; BackendError with what it complains of."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        # Made by `socketpair` as not to be inherited; posix_spawn gives passt what it needs.
        try:
            complaints = Complaints(lambda line: line.startswith(_CHATTER))
            try:
                pid = _start(self.arguments, theirs.fileno(), complaints)
            except BaseException:
                complaints.close()
                raise
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Passt(ours.detach(), pid, complaints)


class Passt(Stream):
    """A running passt and the socket to it; owns both until `close`."""

    __slots__ = ("_complaints", "pid")

    def __init__(self, fd: int, pid: int, complaints: Complaints) -> None:
        super().__init__(fd, PROGRAM)
        self.pid = pid
        self._complaints = complaints

    def close(self) -> None:
        """Close the socket and wait for the process's end."""
        super().close()
        if self.pid > 0:
            end(self.pid)
            self.pid = 0
            self._complaints.close()


def _start(arguments: Sequence[str], socket_fd: int, complaints: Complaints) -> int:
    """Return the process id of a passt that serves `socket_fd`."""
    ready, write_fd = os.pipe()
    try:
        # Root's passt opens it as nobody.
        os.fchmod(write_fd, 0o666)
        words = [PROGRAM, *_OPTIONS, "--fd", str(_SOCKET_FD), *arguments]
        try:
            pid = os.posix_spawnp(
                PROGRAM,
                words,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, _NULL_FD, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_fd, _READY_FD),
                    (os.POSIX_SPAWN_DUP2, complaints.write_fd, _COMPLAINT_FD),
                    (os.POSIX_SPAWN_DUP2, socket_fd, _SOCKET_FD),
                ],
                # A Ctrl-C in the terminal is not for it, and no signal is blocked or ignored.
                setpgroup=0,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        except OSError as error:
            raise BackendError(_explain_missing(error)) from None
        os.close(write_fd)
        write_fd = -1
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        if poll.poll(_START_S * 1000) and os.read(ready, 32):
            return pid
        end(pid, at_once=True)
        reason = "; ".join(complaints.lines()) or f"not ready after {_START_S} s"
        mend = "; give this host a default route" if "routable" in reason else ""
        raise BackendError(f"-netdev user: passt: {reason}{mend}")
    finally:
        os.close(ready)
        if write_fd >= 0:
            os.close(write_fd)


def _explain_missing(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return (
            "-netdev user: passt is not installed; "
            "run: sudo apt-get install -y --no-install-recommends passt"
        )
    return f"-netdev user: {PROGRAM}: {error.strerror}"
