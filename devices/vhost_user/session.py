"""What is said on one connection to a back end, from its beginning to the end of the queues."""

from __future__ import annotations

import os
import socket

from . import protocol as p
from .connection import Connection, discard

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .layout import Region, Ring

_INFLIGHT_MAX = 64 << 20  # bytes of a back end's record of requests that may be
_INDEX_MAX = 0xFFFF


class Inflight:
    """A back end's record of the requests that it has begun with, for the one that comes after.

    Owns the file until `close`, and never looks into it.
    """

    __slots__ = ("fd", "payload")

    def __init__(self, fd: int, payload: bytes) -> None:
        self.fd = fd
        self.payload = payload

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Session:
    """A back end that has said what it can; owns the connection until `close`.

    One thread at a time. Errors are those of Connection; their text goes on after "its back end".
    """

    __slots__ = ("_asked", "_left", "bases", "channel", "connection", "features", "queue_max")

    def __init__(self, connection: Connection, wanted: int, deadline: float) -> None:
        """Negotiate; `wanted` are the features of the protocol that the device has a use for.

        The connection is taken over, whatever becomes of it.
        """
        self.connection = connection
        self.channel: Connection | None = None  # the back end's own requests
        self.features = 0
        self.queue_max = 0  # 0: it does not say
        self._left: list[int] = []  # rings that are served
        self.bases: dict[int, int] = {}  # of those that were: the entry to go on with
        self._asked = False  # the first of them is asked to stop
        try:
            self._negotiate(wanted, deadline)
        except BaseException:
            self.close()
            raise

    def _negotiate(self, wanted: int, deadline: float) -> None:
        ask, tell = self.connection.ask_number, self.connection.tell
        self.features = ask(p.GET_FEATURES, deadline)
        if self.features & p.F_PROTOCOL_FEATURES:
            protocol = ask(p.GET_PROTOCOL_FEATURES, deadline) & wanted
            tell(p.SET_PROTOCOL_FEATURES, p.U64.pack(protocol), deadline=deadline)
            self.connection.protocol = protocol
        tell(p.SET_OWNER, deadline=deadline)
        if self.connection.protocol & p.MQ:
            self.queue_max = ask(p.GET_QUEUE_NUM, deadline)
        if self.connection.protocol & p.BACKEND_REQ:
            ours, theirs = socket.socketpair()
            self.channel = Connection(ours)
            with theirs:
                tell(p.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),), deadline=deadline)

    @property
    def has_config(self) -> bool:
        """Tell whether it has a configuration space to be asked for."""
        return bool(self.connection.protocol & p.CONFIG)

    def config(self, size: int, deadline: float) -> bytes:
        """Return the first `size` bytes of the configuration space."""
        got = self.connection.ask(
            p.GET_CONFIG, p.config(0, bytes(size)), sizes=p.config_sizes(size), deadline=deadline
        )
        return p.read_config(got.payload, size)

    def write_config(self, offset: int, data: bytes, deadline: float) -> None:
        """Hand on what the driver wrote there."""
        self.connection.tell(p.SET_CONFIG, p.config(offset, data), deadline=deadline)

    def start(
        self,
        features: int,
        regions: Sequence[Region],
        rings: Sequence[Ring],
        queues: int,
        inflight: Inflight | None,
        deadline: float,
    ) -> Inflight | None:
        """Let it serve the rings; a kick that is due already is the caller's to give.

        `queues` is how many the device has. `inflight` is what the one before has left. Return
        what this one keeps, the same or another, or None where it keeps no record.
        """
        tell = self.connection.tell
        features |= self.features & p.F_PROTOCOL_FEATURES
        tell(p.SET_FEATURES, p.U64.pack(features), deadline=deadline)
        table = [(region.address, region.size, region.offset) for region in regions]
        fds = [region.fd for region in regions]
        tell(p.SET_MEM_TABLE, p.regions(table), fds, deadline=deadline)
        made: Inflight | None = None
        try:
            if self.connection.protocol & p.INFLIGHT_SHMFD:
                if inflight is None:
                    size = max(ring.size for ring in rings)
                    inflight = made = self._new_inflight(queues, size, deadline)
                tell(p.SET_INFLIGHT_FD, inflight.payload, (inflight.fd,), deadline=deadline)
            for ring in rings:
                self._left.append(ring.index)
                self.bases.pop(ring.index, None)
                self._start_ring(ring, deadline)
            if self.features & p.F_PROTOCOL_FEATURES:
                for ring in rings:
                    self.enable(ring.index, ring.is_enabled, deadline)
            # Without acknowledgements this is how it shows that it has taken all that.
            self.connection.ask_number(p.GET_FEATURES, deadline)
        except BaseException:
            if made is not None:
                made.close()
            raise
        return inflight

    def _new_inflight(self, queues: int, queue_size: int, deadline: float) -> Inflight:
        got = self.connection.ask(
            p.GET_INFLIGHT_FD,
            p.INFLIGHT.pack(0, 0, queues, queue_size),
            sizes=p.INFLIGHT_SIZES,
            fds=1,
            deadline=deadline,
        )
        size, offset, told_queues, told_size = p.read_inflight(got.payload)
        fits = 0 < size <= _INFLIGHT_MAX and offset <= _INFLIGHT_MAX
        if not fits or (told_queues, told_size) != (queues, queue_size):
            discard(got)
            raise p.ProtocolError("offers a record of requests that does not fit the queues")
        return Inflight(got.fds.pop(), p.INFLIGHT.pack(size, offset, queues, queue_size))

    def _start_ring(self, ring: Ring, deadline: float) -> None:
        tell, index = self.connection.tell, ring.index
        tell(p.SET_VRING_NUM, p.STATE.pack(index, ring.size), deadline=deadline)
        tell(p.SET_VRING_BASE, p.STATE.pack(index, ring.base), deadline=deadline)
        places = p.ADDRESS.pack(index, 0, ring.desc, ring.used, ring.avail, 0)
        tell(p.SET_VRING_ADDR, places, deadline=deadline)
        tell(p.SET_VRING_CALL, p.U64.pack(index), (ring.call_fd,), deadline=deadline)
        # Last: some take it for the order to begin.
        tell(p.SET_VRING_KICK, p.U64.pack(index), (ring.kick_fd,), deadline=deadline)

    def enable(self, index: int, on: bool, deadline: float) -> None:
        """Have a ring that is served take part in what its device does, or not."""
        state = p.STATE.pack(index, int(on))
        self.connection.tell(p.SET_VRING_ENABLE, state, deadline=deadline)

    def stop(self, deadline: float) -> None:
        """Have it let go of the rings and complete what it has begun with.

        After a TooLateError the next call goes on where this one was.
        """
        while self._left:
            index = self._left[0]
            if not self._asked:
                request = p.message(p.GET_VRING_BASE, p.STATE.pack(index, 0))
                self.connection.send(request, (), deadline)
                self._asked = True
            got = self.connection.answer(p.GET_VRING_BASE, (p.STATE.size,), deadline=deadline)
            said, base = p.STATE.unpack(got.payload)
            if said != index or base > _INDEX_MAX:
                raise p.ProtocolError(f"stops ring {said} at {base} where it was ring {index}")
            self._asked = False
            self.bases[index] = base
            del self._left[0]

    def ping(self, deadline: float) -> None:
        """See that it answers."""
        self.connection.ask_number(p.GET_FEATURES, deadline)

    def look(self) -> None:
        """Raise BackendError if it has gone, or says what nobody asked for; never waits.

        Not while an answer is due.
        """
        got = self.connection.receive()
        if got is not None:
            discard(got)
            raise p.ProtocolError(f"says message {got.request} unasked")

    def close(self) -> None:
        """Close all connections."""
        self.connection.close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
