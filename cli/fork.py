"""`pyvirt fork`: run a guest that begins where a template stands, as a child of that process."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, ConfigError
from . import usage
from .server.connection import LINE_MAX, STREAMS_MAX

if TYPE_CHECKING:
    from types import FrameType

USAGE = """\
usage: pyvirt fork PATH [OPTIONS]

Runs a guest from where the template of the pyvirt template at PATH stands. OPTIONS are as for
pyvirt restore: the same devices again, in the same order; files, taps and sockets behind them may
be others. The guest is on this terminal, and ends with this command.

  pyvirt fork /tmp/template -disk fork.img -qmp unix:/tmp/fork.sock,server,nowait
"""
_STOP_S, _LOOK_S = 2.0, 0.01
_TEMPLATE = ""  # as template.py names it
# What ends a guest, what it wants to know, and what stops a command.
_FORWARDED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT),
)


def main(argv: list[str]) -> int:
    """Run `pyvirt fork ARGV`; return the exit status. Raises PyvirtError."""
    if usage.shown(USAGE, argv):
        return 0
    if argv and argv[0].startswith("-"):
        raise ConfigError(
            f"fork: {argv[0]}: name the socket of a pyvirt template before the options"
        )
    if not argv:
        raise ConfigError(
            "fork: name the socket of a pyvirt template; pyvirt fork -help tells more"
        )
    return _Fork(argv[0], argv[1:]).run()


def _inherited() -> list[int]:
    """Return the standard descriptors, and those that the shell has given to this command."""
    found = []
    for number in range(STREAMS_MAX):
        try:
            flags = fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            continue
        if number <= 2 or not flags & fcntl.FD_CLOEXEC:
            found.append(number)
    return found


def _is_stopped(pid: int) -> bool:
    """Say whether a process stands, or is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True


class _Fork:
    """The command, while the machine is in another process."""

    def __init__(self, path: str, words: list[str]) -> None:
        self._path = path
        self._words = words
        self._line = b""
        self._pid = self._pidfd = -1

    def run(self) -> int:
        """Return the machine's exit status; PyvirtError."""
        fds = _inherited()
        message = {"run": self._words, "cwd": os.getcwd(), "fds": fds, "template": _TEMPLATE}
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LINE_MAX:
            raise ConfigError(f"fork: its options are longer than {LINE_MAX} bytes; give fewer")
        with socket.socket(socket.AF_UNIX) as self._control:
            # Those that come before there is somebody to have them wait.
            signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
            try:
                self._control.connect(self._path)
                socket.send_fds(self._control, [line], fds)
            except OSError as error:
                raise BackendError(
                    f"fork {self._path}: {error.strerror}; name the socket of a pyvirt template "
                    "that runs"
                ) from None
            self._pid = int(self._hear("pid"))
            for number in _FORWARDED:
                signal.signal(number, self._forward)
            signal.signal(signal.SIGTSTP, self._stop)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
            status = int(self._hear("status"))
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        return status if status >= 0 else 128 - status

    def _hear(self, name: str) -> Any:
        while b"\n" not in self._line:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, LINE_MAX, 1)
            except OSError:
                data, fds = b"", []
            if fds:
                self._pidfd = fds[0]
            if not data:
                raise BackendError(f"fork {self._path}: the template's process has ended")
            self._line += data
        line, _, self._line = self._line.partition(b"\n")
        message = json.loads(line)
        if "error" in message:
            raise BackendError(f"fork {self._path}: {message['error']}")
        return message[name]

    def _stop(self, _number: int, frame: FrameType | None) -> None:
        """Stop, when the fork stands and the terminal is as it was; SIGCONT is the way on."""
        self._forward(signal.SIGTSTP, frame)
        until = time.monotonic() + _STOP_S
        while not _is_stopped(self._pid) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            return  # it has ended, and its status is on its way
