"""Chains of descriptors: what a driver may build and what breaks its queue; for C and Python."""

from __future__ import annotations

import mmap
import re
from typing import Any, NamedTuple

import pytest
from pyvirt.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Virtqueue

from .device_side import SIDES, BrokenError, DeviceSide, Popped
from .mock_driver import Descriptor, Driver, Layout, Ram, Ring, indirect_table

QUEUE = 0x1000
TABLE = 0x20000
BUFFER = 0x28000
HIGH = 0x100000
RAM = [(0, 0x30000), (HIGH, 0x4000), (HIGH + 0x4000, 0x4000)]
MAP_NORESERVE = 0x4000
SIZE = 8
N, W, T = DESC_NEXT, DESC_WRITE, DESC_INDIRECT


class Bench(NamedTuple):
    """A queue of 8 and what a hostile driver does to it."""

    ram: Ram
    ring: Ring
    device: DeviceSide

    def pop(self, *descriptors: Descriptor, head: int = 0) -> Popped:
        """Write the table, offer `head` and take it."""
        for index, descriptor in enumerate(descriptors):
            self.ring.describe(index, *descriptor)
        self.ring.offer(self.ring.avail_idx, head)
        self.ring.avail_idx += 1
        chain = self.device.pop()
        assert chain is not None
        assert chain.head == head
        return chain

    def pop_table(self, *table: Descriptor, before: tuple[Descriptor, ...] = ()) -> Popped:
        """Take a chain that ends in an indirect table."""
        size = indirect_table(self.ram, TABLE, table)
        return self.pop(*before, (TABLE, size, T, 0))

    def refuses(self, reason: str, *descriptors: Descriptor, head: int = 0) -> None:
        """Expect the queue to break for `reason`, and nothing to be in flight."""
        with pytest.raises(BrokenError, match=f"^{re.escape(reason)}$"):
            self.pop(*descriptors, head=head)
        assert self.device.in_flight == 0

    def refuses_table(self, reason: str, *table: Descriptor) -> None:
        """Expect an indirect table to break the queue."""
        with pytest.raises(BrokenError, match=f"^{re.escape(reason)}$"):
            self.pop_table(*table)
        assert self.device.in_flight == 0


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Any:
    """Return the implementation under test."""
    return SIDES[request.param]


def make(side: Any, *, indirect: bool, size: int = SIZE) -> Bench:
    ram = Ram(RAM)
    layout = Layout.at(QUEUE, size, indirect=indirect)
    return Bench(ram, Ring(ram, layout), side(ram, layout))


@pytest.fixture
def bench(side: Any) -> Bench:
    """Return a queue for which indirect tables were negotiated."""
    return make(side, indirect=True)


@pytest.fixture
def plain(side: Any) -> Bench:
    """Return a queue for which they were not."""
    return make(side, indirect=False)


class TestHonest:
    """What every driver may do."""

    def test_readable_then_writable(self, plain: Bench) -> None:
        chain = plain.pop(
            (BUFFER, 16, N, 1),
            (BUFFER + 0x100, 512, N, 2),
            (HIGH, 64, N | W, 3),
            (HIGH + 64, 1, W, 0),
        )
        assert chain.readable == [(BUFFER, 16), (BUFFER + 0x100, 512)]
        assert chain.writable == [(HIGH, 64), (HIGH + 64, 1)]

    def test_only_readable(self, plain: Bench) -> None:
        assert plain.pop((BUFFER, 16, 0, 0)) == (0, [(BUFFER, 16)], [])

    def test_only_writable(self, plain: Bench) -> None:
        assert plain.pop((BUFFER, 16, W, 0)) == (0, [], [(BUFFER, 16)])

    def test_descriptors_in_any_order(self, plain: Bench) -> None:
        chain = plain.pop(
            (BUFFER, 4, W, 0), (BUFFER, 3, N | W, 0), (BUFFER, 2, N, 1), (BUFFER, 1, N, 2), head=3
        )
        assert chain == (3, [(BUFFER, 1), (BUFFER, 2)], [(BUFFER, 3), (BUFFER, 4)])

    def test_next_means_nothing_without_its_flag(self, plain: Bench) -> None:
        assert plain.pop((BUFFER, 1, 0, 0xFFFF)).readable == [(BUFFER, 1)]

    @pytest.mark.parametrize("size", [1, 2, 8, 1024])
    def test_as_long_as_the_queue(self, side: Any, size: int) -> None:
        bench = make(side, indirect=False, size=size)
        descriptors = [(BUFFER + i, 1, N, i + 1) for i in range(size - 1)]
        chain = bench.pop(*descriptors, (BUFFER + size, 1, 0, 0))
        assert chain.readable == [*((BUFFER + i, 1) for i in range(size - 1)), (BUFFER + size, 1)]

    def test_to_the_last_byte_of_memory(self, plain: Bench) -> None:
        end = HIGH + 0x8000
        assert plain.pop((end - 5, 5, 0, 0)).readable == [(end - 5, 5)]


class TestLinks:
    """From one descriptor to the next."""

    @pytest.mark.parametrize("following", [8, 9, 0x100, 0xFFFF])
    def test_next_must_be_below_the_size(self, plain: Bench, following: int) -> None:
        reason = f"descriptor 0: next is {following}, in a table of 8"
        plain.refuses(reason, (BUFFER, 1, N, following))

    def test_no_loop_to_itself(self, plain: Bench) -> None:
        plain.refuses("descriptor 0: the chain loops", (BUFFER, 1, N, 0))

    def test_no_loop_of_two(self, plain: Bench) -> None:
        plain.refuses("descriptor 1: the chain loops", (BUFFER, 1, N, 1), (BUFFER, 1, N, 0))

    def test_no_loop_behind_a_start(self, plain: Bench) -> None:
        links = [1, 2, 3, 2]
        # Seen when 8 descriptors were walked: 0, 1, 2, 3, 2, 3, 2, 3.
        plain.refuses("descriptor 3: the chain loops", *((BUFFER, 1, N, link) for link in links))

    def test_no_loop_of_the_whole_table(self, plain: Bench) -> None:
        ring = [(BUFFER, 1, N, (i + 1) % SIZE) for i in range(SIZE)]
        plain.refuses("descriptor 7: the chain loops", *ring)

    @pytest.mark.parametrize("flags", [8, 0x10, 0x80, 0x8000, 0xFFF8, 0x8 | N | W])
    def test_only_known_flags(self, plain: Bench, flags: int) -> None:
        plain.refuses(f"descriptor 0: unknown flags {flags:#x}", (BUFFER, 1, flags, 0))

    def test_no_readable_after_writable(self, plain: Bench) -> None:
        plain.refuses(
            "descriptor 1: readable after a writable one", (BUFFER, 1, N | W, 1), (BUFFER, 1, 0, 0)
        )

    def test_no_readable_after_an_empty_writable(self, plain: Bench) -> None:
        plain.refuses(
            "descriptor 1: readable after a writable one", (BUFFER, 0, N | W, 1), (BUFFER, 1, 0, 0)
        )


class TestBuffers:
    """What a descriptor points at."""

    @pytest.mark.parametrize(
        ("address", "length"),
        [
            pytest.param(0x30000, 1, id="just behind"),
            pytest.param(0x2FFFF, 2, id="across the end"),
            pytest.param(HIGH - 1, 1, id="just below"),
            pytest.param(HIGH - 1, 2, id="across the start"),
            pytest.param(0x2F000, HIGH, id="over a hole"),
            pytest.param(HIGH + 0x3FFF, 2, id="across regions that touch"),
            pytest.param(HIGH + 0x8000, 1, id="behind the last"),
            pytest.param(0, 0xFFFFFFFF, id="longest"),
            pytest.param(2**64 - 1, 1, id="last address"),
            pytest.param(2**64 - 1, 2, id="around the end"),
            pytest.param(2**64 - 0x1000, 0x2000, id="around the end into memory"),
            pytest.param(2**64 - 0x80000000, 0xFFFFFFFF, id="far around the end"),
            pytest.param(1 << 32, 1, id="low bits in memory"),
        ],
    )
    @pytest.mark.parametrize("flags", [0, W], ids=["readable", "writable"])
    def test_must_lie_in_one_region(
        self, plain: Bench, address: int, length: int, flags: int
    ) -> None:
        reason = f"descriptor 0: {address:#x}+{length:#x} is not in guest memory"
        plain.refuses(reason, (address, length, flags, 0))

    def test_later_ones_too(self, plain: Bench) -> None:
        reason = "descriptor 1: 0x30000+0x1 is not in guest memory"
        plain.refuses(reason, (BUFFER, 1, N, 1), (0x30000, 1, W, 0))

    def test_an_empty_one_adds_no_segment(self, plain: Bench) -> None:
        chain = plain.pop(
            (BUFFER, 1, N, 1), (0, 0, N, 2), (2**64 - 1, 0, N | W, 3), (HIGH, 2, W, 0)
        )
        assert chain == (0, [(BUFFER, 1)], [(HIGH, 2)])

    def test_nothing_but_an_empty_one(self, plain: Bench) -> None:
        assert plain.pop((0, 0, 0, 0)) == (0, [], [])

    def test_may_overlap(self, plain: Bench) -> None:
        chain = plain.pop((BUFFER, 8, N, 1), (BUFFER + 4, 8, N | W, 2), (BUFFER, 8, W, 0))
        assert chain.writable == [(BUFFER + 4, 8), (BUFFER, 8)]

    def test_what_changes_after_pop_changes_nothing(self, plain: Bench) -> None:
        """Each descriptor is read once."""
        chain = plain.pop((BUFFER, 8, N, 1), (HIGH, 8, W, 0))
        for index in range(SIZE):
            plain.ring.describe(index, 2**64 - 1, 0xFFFFFFFF, 0xFFFF, 0xFFFF)
        assert chain == (0, [(BUFFER, 8)], [(HIGH, 8)])
        assert plain.device.push(0, 8)
        plain.device.publish()
        assert plain.ring.used_entry(0) == (0, 8)


class TestIndirect:
    """Chains in a table of their own (virtio 1.2, section 2.7.5.3)."""

    def test_a_whole_chain(self, bench: Bench) -> None:
        chain = bench.pop_table((BUFFER, 1, N, 2), (HIGH, 3, W, 0), (BUFFER + 8, 2, N, 1))
        assert chain == (0, [(BUFFER, 1), (BUFFER + 8, 2)], [(HIGH, 3)])

    def test_behind_plain_descriptors(self, bench: Bench) -> None:
        chain = bench.pop_table(
            (HIGH, 3, N | W, 1), (HIGH, 4, W, 0), before=((BUFFER, 1, N, 1), (BUFFER, 2, N | W, 2))
        )
        assert chain == (0, [(BUFFER, 1)], [(BUFFER, 2), (HIGH, 3), (HIGH, 4)])

    def test_after_a_full_queue_of_plain_descriptors(self, bench: Bench) -> None:
        before = tuple((BUFFER, 1, N, i + 1) for i in range(SIZE - 1))
        chain = bench.pop_table((HIGH, 3, W, 0), before=before)
        assert (len(chain.readable), chain.writable) == (SIZE - 1, [(HIGH, 3)])

    def test_its_write_flag_means_nothing(self, bench: Bench) -> None:
        size = indirect_table(bench.ram, TABLE, [(BUFFER, 1, 0, 0)])
        assert bench.pop((TABLE, size, T | W, 0)).readable == [(BUFFER, 1)]

    def test_only_what_is_linked_is_looked_at(self, bench: Bench) -> None:
        chain = bench.pop_table(
            (BUFFER, 1, N, 3), (0, 9, 0xFFFF, 9), (0, 9, 8, 9), (BUFFER, 2, W, 0)
        )
        assert chain == (0, [(BUFFER, 1)], [(BUFFER, 2)])

    @pytest.mark.parametrize("shift", [1, 2, 4, 8, 15])
    def test_at_any_address(self, bench: Bench, shift: int) -> None:
        size = indirect_table(bench.ram, TABLE + shift, [(BUFFER, 1, N, 1), (BUFFER, 2, W, 0)])
        assert bench.pop((TABLE + shift, size, T, 0)) == (0, [(BUFFER, 1)], [(BUFFER, 2)])

    def test_longer_than_the_queue(self, bench: Bench) -> None:
        table = [(BUFFER + i, 1, N, i + 1) for i in range(1023)] + [(HIGH, 1, W, 0)]
        chain = bench.pop_table(*table)
        assert chain.readable == [(BUFFER + i, 1) for i in range(1023)]
        assert chain.writable == [(HIGH, 1)]

    def test_at_most_1024_descriptors(self, bench: Bench) -> None:
        table = [(BUFFER + i, 1, N, i + 1) for i in range(1024)] + [(HIGH, 1, W, 0)]
        reason = "indirect descriptor 1024: more than 1024 descriptors in a chain"
        bench.refuses_table(reason, *table)

    def test_at_most_1024_descriptors_with_plain_and_empty_ones(self, bench: Bench) -> None:
        table = [(0, 0, N, i + 1) for i in range(1023)] + [(HIGH, 1, W, 0)]
        reason = "indirect descriptor 1023: more than 1024 descriptors in a chain"
        with pytest.raises(BrokenError, match=reason):
            bench.pop_table(*table, before=((BUFFER, 1, N, 1),))

    def test_only_if_negotiated(self, plain: Bench) -> None:
        indirect_table(plain.ram, TABLE, [(BUFFER, 1, 0, 0)])
        reason = "descriptor 0: an indirect table, which was not negotiated"
        plain.refuses(reason, (TABLE, 16, T, 0))

    def test_not_in_another(self, bench: Bench) -> None:
        reason = "indirect descriptor 0: an indirect table in an indirect table"
        bench.refuses_table(reason, (TABLE, 16, T, 0))

    def test_not_with_a_next(self, bench: Bench) -> None:
        reason = "descriptor 0: both an indirect table and a next one"
        bench.refuses(reason, (TABLE, 16, T | N, 1), (BUFFER, 1, 0, 0))

    @pytest.mark.parametrize("size", [0, 1, 15, 17, 24, 0xFFFFFFFF])
    def test_a_multiple_of_16_bytes_and_some(self, bench: Bench, size: int) -> None:
        bench.refuses(f"descriptor 0: an indirect table of {size} bytes", (TABLE, size, T, 0))

    @pytest.mark.parametrize(
        ("address", "size"),
        [(0x30000, 16), (0x2FFF8, 16), (HIGH + 0x3FF0, 32), (2**64 - 16, 16), (0, 0xFFFFFFF0)],
    )
    def test_in_one_region_of_memory(self, bench: Bench, address: int, size: int) -> None:
        reason = f"descriptor 0: {address:#x}+{size:#x} is not in guest memory"
        bench.refuses(reason, (address, size, T, 0))

    @pytest.mark.parametrize("following", [2, 3, 8, 0xFFFF])
    def test_next_must_be_in_the_table(self, bench: Bench, following: int) -> None:
        reason = f"indirect descriptor 1: next is {following}, in a table of 2"
        bench.refuses_table(reason, (BUFFER, 1, N, 1), (BUFFER, 1, N, following))

    def test_no_loop(self, bench: Bench) -> None:
        reason = "indirect descriptor 1: the chain loops"
        bench.refuses_table(reason, (BUFFER, 1, N, 1), (BUFFER, 1, N, 0))

    def test_no_endless_loop_in_a_huge_table(self, bench: Bench) -> None:
        size = 0x10000
        indirect_table(bench.ram, TABLE, [(0, 0, N, 0)])
        reason = "indirect descriptor 0: more than 1024 descriptors in a chain"
        bench.refuses(reason, (TABLE, size, T, 0))

    def test_flags_and_order_are_checked_there_too(self, side: Any) -> None:
        reason = "indirect descriptor 0: unknown flags 0x8"
        make(side, indirect=True).refuses_table(reason, (BUFFER, 1, 8, 0))
        reason = "indirect descriptor 1: readable after a writable one"
        make(side, indirect=True).refuses_table(reason, (BUFFER, 1, N | W, 1), (BUFFER, 1, 0, 0))

    def test_no_readable_in_the_table_after_writable_before_it(self, bench: Bench) -> None:
        with pytest.raises(
            BrokenError, match="indirect descriptor 0: readable after a writable one"
        ):
            bench.pop_table((BUFFER, 1, 0, 0), before=((BUFFER, 1, N | W, 1),))


class TestTotal:
    """At most 2^32 bytes in a chain (virtio 1.2, section 2.7.5.2)."""

    GIB = 1 << 30

    @pytest.fixture
    def bench(self, side: Any) -> Bench:
        """Return a queue in 4 GiB of memory that nobody touches but for the queue."""
        size = 4 * self.GIB
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        ram = Ram([(0, size)], mmap.mmap(-1, size, flags))
        layout = Layout.at(0, SIZE, indirect=True)
        return Bench(ram, Ring(ram, layout), side(ram, layout))

    def test_all_of_it(self, bench: Bench) -> None:
        half = 2 * self.GIB
        chain = bench.pop((0, half, N, 1), (0, half, W, 0))
        assert chain == (0, [(0, half)], [(0, half)])

    @pytest.mark.parametrize("writable", [(0, 0, W), (0, W, W), (W, W, W)])
    def test_a_byte_more(self, bench: Bench, writable: tuple[int, ...]) -> None:
        half = 2 * self.GIB
        reason = "descriptor 2: more than 2^32 bytes in a chain"
        first, second, third = writable
        bench.refuses(reason, (0, half, N | first, 1), (0, half, N | second, 2), (0, 1, third, 0))


class TestModelChain:
    """What the Python queue adds: reading and writing a chain's bytes."""

    @pytest.fixture
    def queue(self) -> tuple[Driver, Virtqueue]:
        layout = Layout.at(QUEUE, SIZE)
        ram = Ram(RAM)
        return Driver(ram, layout), Virtqueue(ram, **vars(layout))

    def test_read_joins_the_segments(self, queue: tuple[Driver, Virtqueue]) -> None:
        driver, device = queue
        ram = driver.ring.ram
        ram.view(BUFFER, 3)[:] = b"abc"
        ram.view(HIGH, 2)[:] = b"de"
        driver.add([(BUFFER, 3), (HIGH, 2)])
        driver.publish()
        chain = device.pop()
        assert chain
        assert chain.read() == b"abcde"

    @pytest.mark.parametrize("size", range(8))
    def test_write_fills_the_segments(self, queue: tuple[Driver, Virtqueue], size: int) -> None:
        driver, device = queue
        ram = driver.ring.ram
        driver.add(writable=[(BUFFER, 3), (HIGH, 2)])
        driver.publish()
        chain = device.pop()
        assert chain
        data = b"ABCDEFGH"[:size]
        assert chain.write(data) == min(size, 5)
        assert bytes(ram.view(BUFFER, 4)) + bytes(ram.view(HIGH, 3)) == (
            data[:3].ljust(4, b"\0") + data[3:5].ljust(3, b"\0")
        )

    def test_close_gives_the_views_back(self) -> None:
        buffer = bytearray(0x30000)
        ram = Ram([(0, 0x30000)], buffer)
        device = Virtqueue(ram, **vars(Layout.at(QUEUE, SIZE)))
        device.close()
        ram._bytes.release()
        buffer.append(0)
