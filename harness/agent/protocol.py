"""What the agent in a guest and its client on the host say to each other, without any I/O.

A frame is a header (id u32, kind u16, length u16, little endian) and `length` bytes; no
length is out of bounds. The id is that of a command, chosen by the client and not used by
another that runs; 0 where there is none.

    kind        from    payload
    HELLO       agent   version u32, taint mask u64, kernel release: comes first
    MORE        client  part of a SPAWN that is too long for a frame; comes before it
    SPAWN       client  flags u32 (1: has input, 2: builtin), count u32, then strings that each
                        end with NUL: folder, `count` arguments, NAME=VALUE of the environment
    STARTED     agent   process id u32
    INPUT       client  bytes for the command's stdin, within the credit
    INPUT_END   client  nothing: its end
    CREDIT      agent   u32: so many more bytes of input may be sent
    KILL        client  signal number u32, for the command's process group
    STDOUT      agent   bytes
    STDERR      agent   bytes
    EXIT        agent   status u32 (128 + N after signal N), flags u32 (1: it was a signal,
                        2: others keep its output open), duration u64 in microseconds from
                        fork to exit; all the command's output has been sent before
    PING        client  nothing
    RESET       client  up to 64 random bytes: the guest is a fork, or was restored, and the client
                        another than before; the guest's random numbers begin with them
                agent   the same bytes, and then HELLO; what came before them, perhaps cut off,
                        was for the other client, whose commands are ended
    PONG        agent   nothing; with the id of the PING
    FAILED      agent   text: why the agent gives up

A command starts with WINDOW bytes of credit. The client reads at all times, so output needs
none. A client that loses interest kills the command and ignores what still comes: an id that
says nothing to the receiver is late, not wrong. A command that cannot be executed ends with
status 127 when it is missing, 126 when it is no program, 125 when it could not be
set up, with a line on stderr. The builtin commands are listed in builtin.h. What breaks these
rules ends the connection, and that ends its commands.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

from ...errors import PyvirtError

VERSION = 3
# Of the guest's, where it has a socket device; below 1024, and so not for any process to take.
VSOCK_PORT = 1000
# As much as is under way in the longest way to a guest, through the lab, at a port's speed.
WINDOW = 4 << 20
PAYLOAD_MAX = 65535
DATA_MAX = 32760

_RESET_BYTES = 32

_HEADER = struct.Struct("<IHH")
_HELLO = struct.Struct("<IQ")
_EXIT = struct.Struct("<IIQ")
_SPAWN = struct.Struct("<II")
_U32 = struct.Struct("<I")


class Kind(IntEnum):
    """What a frame is for."""

    MORE = 1
    SPAWN = 2
    INPUT = 3
    INPUT_END = 4
    KILL = 5
    PING = 6
    RESET = 7
    HELLO = 16
    STARTED = 17
    STDOUT = 18
    STDERR = 19
    CREDIT = 20
    EXIT = 21
    PONG = 22
    FAILED = 23


_KINDS = {kind.value: kind for kind in Kind}


class AgentError(PyvirtError):
    """The agent is not there, has gone, refuses, or sends what the protocol does not allow."""


class AgentTimeoutError(AgentError):
    """What was waited for did not come in time; it may still."""


class Frame(NamedTuple):
    """One frame; `payload` is at most PAYLOAD_MAX bytes."""

    id: int
    kind: Kind
    payload: bytes = b""


class Hello(NamedTuple):
    """What the agent says first: its protocol, `uname -r`, and the kernel's taint mask."""

    version: int
    release: str
    taint: int


class Exit(NamedTuple):
    """The end of a command; `duration` in seconds."""

    status: int
    signalled: bool
    still_open: bool
    duration: float


def encode(frame: Frame) -> bytes:
    """Return the frame as it goes over the wire."""
    return _HEADER.pack(frame.id, frame.kind, len(frame.payload)) + frame.payload


class Decoder:
    """Makes frames of bytes that arrive in pieces of any size.

    What comes before `start` is dropped, and `start` as well.
    """

    __slots__ = ("_rest", "_start")

    def __init__(self, start: bytes = b"") -> None:
        self._rest = b""
        self._start = start

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; return the frames that they complete. Raises AgentError."""
        data = self._rest + data if self._rest else data
        if self._start:
            before, found, after = data.partition(self._start)
            if not found:
                self._rest = before[1 - len(self._start) :]
                return []
            self._start, data = b"", after
        frames = []
        at = 0
        while len(data) - at >= _HEADER.size:
            number, kind, length = _HEADER.unpack_from(data, at)
            known = _KINDS.get(kind)
            if known is None:
                raise AgentError(
                    f"agent: the guest sent no frame (kind {kind}); a process in the guest "
                    "writes to the agent's port, or the agent is of another version"
                )
            start = at + _HEADER.size
            if start + length > len(data):
                break
            at = start + length
            frames.append(Frame(number, known, data[start:at]))
        self._rest = data[at:]
        return frames


def spawn(
    number: int,
    argv: Sequence[str],
    *,
    cwd: str = "/",
    env: Mapping[str, str],
    stdin: bool = False,
    builtin: bool = False,
) -> bytes:
    """Return SPAWN, with the MOREs before it. Raises ValueError for a NUL in a string."""
    strings = [cwd, *argv, *(f"{name}={value}" for name, value in env.items())]
    if not argv or any("\0" in text for text in strings):
        raise ValueError("a command is one word at least, without NUL")
    data = _SPAWN.pack(stdin | builtin << 1, len(argv))
    data += b"".join(_text(string) + b"\0" for string in strings)
    parts = [data[at : at + PAYLOAD_MAX] for at in range(0, len(data), PAYLOAD_MAX)]
    wire = [encode(Frame(number, Kind.MORE, part)) for part in parts[:-1]]
    return b"".join(wire) + encode(Frame(number, Kind.SPAWN, parts[-1]))


def reset() -> bytes:
    """Return a RESET; the agent's answer to it is the same bytes."""
    return encode(Frame(0, Kind.RESET, os.urandom(_RESET_BYTES)))


def kill(number: int, signal: int) -> Frame:
    """KILL, for the command's process group."""
    return Frame(number, Kind.KILL, _U32.pack(signal))


def hello(frame: Frame) -> Hello:
    """Read HELLO. Raises AgentError, for another version too."""
    if len(frame.payload) < _HELLO.size:
        raise _malformed(frame)
    version, taint = _HELLO.unpack_from(frame.payload)
    if version != VERSION:
        raise AgentError(
            f"agent: the guest's agent speaks version {version} of the protocol, this pyvirt "
            f"{VERSION}; make the initramfs anew"
        )
    return Hello(version, frame.payload[_HELLO.size :].decode(errors="replace"), taint)


def exit_of(frame: Frame) -> Exit:
    """Read EXIT. Raises AgentError."""
    if len(frame.payload) != _EXIT.size:
        raise _malformed(frame)
    status, flags, duration = _EXIT.unpack(frame.payload)
    return Exit(status, bool(flags & 1), bool(flags & 2), duration / 1e6)


def number(frame: Frame) -> int:
    """Read the u32 of STARTED or CREDIT. Raises AgentError."""
    if len(frame.payload) != _U32.size:
        raise _malformed(frame)
    value: int = _U32.unpack(frame.payload)[0]
    return value


def text(frame: Frame) -> str:
    """Read a payload that is text, as one line."""
    return " ".join(frame.payload.decode(errors="replace").split())


def _text(string: str) -> bytes:
    return string.encode(errors="surrogateescape")


def _malformed(frame: Frame) -> AgentError:
    return AgentError(f"agent: the guest sent {frame.kind.name} with {len(frame.payload)} bytes")
