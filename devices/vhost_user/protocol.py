"""The messages of vhost-user as bytes: how each is made, and what of an answer is checked.

No sockets here. A back end may be hostile: whatever it sends is a length that was asked for, of the
request that it answers, or a ProtocolError. Source: QEMU's docs/interop/vhost-user.rst, "Message
Specification"; numbers are in the byte order of the host.
"""

from __future__ import annotations

import struct

from ...errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Front-end message types.
GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
GET_QUEUE_NUM, SET_VRING_ENABLE = 17, 18
SET_BACKEND_REQ_FD = 21
GET_CONFIG, SET_CONFIG = 24, 25
GET_INFLIGHT_FD, SET_INFLIGHT_FD = 31, 32
# Back-end message types.
BACKEND_CONFIG_CHANGE = 2

# A feature bit that no driver sees.
F_PROTOCOL_FEATURES = 1 << 30
# Protocol features.
MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD = 1 << 0, 1 << 3, 1 << 5, 1 << 9, 1 << 12

_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 1 << 2, 1 << 3
HEADER = struct.Struct("=III")  # request, flags, size of the payload
PAYLOAD_MAX = 1024  # bytes, of what a back end may send
FDS_MAX = 8  # of one message, in either direction
REGIONS_MAX = 8

U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")  # index of the ring, number
ADDRESS = struct.Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
_REGIONS = struct.Struct("=II")  # their number, padding
_REGION = struct.Struct("=QQQQ")  # guest address, size, user address, offset in the file
_CONFIG_HEAD = struct.Struct("=III")  # offset, size, flags
INFLIGHT = struct.Struct("=QQHH4x")  # size and offset of the mapping, queues, size of a queue
_INFLIGHT_BYTES = (20, INFLIGHT.size)  # back ends differ in the padding at the end


class ProtocolError(BackendError):
    """A back end said what it may not."""


class Message:
    """One message that has come, with the descriptors that came along, which it owns."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = list(fds)

    @property
    def needs_reply(self) -> bool:
        """Tell whether its sender waits for a `reply`."""
        return bool(self.flags & _NEED_REPLY)


class Inbox:
    """Cuts what has come into messages."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def wants(self) -> int:
        """Return how many bytes the message that has begun lacks, as far as is known; never 0."""
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        size: int = HEADER.unpack_from(self._data)[2]
        return max(1, HEADER.size + size - len(self._data))

    @property
    def is_empty(self) -> bool:
        """Tell whether no message has begun."""
        return not self._data

    def feed(self, data: bytes) -> None:
        """Take no more than `wants`; ProtocolError when it begins a message that cannot be."""
        self._data += data
        if len(self._data) < HEADER.size:
            return
        request, flags, size = HEADER.unpack_from(self._data)
        if flags & _VERSION_MASK != _VERSION or flags >= 1 << 4:
            raise ProtocolError(f"says message {request} with flags {flags:#x}")
        if size > PAYLOAD_MAX:
            raise ProtocolError(f"says message {request} of {size} bytes, {PAYLOAD_MAX} at most")

    def take(self) -> Message | None:
        """Return the message if it is whole."""
        if len(self._data) < HEADER.size:
            return None
        request, flags, size = HEADER.unpack_from(self._data)
        if len(self._data) < HEADER.size + size:
            return None
        payload = bytes(self._data[HEADER.size :])
        self._data.clear()
        return Message(request, flags, payload)


def message(request: int, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    """Return a request of the front end."""
    flags = _VERSION | (_NEED_REPLY if need_reply else 0)
    return HEADER.pack(request, flags, len(payload)) + payload


def reply(to: Message, status: int) -> bytes:
    """Return the answer to a request of the back end; `status` is 0 for success."""
    return HEADER.pack(to.request, _VERSION | _REPLY, U64.size) + U64.pack(status)


def check_reply(got: Message, request: int, sizes: Sequence[int], fds: int = 0) -> None:
    """Raise ProtocolError unless it answers `request` with one of `sizes`, and so many files."""
    if got.request != request or not got.flags & _REPLY:
        raise ProtocolError(f"says message {got.request} where {request} is to be answered")
    if len(got.payload) not in sizes:
        raise ProtocolError(f"answers message {request} with {len(got.payload)} bytes")
    if len(got.fds) != fds:
        raise ProtocolError(f"answers message {request} with {len(got.fds)} open files, not {fds}")


def regions(table: Sequence[tuple[int, int, int]]) -> bytes:
    """Return the payload of SET_MEM_TABLE for guest address, size and offset of each region.

    Addresses of rings are given in the "user addresses" of this table. Ours are the guest's own,
    so that a back end learns nothing of where this process has its memory.
    """
    return _REGIONS.pack(len(table), 0) + b"".join(
        _REGION.pack(address, size, address, offset) for address, size, offset in table
    )


def config(offset: int, data: bytes) -> bytes:
    """Return the payload of GET_CONFIG, where only the length of `data` counts, or SET_CONFIG."""
    return _CONFIG_HEAD.pack(offset, len(data), 0) + data


def read_config(payload: bytes, size: int) -> bytes:
    """Return the `size` bytes from offset 0 that GET_CONFIG was answered with."""
    if len(payload) != _CONFIG_HEAD.size + size:
        raise ProtocolError("refuses to tell its configuration space")
    if _CONFIG_HEAD.unpack_from(payload)[:2] != (0, size):
        raise ProtocolError("tells another part of its configuration space than was asked for")
    return payload[_CONFIG_HEAD.size :]


def config_sizes(size: int) -> tuple[int, int, int]:
    """Return how long an answer to GET_CONFIG may be; the last two are refusals."""
    return _CONFIG_HEAD.size + size, _CONFIG_HEAD.size, 0


INFLIGHT_SIZES = _INFLIGHT_BYTES


def read_inflight(payload: bytes) -> tuple[int, int, int, int]:
    """Return the fields of INFLIGHT that GET_INFLIGHT_FD was answered with."""
    size, offset, queues, queue_size = INFLIGHT.unpack(payload.ljust(INFLIGHT.size, b"\0"))
    return size, offset, queues, queue_size
