"""The driver's side of a split virtqueue, over memory that it shares with the device under test.

`Ram` is the memory, `Ring` writes any field of a queue as a hostile driver would, and `Driver`
keeps the rules: it has a free list, adds chains, and collects what was used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyvirt.devices.virtio.queue import (
    AVAIL_NO_INTERRUPT,
    DESC,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    USED_ELEM,
    USED_NO_NOTIFY,
)
from pyvirt.native import check, ffi, lib

Span = tuple[int, int]
"""A guest-physical address and a length in bytes."""

Descriptor = tuple[int, int, int, int]
"""Address, length, flags and next."""


class Ram:
    """Guest memory in regions of guest-physical addresses, which need not touch.

    `buffer` holds the regions one after the other: a bytearray, or an mmap shared with a process
    that is to serve the queue.
    """

    def __init__(self, regions: Sequence[Span], buffer: Any = None, fd: int = -1) -> None:
        """`fd` is the file that an mmap is of, where others are to map it, too; borrowed."""
        self.regions = list(regions)
        self._fd = fd
        self.buffer = bytearray(sum(size for _, size in regions)) if buffer is None else buffer
        self._bytes = memoryview(self.buffer)

    def view(self, address: int, length: int) -> memoryview:
        """Return the bytes themselves; IndexError unless they lie in one region."""
        offset = 0
        for start, size in self.regions:
            if start <= address and address + length <= start + size:
                offset += address - start
                return self._bytes[offset : offset + length]
            offset += size
        raise IndexError(f"{address:#x}+{length:#x}")

    def address(self, host: Any) -> int:
        """Return the guest-physical address of what is mapped at `host`, a C pointer."""
        offset = int(ffi.cast("uintptr_t", host)) - self._base()
        for start, size in self.regions:
            if 0 <= offset < size:
                return start + offset
            offset -= size
        raise IndexError(f"{host} is not in this memory")

    def _base(self) -> int:
        return int(ffi.cast("uintptr_t", ffi.from_buffer(self.buffer)))

    def native(self) -> Any:
        """Return a struct pv_memory of the same regions; freed with the last reference."""
        out = ffi.new("struct pv_memory **")
        check(lib.pv_memory_new(out), "pv_memory_new")
        memory = ffi.gc(out[0], lib.pv_memory_free)
        base, offset = self._base(), 0
        for start, size in self.regions:
            host = ffi.cast("void *", base + offset)
            check(lib.pv_memory_add(memory, start, size, host), "region")
            if self._fd >= 0:
                file = ffi.new("struct pv_memory_file *", (start, size, offset, self._fd))
                check(lib.pv_memory_share(memory, file), "file")
            offset += size
        return memory


@dataclass(frozen=True)
class Layout:
    """Where a queue lies in guest memory, and what was negotiated for it."""

    desc: int
    avail: int
    used: int
    size: int
    event_idx: bool = False
    indirect: bool = False

    @classmethod
    def at(
        cls, address: int, size: int, *, event_idx: bool = False, indirect: bool = False
    ) -> Layout:
        """Place the three parts one after the other, as close as they may be."""
        avail = address + 16 * size
        used = (avail + 6 + 2 * size + 3) & ~3
        return cls(address, avail, used, size, event_idx, indirect)

    @property
    def end(self) -> int:
        """The first address behind the queue."""
        return self.used + 6 + 8 * self.size


class Ring:
    """Every field of a queue, to be read and written without any rule."""

    def __init__(self, ram: Ram, layout: Layout) -> None:
        self.ram = ram
        self.layout = layout
        self._desc = ram.view(layout.desc, 16 * layout.size)
        self._avail = ram.view(layout.avail, 6 + 2 * layout.size).cast("H")
        used = ram.view(layout.used, 6 + 8 * layout.size)
        self._used = used.cast("H")
        self._elems = used[4:]

    def describe(self, index: int, address: int, length: int, flags: int = 0, nxt: int = 0) -> None:
        """Write a descriptor."""
        DESC.pack_into(self._desc, DESC.size * index, address, length, flags, nxt)

    def offer(self, position: int, head: int) -> None:
        """Write the entry at `position` (modulo the size) of the available ring, not idx."""
        self._avail[2 + position % self.layout.size] = head

    @property
    def avail_idx(self) -> int:
        """Where the driver's next entry goes."""
        return self._avail[1]

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self._avail[1] = value & 0xFFFF

    @property
    def avail_flags(self) -> int:
        """AVAIL_NO_INTERRUPT or 0."""
        return self._avail[0]

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def used_event(self) -> int:
        """The entry of the used ring that is to raise an interrupt."""
        return self._avail[2 + self.layout.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.layout.size] = value & 0xFFFF

    @property
    def used_idx(self) -> int:
        """Where the device's next entry goes."""
        return self._used[1]

    @property
    def used_flags(self) -> int:
        """USED_NO_NOTIFY or 0."""
        return self._used[0]

    @property
    def avail_event(self) -> int:
        """The entry of the available ring that is to be notified of."""
        return self._used[2 + 4 * self.layout.size]

    def used_entry(self, position: int) -> tuple[int, int]:
        """Return head and length of the entry at `position` (modulo the size)."""
        head, length = USED_ELEM.unpack_from(self._elems, 8 * (position % self.layout.size))
        return head, length


class Driver:
    """An honest driver. Buffers are the caller's; only descriptors are managed here."""

    def __init__(self, ram: Ram, layout: Layout) -> None:
        self.ring = Ring(ram, layout)
        self.free = list(range(layout.size))
        self.position = 0  # where the next entry goes; modulo 2^16 it is avail.idx when published
        self._collected = 0
        self._chains: dict[int, list[int]] = {}

    def add(
        self, readable: Sequence[Span] = (), writable: Sequence[Span] = (), table: int | None = None
    ) -> int:
        """Add a chain, not yet published, and return its head.

        `table` is where an indirect table is to be built; None for a chain in the queue itself.
        IndexError: not enough free descriptors.
        """
        spans = [(*span, 0) for span in readable] + [(*span, DESC_WRITE) for span in writable]
        if table is not None:
            size = DESC.size * len(spans)
            self._write(self.ring.ram.view(table, size), list(range(len(spans))), spans)
            spans = [(table, size, DESC_INDIRECT)]
        if len(spans) > len(self.free):
            raise IndexError("no free descriptors")
        indexes = [self.free.pop() for _ in spans]
        self._write(self.ring._desc, indexes, spans)
        self.ring.offer(self.position, indexes[0])
        self.position += 1
        self._chains[indexes[0]] = indexes
        return indexes[0]

    @staticmethod
    def _write(
        table: memoryview, indexes: Sequence[int], spans: Sequence[tuple[int, int, int]]
    ) -> None:
        for place, (address, length, flags) in enumerate(spans):
            last = place + 1 == len(spans)
            following = 0 if last else indexes[place + 1]
            DESC.pack_into(
                table,
                DESC.size * indexes[place],
                address,
                length,
                flags | (0 if last else DESC_NEXT),
                following,
            )

    def publish(self) -> bool:
        """Show the device all chains added; True: it asked to be notified of one of them."""
        before, now = self.ring.avail_idx, self.position & 0xFFFF
        self.ring.avail_idx = now
        if not self.ring.layout.event_idx:
            return not self.ring.used_flags & USED_NO_NOTIFY and before != now
        return (self.ring.avail_event - before) & 0xFFFF < (now - before) & 0xFFFF

    def enable_interrupts(self) -> None:
        """Ask for an interrupt when the next chain is used."""
        if self.ring.layout.event_idx:
            self.ring.used_event = self._collected
        else:
            self.ring.avail_flags = 0

    def disable_interrupts(self) -> None:
        """Ask for no interrupt; with event indexes, for one that is half the circle away."""
        if self.ring.layout.event_idx:
            self.ring.used_event = self._collected + 0x8000
        else:
            self.ring.avail_flags = AVAIL_NO_INTERRUPT

    def collect(self) -> list[tuple[int, int]]:
        """Return head and written bytes of each chain used since the last call; free them."""
        done = []
        while self._collected & 0xFFFF != self.ring.used_idx:
            head, length = self.ring.used_entry(self._collected)
            self.free += self._chains.pop(head)
            done.append((head, length))
            self._collected += 1
        return done


def indirect_table(ram: Ram, address: int, descriptors: Sequence[Descriptor]) -> int:
    """Write descriptors at `address`; return their size in bytes."""
    data = b"".join(DESC.pack(*descriptor) for descriptor in descriptors)
    ram.view(address, len(data))[:] = data
    return len(data)
