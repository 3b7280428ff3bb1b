"""The lab's protocol: several byte streams over one, without any I/O.

The frames, their fields and the rules of credit are described in mux.h, which is the
agent's side of the same. Here are the frames (`Kind`, `Frame`, `Decoder`, the packing
functions) and the host's end of one channel (`Channel`). Nothing here blocks, reads or
writes; an object belongs to the thread that uses it.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from ...errors import PyvirtError

VERSION = 3
WINDOW = 1048576
TEXT_MAX = 131072
CONTROL, STDIN, STDOUT, STDERR, TERMINAL = range(5)
SOCKETS = range(16, 80)

_HEADER = struct.Struct("<HHI")
_U32 = struct.Struct("<I")


class Kind(IntEnum):
    """What a frame is for."""

    HELLO = 1
    ARG = 2
    ENV = 3
    CWD = 4
    START = 5
    FAILED = 6
    EXIT = 7
    WINSIZE = 8
    SIGNAL = 9
    OPEN = 10
    DATA = 11
    CREDIT = 12
    EOF = 13
    CLOSE = 14
    ALIVE = 15


class ProtocolError(PyvirtError):
    """The agent sent what the protocol does not allow."""


class Frame(NamedTuple):
    """One frame; `payload` is at most TEXT_MAX bytes."""

    channel: int
    kind: Kind
    payload: bytes = b""


def encode(frame: Frame) -> bytes:
    """Return the frame as it goes over the wire."""
    return _HEADER.pack(frame.channel, frame.kind, len(frame.payload)) + frame.payload


class Decoder:
    """Makes frames of bytes that arrive in pieces of any size."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes; return the frames that they complete. Raises ProtocolError."""
        buffer = self._buffer
        buffer += data
        frames = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            channel, kind, length = _HEADER.unpack_from(buffer, at)
            if channel >= SOCKETS.stop or not Kind.HELLO <= kind <= Kind.ALIVE or length > TEXT_MAX:
                raise ProtocolError(
                    f"lab: the agent sent no frame (channel {channel}, kind {kind}, "
                    f"{length} bytes); a process in the lab writes to its port"
                )
            end = at + _HEADER.size + length
            if end > len(buffer):
                break
            frames.append(Frame(channel, Kind(kind), bytes(buffer[at + _HEADER.size : end])))
            at = end
        del buffer[:at]
        return frames


def words(frame: Frame, count: int) -> tuple[int, ...]:
    """Return the `count` u32 that the payload consists of. Raises ProtocolError."""
    if len(frame.payload) != 4 * count:
        raise ProtocolError(
            f"lab: the agent sent {frame.kind.name} with {len(frame.payload)} bytes, "
            f"not {4 * count}"
        )
    return struct.unpack(f"<{count}I", frame.payload)


def start(mask: int, umask: int, rows: int, columns: int) -> Frame:
    """START: bit n of `mask` says that descriptor n is the terminal."""
    return Frame(CONTROL, Kind.START, struct.pack("<4H", mask, umask, rows, columns))


def winsize(rows: int, columns: int) -> Frame:
    """WINSIZE, in characters."""
    return Frame(CONTROL, Kind.WINSIZE, struct.pack("<2H", rows, columns))


def signal(number: int) -> Frame:
    """SIGNAL, for the command's process group."""
    return Frame(CONTROL, Kind.SIGNAL, _U32.pack(number))


class Channel:
    """The host's end of a channel: its credit and how far its two directions have come.

    Sending: `sendable` bytes may go into `data()`; `end()` after the last. Receiving:
    `receive()` takes the channel's frames; the owner writes what is in `arrived` to where it
    belongs and says so with `taken()`, or gives it up for good with `refuse()`. `due()`
    returns the frames that follow from all that. The channel is `over` when CLOSE has gone
    both ways. A stream with one direction starts with the other one ended
    (`sends`, `receives`).
    """

    __slots__ = (
        "_close_received",
        "_close_sent",
        "_credit",
        "_ended",
        "_eof_received",
        "_eof_sent",
        "_owed",
        "_refused",
        "arrived",
        "number",
    )

    def __init__(self, number: int, *, sends: bool = True, receives: bool = True) -> None:
        self.number = number
        self.arrived = bytearray()
        self._credit = WINDOW
        self._owed = 0
        self._ended = self._eof_sent = not sends
        self._eof_received = not receives
        self._refused = False
        self._close_sent = self._close_received = False

    @property
    def sendable(self) -> int:
        """How many bytes `data()` takes now; 0 when nothing may be sent, ever or just now."""
        return 0 if self._ended or self._close_sent else self._credit

    @property
    def drained(self) -> bool:
        """Whether nothing more arrives and all that did has been taken."""
        return self._eof_received and not self.arrived

    @property
    def closed_by_peer(self) -> bool:
        """Whether the other side is through: what is sent now would be dropped."""
        return self._close_received

    @property
    def over(self) -> bool:
        """Whether the number may be used for another channel."""
        return self._close_sent and self._close_received

    def data(self, data: bytes) -> Frame:
        """Return the frame with `data`, 1 to `sendable` bytes."""
        if not 0 < len(data) <= self.sendable:
            raise ValueError(f"{len(data)} bytes for a channel that takes {self.sendable}")
        self._credit -= len(data)
        return Frame(self.number, Kind.DATA, data)

    def end(self) -> None:
        """No more data will be sent."""
        self._ended = True

    def taken(self, count: int) -> None:
        """Drop the first `count` bytes of `arrived`, which have been dealt with."""
        del self.arrived[:count]
        self._owed += count

    def refuse(self) -> None:
        """Drop what has arrived and whatever comes: its reader has gone."""
        self.taken(len(self.arrived))
        self._refused = True

    def receive(self, frame: Frame) -> None:
        """Take a frame of this channel. Raises ProtocolError."""
        if self._close_received:
            raise ProtocolError(f"lab: {frame.kind.name} on channel {self.number} after CLOSE")
        if frame.kind == Kind.CLOSE:
            self._receive_close()
        elif self._close_sent:
            pass
        elif frame.kind == Kind.DATA:
            self._receive_data(frame.payload)
        elif frame.kind == Kind.CREDIT:
            self._receive_credit(*words(frame, 1))
        elif frame.kind == Kind.EOF:
            self._eof_received = True
        else:
            raise ProtocolError(f"lab: {frame.kind.name} on channel {self.number}")

    def due(self) -> list[Frame]:
        """Return the CREDIT, EOF and CLOSE frames to be sent now, in that order."""
        frames: list[Frame] = []
        if self._close_sent:
            return frames
        if self._owed >= WINDOW // 4:
            frames.append(Frame(self.number, Kind.CREDIT, _U32.pack(self._owed)))
            self._owed = 0
        if self._ended and not self._eof_sent:
            self._eof_sent = True
            frames.append(Frame(self.number, Kind.EOF))
        if self._eof_sent and (self.drained or self._refused):
            self._close_sent = True
            frames.append(Frame(self.number, Kind.CLOSE))
        return frames

    def _receive_data(self, data: bytes) -> None:
        if self._eof_received or len(self.arrived) + self._owed + len(data) > WINDOW:
            raise ProtocolError(f"lab: data without credit on channel {self.number}")
        if self._refused:
            self._owed += len(data)
        else:
            self.arrived += data

    def _receive_credit(self, more: int) -> None:
        if self._credit + more > WINDOW:
            raise ProtocolError(f"lab: too much credit on channel {self.number}")
        self._credit += more

    def _receive_close(self) -> None:
        if not self._eof_received:
            self.refuse()
        self._close_received = self._eof_received = True
        self._ended = self._eof_sent = True
