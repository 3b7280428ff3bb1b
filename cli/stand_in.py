"""A command whose machine is a process that a server has made: it stands in for that.

The server's side, and what is said, is in server/. Nothing heavy is imported, as the machine's
start waits for this.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal takes 2 ms more
import _socket
import fcntl
import os
import select
import struct
import time
from _json import encode_basestring_ascii as _quoted

from ..errors import BackendError, ConfigError
from .server.limits import LINE_MAX, STREAMS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_SAID = ("pid", "status", "left")
PATIENCE_S = 20.0  # for an answer to what is asked
_STOP_S, _LOOK_S = 2.0, 0.01
_FD = 4  # bytes of one that comes along
_PEER = struct.Struct("iII")  # SO_PEERCRED: process, user, group
# What ends a guest, what it wants to know, and what stops a command.
_FORWARDED = (
    *(_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT),
    *(_signal.SIGWINCH, _signal.SIGUSR1, _signal.SIGUSR2),
)
BLOCKED = (*_FORWARDED, _signal.SIGTSTP, _signal.SIGCONT)


def inherited() -> list[int]:
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


def peer_uid(connection: _socket.socket) -> int:
    """Return the user of the process that listens at the other end."""
    data = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(data)
    return int(uid)


def as_json(value: object) -> str:
    """Return a value as json.dumps does, which takes 6 ms to be imported."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        members = (f"{_quoted(name)}: {as_json(one)}" for name, one in value.items())
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_json, value))}]"
    return str(value)


def _is_in_background() -> bool:
    """Say whether stdin is a terminal that is another job's by now."""
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:
        return False


def _is_stopped(pid: int) -> bool:
    """Say whether a process stands, or is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True


class StandIn:
    """The command, while the machine is in another process; owns its connection to the server."""

    def __init__(self, path: str, option: str, mend: str) -> None:
        """`path` is the server's socket; errors begin with the `option`, and `mend` is theirs."""
        self._option = option
        self._mend = mend
        self._rest = b""  # of what came, behind the last whole line
        self._heard: dict[str, int] = {}  # what was said before it was asked for
        self._pid = self._pidfd = -1
        self._server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._path = path

    def ask(self, message: dict[str, object]) -> None:
        """Have the machine started, with this command's descriptors; BackendError: it is not.

        What ends or stops the command comes to the machine from then on. In the background it gets
        no terminal as its stdin: the kernel would not stop it, as it does jobs of a shell.
        """
        fds = inherited()
        line = as_json({**message, "fds": fds}).encode() + b"\n"
        if len(line) > LINE_MAX:
            raise ConfigError(
                f"{self._option}: options and environment are {len(line)} bytes, and {LINE_MAX} "
                "are the most; give fewer"
            )
        # Those that come before there is somebody to have them wait.
        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, BLOCKED)
        try:
            self._connect()
            self._send(line, fds)
            _, self._pid = self._hear("pid")
            if self._pidfd < 0:
                raise self._stranger()
            self._server.settimeout(None)
            self._take_signals()
        except BaseException:
            self._server.close()
            raise
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)

    def stay(self) -> int:
        """Return the machine's exit status when it has ended; BackendError: nobody knows it.

        One that goes to the background leaves this command with 0.
        """
        try:
            name, status = self._hear("status", "left")
        finally:
            self._server.close()
        if name == "status":
            self._wait_until_gone()
        if status < 0:
            if -status != _signal.SIGKILL:
                _signal.signal(-status, _signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        return status if status >= 0 else 128 - status

    def _connect(self) -> None:
        self._server.settimeout(PATIENCE_S)
        try:
            self._server.connect(self._path)
        except OSError as error:
            raise BackendError(f"{self._option}: {error.strerror or error}; {self._mend}") from None
        uid = peer_uid(self._server)
        if uid not in {0, os.geteuid()}:
            raise BackendError(f"{self._option}: is served by user {uid}; {self._mend}")

    def _send(self, line: bytes, fds: list[int]) -> None:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        places = {0: null} if _is_in_background() else {}
        rights = b"".join(places.get(fd, fd).to_bytes(_FD, "little") for fd in fds)
        try:
            sent = self._server.sendmsg([line], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
            self._server.sendall(line[sent:])
        except OSError:
            return  # why, it says
        finally:
            os.close(null)

    def _wait_until_gone(self) -> None:
        """Wait for what the host does at a process's end: what it had can be used again."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll()

    def _hear(self, *names: str) -> tuple[str, int]:
        """Return the next line that says one of these; BackendError.

        The server and the machine write as they come to it: the end of one that ends at once may be
        told before its start is.
        """
        while True:
            for name in names:
                if name in self._heard:
                    return name, self._heard.pop(name)
            self._listen()

    def _listen(self) -> None:
        """Hear one line; BackendError."""
        while b"\n" not in self._rest:
            try:
                data, rights, _, _ = self._server.recvmsg(LINE_MAX, _socket.CMSG_SPACE(_FD))
            except TimeoutError:
                raise self._stranger() from None
            except OSError:
                data, rights = b"", []
            for _, _, fd in rights:
                self._pidfd = int.from_bytes(fd, "little")
            if not data:
                raise BackendError(f"{self._option}: its server has ended")
            self._rest += data
            if len(self._rest) > LINE_MAX:
                raise self._stranger()
        line, _, self._rest = self._rest.partition(b"\n")
        key, _, number = line.strip(b"{}").partition(b": ")
        name = key.strip(b'"').decode(errors="replace")
        if name not in _SAID or name in self._heard or not number.removeprefix(b"-").isdigit():
            raise self._refusal(line)
        self._heard[name] = int(number)

    def _refusal(self, line: bytes) -> BackendError:
        import json

        try:
            return BackendError(f"{self._option}: {json.loads(line)['error']}")
        except (ValueError, KeyError, TypeError):
            return self._stranger()

    def _stranger(self) -> BackendError:
        return BackendError(
            f"{self._option}: what is there does not answer as pyvirt does; {self._mend}"
        )

    def _take_signals(self) -> None:
        for number in _FORWARDED:
            self._handle(number, self._forward)
        self._handle(_signal.SIGTSTP, self._stop)
        self._handle(_signal.SIGCONT, self._continue)

    @staticmethod
    def _handle(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        """Handle a signal, unless it was ignored before, as of `nohup`."""
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, handler)

    def _stop(self, _number: int, frame: FrameType | None) -> None:
        """Stop, when the machine stands and the terminal is as it was; SIGCONT is the way on."""
        self._forward(_signal.SIGTSTP, frame)
        until = time.monotonic() + _STOP_S
        while not _is_stopped(self._pid) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), _signal.SIGSTOP)

    def _continue(self, number: int, frame: FrameType | None) -> None:
        """Let the machine go on, but not in the background, where it would take others' keys."""
        if _is_in_background():
            os.kill(os.getpid(), _signal.SIGTTIN)
        else:
            self._forward(number, frame)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            return  # it has ended, and its status is on its way
