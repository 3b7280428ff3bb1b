"""A back end of vhost-user in a thread of this process, written from the specification alone.

It serves one front end after the other, in order: an answer to a request is what `serve` makes of
it. Where a test wants it to misbehave, `answers` has a function by the number of a message, which
does what is to be done in place of the honest answer.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.queue import Virtqueue

FEATURES = r.VERSION_1 | r.EVENT_IDX | r.INDIRECT_DESC | p.F_PROTOCOL_FEATURES
PROTOCOL = p.MQ | p.REPLY_ACK | p.BACKEND_REQ | p.CONFIG | p.INFLIGHT_SHMFD
LATER = None
_REGION_HEAD = struct.Struct("=QHHHH")  # features, version, desc_num, last_batch_head, used_idx
_STATE = struct.Struct("=B5xHQ")  # inflight, next, counter

Serve = Callable[[int, bytes], "bytes | None"]


def echo(_queue: int, data: bytes) -> bytes:
    """Answer a request with its own bytes."""
    return data


class Memory:
    """The guest's memory, as the table of regions tells."""

    def __init__(self, payload: bytes, fds: list[int]) -> None:
        count = struct.unpack_from("=II", payload)[0]
        assert len(fds) == count
        assert len(payload) == 8 + 32 * count
        self._maps = []
        for index, fd in enumerate(fds):
            address, size, user, offset = struct.unpack_from("=QQQQ", payload, 8 + 32 * index)
            self._maps.append((address, user, size, mmap.mmap(fd, size, offset=offset)))
            os.close(fd)

    def guest(self, user: int) -> int:
        """Return the guest's address for one of the table's "user addresses"."""
        for address, start, size, _ in self._maps:
            if start <= user < start + size:
                return int(address + user - start)
        raise IndexError(hex(user))

    def view(self, address: int, length: int) -> memoryview:
        """Return guest memory itself."""
        for start, _, size, mapped in self._maps:
            if start <= address and address + length <= start + size:
                return memoryview(mapped)[address - start : address - start + length]
        raise IndexError(hex(address))


class Record:
    """The record of requests that are begun with, in the form that the specification has."""

    def __init__(self, mapped: mmap.mmap, queue: int, size: int) -> None:
        self._view = memoryview(mapped)
        self._start = queue * record_size(size)
        self._size = size

    def _at(self, head: int) -> int:
        assert head < self._size
        return self._start + _REGION_HEAD.size + _STATE.size * head

    def begin(self, head: int, counter: int) -> None:
        _STATE.pack_into(self._view, self._at(head), 1, 0, counter)

    def end(self, head: int) -> None:
        _STATE.pack_into(self._view, self._at(head), 0, 0, 0)

    def begun(self) -> list[int]:
        """Return the heads that are in flight, in their order."""
        states = [(*_STATE.unpack_from(self._view, self._at(h)), h) for h in range(self._size)]
        return [head for flag, _, _, head in sorted(states, key=lambda s: s[2]) if flag]


def record_size(queue_size: int) -> int:
    """Return the bytes for one queue."""
    return _REGION_HEAD.size + _STATE.size * queue_size


class Served:
    """One of the queues."""

    def __init__(self) -> None:
        self.size = self.base = 0
        self.places = (0, 0, 0)
        self.kick = self.call = -1
        self.ring: Virtqueue | None = None
        self.record: Record | None = None
        self.enabled = False


class BackEnd:
    """Listens on `path` until `die`."""

    def __init__(
        self,
        path: Path,
        serve: Serve = echo,
        *,
        features: int = FEATURES,
        protocol: int = PROTOCOL,
        config: bytes = bytes(range(60)),
        queues: int = 8,
    ) -> None:
        self.path = path
        self.serve = serve
        self.features = features
        self.protocol = protocol
        self.config = bytearray(config)
        self.queues = queues
        self.heard: list[int] = []  # the messages
        self.served: list[tuple[int, bytes]] = []
        self.driver_features = 0
        self.answers: dict[int, Callable[[bytes], None]] = {}
        self.channel: socket.socket | None = None
        self.front_end: socket.socket | None = None
        self.error: BaseException | None = None
        self._memory: Memory | None = None
        self._rings: dict[int, Served] = {}
        self._inflight: mmap.mmap | None = None
        self._inflight_size = 0
        self._counter = 0
        self._fds: list[int] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def die(self) -> None:
        """End as a process does that is killed."""
        os.close(self._woken)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._drop()
        self._listener.close()
        os.close(self._wake)
        self.path.unlink()
        if self.error is not None:
            raise self.error

    def _drop(self) -> None:
        for one in (self.front_end, self.channel):
            if one is not None:
                one.close()
        self.front_end = self.channel = None
        for queue in self._rings.values():
            for fd in (queue.kick, queue.call):
                if fd >= 0:
                    os.close(fd)
        self._rings.clear()
        # Each mapping has a descriptor of its own.
        self._memory = self._inflight = None
        while self._fds:
            os.close(self._fds.pop())

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001  (the test tells)
            self.error = error
            self._drop()

    def _turn(self) -> bool:
        kicks = {q.kick: i for i, q in self._rings.items() if q.ring is not None}
        first = self.front_end or self._listener
        waited: list[int | socket.socket] = [self._wake, first, *kicks]
        ready, _, _ = select.select(waited, [], [])
        if self._wake in ready:
            return False
        if first is self._listener and first in ready:
            self.front_end, _ = self._listener.accept()
            self.front_end.settimeout(10)
        elif first in ready and not self._hear():
            self._drop()
            return True
        for fd, index in kicks.items():
            if fd in ready and index in self._rings:
                os.eventfd_read(fd)
                self._serve(index)
        return True

    # Queues

    def _serve(self, index: int) -> None:
        queue = self._rings[index]
        ring = queue.ring
        if ring is None:
            return
        while True:
            while (chain := ring.pop()) is not None:
                self._begin(queue, chain.head)
                answer = self.serve(index, chain.read())
                self.served.append((index, chain.read()))
                if answer is not LATER:
                    ring.push(chain.head, chain.write(answer))
                    ring.publish()
                    if queue.record:
                        queue.record.end(chain.head)
            if ring.needs_notify():
                os.eventfd_write(queue.call, 1)
            if not ring.enable_kicks():
                return

    def _begin(self, queue: Served, head: int) -> None:
        if queue.record:
            queue.record.begin(head, self._counter)
            self._counter += 1

    def _start(self, index: int) -> None:
        queue = self._rings[index]
        assert self._memory is not None
        desc, used, avail = queue.places
        ring = Virtqueue(
            self._memory,
            desc=self._memory.guest(desc),
            avail=self._memory.guest(avail),
            used=self._memory.guest(used),
            size=queue.size,
            event_idx=bool(self.driver_features & r.EVENT_IDX),
            indirect=bool(self.driver_features & r.INDIRECT_DESC),
        )
        ring._next_avail = ring._known_avail = queue.base
        ring._next_used = ring._published_used = ring._notified_used = queue.base
        queue.ring = ring
        if self._inflight is not None:
            queue.record = Record(self._inflight, index, self._inflight_size)
            begun = queue.record.begun()
            ring._next_avail = ring._known_avail = queue.base + len(begun) & 0xFFFF
            for head in begun:
                self._resubmit(index, queue, ring, head)

    def _resubmit(self, index: int, queue: Served, ring: Virtqueue, head: int) -> None:
        assert queue.record
        chain = ring._chain(head)
        ring.in_flight.add(head)
        answer = self.serve(index, chain.read())
        self.served.append((index, chain.read()))
        if answer is not LATER:
            ring.push(head, chain.write(answer))
            ring.publish()
            queue.record.end(head)
            os.eventfd_write(queue.call, 1)

    # Messages

    def _hear(self) -> bool:
        assert self.front_end is not None
        try:
            head, fds, _, _ = socket.recv_fds(self.front_end, p.HEADER.size, 16)
        except ConnectionResetError:
            return False
        self._fds += fds
        if not head:
            return False
        request, flags, size = p.HEADER.unpack(head)
        payload = self.front_end.recv(size, socket.MSG_WAITALL) if size else b""
        assert flags & 3 == 1
        assert len(payload) == size
        self.heard.append(request)
        if request in self.answers:
            while self._fds:
                os.close(self._fds.pop())
            self.answers[request](payload)
        else:
            self._answer(request, payload, bool(flags & 8))
        return True

    def say(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send an answer."""
        self.send(p.HEADER.pack(request, 5, len(payload)) + payload, fds)

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send anything."""
        assert self.front_end is not None
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.front_end.sendmsg([data], ancillary)

    def number(self, request: int, value: int) -> None:
        self.say(request, p.U64.pack(value))

    def _answer(self, request: int, payload: bytes, need_reply: bool) -> None:
        if request == p.GET_FEATURES:
            self.number(request, self.features)
        elif request == p.GET_PROTOCOL_FEATURES:
            self.number(request, self.protocol)
        elif request == p.GET_QUEUE_NUM:
            self.number(request, self.queues)
        elif request == p.GET_CONFIG:
            offset, size, _ = struct.unpack_from("=III", payload)
            space = bytes(self.config[offset : offset + size])
            self.say(request, p.config(offset, space))
        elif request == p.GET_INFLIGHT_FD:
            self._new_record(payload)
        elif request == p.GET_VRING_BASE:
            index = p.STATE.unpack(payload)[0]
            ring = self._rings[index].ring
            assert ring is not None
            base = ring._next_avail
            self._rings[index].ring = None
            self.say(request, p.STATE.pack(index, base))
        else:
            self._set(request, payload)
            if need_reply:
                self.number(request, 0)

    def _new_record(self, payload: bytes) -> None:
        _, _, queues, queue_size = p.INFLIGHT.unpack(payload)
        size = queues * record_size(queue_size)
        fd = os.memfd_create("record", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.say(p.GET_INFLIGHT_FD, p.INFLIGHT.pack(size, 0, queues, queue_size), (fd,))
        os.close(fd)

    def _set(self, request: int, payload: bytes) -> None:  # noqa: C901  (one message each)
        if request == p.SET_FEATURES:
            self.driver_features = p.U64.unpack(payload)[0]
            assert not self.driver_features & ~self.features
        elif request == p.SET_MEM_TABLE:
            self._memory = Memory(payload, self._fds)
            self._fds = []
        elif request == p.SET_BACKEND_REQ_FD:
            self.channel = socket.socket(fileno=self._fds.pop())
        elif request == p.SET_INFLIGHT_FD:
            size, offset, _, self._inflight_size = p.INFLIGHT.unpack(payload)
            fd = self._fds.pop()
            self._inflight = mmap.mmap(fd, size, offset=offset)
            os.close(fd)
        elif request == p.SET_CONFIG:
            offset, size, flags = struct.unpack_from("=III", payload)
            assert flags == 0
            self.config[offset : offset + size] = payload[12:]
        elif request in (p.SET_VRING_KICK, p.SET_VRING_CALL):
            queue = self._rings.setdefault(p.U64.unpack(payload)[0], Served())
            fd = self._fds.pop()
            before = queue.kick if request == p.SET_VRING_KICK else queue.call
            if before >= 0:
                os.close(before)
            if request == p.SET_VRING_CALL:
                queue.call = fd
            else:
                queue.kick = fd
                self._start(p.U64.unpack(payload)[0])
        elif request == p.SET_VRING_ADDR:
            index, _, desc, used, avail, _ = p.ADDRESS.unpack(payload)
            self._rings.setdefault(index, Served()).places = desc, used, avail
        elif request in (p.SET_VRING_NUM, p.SET_VRING_BASE, p.SET_VRING_ENABLE):
            index, number = p.STATE.unpack(payload)
            queue = self._rings.setdefault(index, Served())
            if request == p.SET_VRING_NUM:
                queue.size = number
            elif request == p.SET_VRING_BASE:
                queue.base = number
            else:
                queue.enabled = bool(number)
        assert self._fds == []
