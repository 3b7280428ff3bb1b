"""A split virtqueue from the device's side, in plain Python (virtio 1.2, section 2.7).

The same rules, results and words as native/virtio/virtqueue.c, one read of guest memory for one
read: tests drive both with the same traffic and compare. Devices written in Python (python.py) are
served by the C rings, and handle the chains of this module.
"""

from __future__ import annotations

import struct
from _thread import allocate_lock

from ...errors import PyvirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Memory(Protocol):
        """Guest memory; `vmm.memory.GuestMemory` is one."""

        def view(self, address: int, length: int) -> memoryview:
            """Return the bytes themselves; IndexError unless they lie in one region of RAM."""


SIZE_MAX = 1024
CHAIN_MAX = 1024
BYTES_MAX = 1 << 32

DESC_NEXT, DESC_WRITE, DESC_INDIRECT = 1, 2, 4
AVAIL_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1

DESC = struct.Struct("<QIHH")  # address, length, flags, next
USED_ELEM = struct.Struct("<II")  # id, len

# The rings as arrays of 16-bit fields, each read or written whole: flags, idx, then the entries,
# then the event index.
_FLAGS, _IDX, _RING = 0, 1, 2


class DriverError(PyvirtError):
    """The driver broke a rule of virtqueues; its device needs a reset."""


class Chain:
    """A buffer of the driver: what the device may read, then what it may write.

    `head` names it to `Virtqueue.push`. `readable` and `writable` are views of guest memory, none
    of them empty.
    """

    __slots__ = ("head", "readable", "writable")

    def __init__(self, head: int) -> None:
        self.head = head
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []

    @property
    def readable_bytes(self) -> int:
        """How much the device may read."""
        return sum(map(len, self.readable))

    @property
    def writable_bytes(self) -> int:
        """How much the device may write."""
        return sum(map(len, self.writable))

    def read(self) -> bytes:
        """Return a copy of all that may be read."""
        return b"".join(self.readable)

    def write(self, data: bytes) -> int:
        """Copy `data` to where the chain may be written, from its start; return what fitted."""
        done = 0
        for segment in self.writable:
            piece = data[done : done + len(segment)]
            segment[: len(piece)] = piece
            done += len(piece)
        return done


class Virtqueue:
    """A queue at the start of its life: nothing offered, nothing used.

    One thread at a time. A device's loop: `disable_kicks`; `pop` and `push` until `pop` returns
    None; `publish`; an interrupt if `needs_notify`; the whole again while `enable_kicks`.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        desc: int,
        avail: int,
        used: int,
        size: int,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        """`desc`, `avail` and `used` are guest-physical, multiples of 16, 2 and 4.

        `size` is a power of two, 1 to 1024; `event_idx` and `indirect` say what was negotiated.
        Views of the rings are kept until `close`. DriverError: what is asked for is not allowed,
        or not in guest memory.
        """
        if not 1 <= size <= SIZE_MAX or size & (size - 1):
            raise DriverError(f"queue size {size} is not a power of two from 1 to {SIZE_MAX}")
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.error: str | None = None
        self.in_flight: set[int] = set()
        self._memory = memory
        self._desc = self._part("descriptor table", desc, DESC.size * size, 16)
        # Each ring ends with the other side's event index, there even if it was not negotiated.
        self._avail = self._part("available ring", avail, 4 + 2 * (size + 1), 2).cast("H")
        used_ring = self._part("used ring", used, 4 + USED_ELEM.size * size + 2, 4)
        self._used = used_ring.cast("H")
        self._elems = used_ring[4:]
        self._used_event = _RING + size
        self._avail_event = _RING + size * USED_ELEM.size // 2
        # All count modulo 2^16, like the idx fields.
        self._next_avail = 0
        self._known_avail = 0
        self._next_used = 0
        self._published_used = 0
        self._notified_used = 0
        self._lock = allocate_lock()

    def _part(self, name: str, address: int, length: int, alignment: int) -> memoryview:
        if address % alignment:
            raise DriverError(f"{name} at {address:#x} is not at a multiple of {alignment}")
        try:
            return self._memory.view(address, length)
        except IndexError:
            raise DriverError(f"{name} at {address:#x}+{length:#x} is not in memory") from None

    def close(self) -> None:
        """Give back the views of guest memory; nothing else may be called after it."""
        for view in (self._desc, self._avail, self._used, self._elems):
            view.release()

    def pop(self) -> Chain | None:
        """Take the next chain that the driver offers, in flight until pushed; None: none there.

        DriverError: the driver broke the rules, now or at an earlier pop; `error` says how.
        """
        if self.error is not None:
            raise DriverError(self.error)
        if not self._look():
            return None
        head = self._avail[_RING + self._next_avail % self.size]
        if head >= self.size:
            raise self._fail(f"head {head} in a queue of {self.size}")
        if head in self.in_flight:
            raise self._fail(f"head {head} while it is in flight")
        chain = self._chain(head)
        self.in_flight.add(head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def push(self, head: int, written: int) -> None:
        """Complete a chain, in any order, of which the first `written` writable bytes were written.

        The driver sees it after the next `publish`. A broken queue still takes what was in flight.
        ValueError, without any effect: `head` is not in flight.
        """
        if head not in self.in_flight:
            raise ValueError(f"head {head} is not in flight")
        self.in_flight.remove(head)
        USED_ELEM.pack_into(
            self._elems, self._next_used % self.size * USED_ELEM.size, head, written
        )
        self._next_used = (self._next_used + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the driver every chain pushed so far. Once per batch."""
        if self._published_used != self._next_used:
            self._used[_IDX] = self._published_used = self._next_used

    def needs_notify(self) -> bool:
        """Return whether to interrupt: the driver asked to be told of a chain published since.

        Since the last call, that is, which has to follow every publish.
        """
        before, now = self._notified_used, self._published_used
        if before == now:
            return False
        self._notified_used = now
        self._full_barrier()
        if not self.event_idx:
            return not self._avail[_FLAGS] & AVAIL_NO_INTERRUPT
        event = self._avail[self._used_event]
        return (event - before) & 0xFFFF < (now - before) & 0xFFFF

    def enable_kicks(self) -> bool:
        """Ask the driver for notifications, before waiting for one.

        True: do not wait, more chains came meanwhile. False, without effect, on a broken queue.
        """
        if self.error is not None:
            return False
        if self.event_idx:
            self._used[self._avail_event] = self._next_avail
        else:
            self._used[_FLAGS] = 0
        self._full_barrier()
        # What is seen now is what the next pop takes, so that a driver whose idx goes to and fro
        # keeps nobody.
        try:
            return self._look()
        except DriverError:
            return True

    def disable_kicks(self) -> None:
        """Tell the driver that it need not notify, while chains are served."""
        if not self.event_idx:
            self._used[_FLAGS] = USED_NO_NOTIFY

    def _look(self) -> bool:
        if self._known_avail != self._next_avail:
            return True
        self._known_avail = self._avail[_IDX]
        ahead = (self._known_avail - self._next_avail) & 0xFFFF
        if ahead > self.size:
            idx = self._known_avail
            raise self._fail(f"avail idx is {idx}, {ahead} ahead in a queue of {self.size}")
        return ahead != 0

    def _chain(self, head: int) -> Chain:
        chain = Chain(head)
        total = 0
        write_seen = False
        for name, address, length, flags in self._descriptors(head):
            write = bool(flags & DESC_WRITE)
            if write_seen and not write:
                raise self._fail(f"{name}: readable after a writable one")
            write_seen = write
            if length == 0:
                continue
            view = self._view(name, address, length)
            total += length
            if total > BYTES_MAX:
                raise self._fail(f"{name}: more than 2^32 bytes in a chain")
            (chain.writable if write else chain.readable).append(view)
        return chain

    def _descriptors(self, index: int) -> Iterator[tuple[str, int, int, int]]:
        """Follow a chain; yield what to call each descriptor, and what it says."""
        table, count = self._desc, self.size
        kind = "descriptor"
        length = visited = 0
        while True:
            name = f"{kind} {index}"
            address, size, flags, following = DESC.unpack_from(table, DESC.size * index)
            if flags & ~(DESC_NEXT | DESC_WRITE | DESC_INDIRECT):
                raise self._fail(f"{name}: unknown flags {flags:#x}")
            if flags & DESC_INDIRECT:
                table = self._indirect(name, address, size, flags, nested=table is not self._desc)
                count = size // DESC.size
                kind = "indirect descriptor"
                index = visited = 0
                continue
            if length == CHAIN_MAX:
                raise self._fail(f"{name}: more than {CHAIN_MAX} descriptors in a chain")
            length += 1
            yield name, address, size, flags
            if not flags & DESC_NEXT:
                return
            if following >= count:
                raise self._fail(f"{name}: next is {following}, in a table of {count}")
            visited += 1
            if visited >= count:
                raise self._fail(f"{name}: the chain loops")
            index = following

    def _indirect(
        self, name: str, address: int, size: int, flags: int, *, nested: bool
    ) -> memoryview:
        if not self.indirect:
            raise self._fail(f"{name}: an indirect table, which was not negotiated")
        if nested:
            raise self._fail(f"{name}: an indirect table in an indirect table")
        if flags & DESC_NEXT:
            raise self._fail(f"{name}: both an indirect table and a next one")
        if size == 0 or size % DESC.size:
            raise self._fail(f"{name}: an indirect table of {size} bytes")
        return self._view(name, address, size)

    def _view(self, name: str, address: int, length: int) -> memoryview:
        try:
            return self._memory.view(address, length)
        except IndexError:
            what = f"{name}: {address:#x}+{length:#x} is not in guest memory"
            raise self._fail(what) from None

    def _fail(self, reason: str) -> DriverError:
        self.error = reason
        return DriverError(reason)

    def _full_barrier(self) -> None:
        # Taking a lock is an atomic exchange, which orders the store before it and the load after.
        with self._lock:
            pass
