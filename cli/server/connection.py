"""What comes in over a server's socket: lines of JSON, descriptors, and what they ask for."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from .limits import LINE_MAX, STREAMS_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READ_MAX = 4096
UMASK_MAX = 0o777
_PEER = struct.Struct("iII")  # SO_PEERCRED: process, user, group


class Refused(Exception):  # noqa: N818  (it is the client's error)
    """What a client asks for cannot be done; its text tells why."""


def why(error: OSError) -> str:
    """Return what went wrong, with the mend where this process has too many files open."""
    if error.errno not in {errno.EMFILE, errno.ENFILE}:
        return error.strerror or str(error)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return (
        f"the process that makes forks has {limit} files open, and may have no more; end some "
        "forks, or start it anew under a higher limit (ulimit -Hn)"
    )


@dataclass(frozen=True)
class Caller:
    """The command that a monitor is a part of: the pyvirt that it is of, and its environment."""

    version: str
    package: str  # the folder
    umask: int
    env: dict[str, str]


@dataclass(frozen=True)
class Run:
    """What a monitor is to be.

    `streams` are its descriptors by the keys of connections, `fds` those that came with the line.
    Of a fork it has the name of the `template`. One with a `caller` ends with that, and not with
    the server.
    """

    words: list[str]
    cwd: str
    streams: dict[str, list[int]]
    fds: list[int]
    template: str | None
    caller: Caller | None


def read_run(message: dict[str, Any]) -> Run:
    """Return what a first line asks for; Refused."""
    words, cwd, streams = message["run"], message.get("cwd"), message.get("streams", {})
    if not (isinstance(words, list) and all(_is_word(word) for word in words)):
        raise Refused("run: not a list of words")
    if not is_path(cwd):
        raise Refused("cwd: not an absolute path")
    if not (isinstance(streams, dict) and len(streams) <= STREAMS_MAX):
        raise Refused(f"streams: not an object of at most {STREAMS_MAX} keys")
    fds = message.get("fds", [])
    taken: set[int] = set()
    for key, numbers in [*streams.items(), ("fds", fds)]:
        valid = isinstance(numbers, list) and all(
            type(number) is int and 0 <= number < STREAMS_MAX for number in numbers
        )
        if not valid or taken & set(numbers) or len(set(numbers)) < len(numbers):
            raise Refused(f"streams: {key}: not descriptors of its own, 0 to {STREAMS_MAX - 1}")
        taken |= set(numbers)
    template = message.get("template")
    if template is not None and not isinstance(template, str):
        raise Refused("template: not a name")
    caller = _read_caller(message["caller"]) if "caller" in message else None
    if template is not None and caller is not None:
        raise Refused("caller: a template's fork has none")
    return Run(words, cwd, streams, fds, template, caller)


def _read_caller(given: object) -> Caller:
    if not isinstance(given, dict):
        raise Refused("caller: not an object")
    version, package, umask, env = (
        given.get(name) for name in ("version", "package", "umask", "env")
    )
    if not isinstance(version, str):
        raise Refused("caller: version: not a text")
    if not is_path(package):
        raise Refused("caller: package: not an absolute path")
    if type(umask) is not int or not 0 <= umask <= UMASK_MAX:
        raise Refused(f"caller: umask: not a number from 0 to {UMASK_MAX}")
    if not isinstance(env, dict) or not all(map(_is_variable, env.items())):
        raise Refused("caller: env: not an object of texts by names")
    return Caller(version, package, umask, env)


def _is_variable(pair: tuple[str, object]) -> bool:
    name, value = pair
    return name != "" and "=" not in name and _is_word(name) and _is_word(value)


def is_path(path: object) -> TypeGuard[str]:
    """Say whether a value is an absolute path."""
    return _is_word(path) and os.path.isabs(path)


def _is_word(word: object) -> TypeGuard[str]:
    """Say whether a value is a string that the host can have as a path, or on a command line."""
    if not isinstance(word, str) or "\0" in word:
        return False
    try:
        os.fsencode(word)
    except UnicodeEncodeError:  # half of a character, as JSON can have it
        return False
    return True


def peer(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user at the other end, as they were when it connected."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid, uid, _ = _PEER.unpack(data)
    return pid, uid


def read_file(path: object) -> str | None:
    """Return the beginning of a regular file, None where there is none to read; Refused."""
    if not is_path(path):
        raise Refused("read: not an absolute path")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, READ_MAX).decode(errors="replace") if is_regular else None
    except OSError:
        return None
    finally:
        os.close(fd)


@dataclass(eq=False)
class Connection:
    """A client's; owns its socket, and the descriptors that came with the line."""

    socket: socket.socket
    until: float  # time.monotonic(), at which it is closed
    line: bytearray = field(default_factory=bytearray)  # what has come of it
    fds: list[int] = field(default_factory=list)
    key: str = ""  # a stream's
    run: Run | None = None

    def read_line(self) -> dict[str, Any] | None:
        """Read no further than a line; return it when it is whole. Refused, OSError."""
        data = self.socket.recv(LINE_MAX, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not data:
            raise Refused("the connection ended")
        end = data.find(b"\n") + 1
        data, fds, flags, _ = socket.recv_fds(self.socket, end or len(data), STREAMS_MAX)
        self.line += data
        self.fds += fds
        if flags & socket.MSG_CTRUNC and len(self.fds) < STREAMS_MAX:
            raise Refused(why(OSError(errno.EMFILE, "")))
        if len(self.line) > LINE_MAX:
            raise Refused(f"the first line is longer than {LINE_MAX} bytes")
        if len(self.fds) > STREAMS_MAX:
            raise Refused(f"more than {STREAMS_MAX} descriptors came")
        if not self.line.endswith(b"\n"):
            return None
        try:
            message = json.loads(self.line)
        except (ValueError, RecursionError):
            message = None
        self.line.clear()
        if not isinstance(message, dict):
            raise Refused("the first line is no JSON object")
        return message

    def answer(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        """Send a line; a client that is gone or does not read loses it."""
        line = json.dumps(message).encode() + b"\n"
        try:
            socket.send_fds(self.socket, [line], fds, socket.MSG_DONTWAIT)
        except OSError:
            return

    def close_fds(self) -> None:
        """Close the descriptors that came."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Close everything."""
        self.close_fds()
        self.socket.close()
