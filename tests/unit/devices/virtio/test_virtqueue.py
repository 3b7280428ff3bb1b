"""Rings: what a queue may be, what is taken and what is given back; for C and Python."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pyvirt.native import ffi, lib

from .device_side import SIDES, BrokenError, DeviceSide, NativeSide, RefusedError, serve
from .mock_driver import Driver, Layout, Ram, Ring

QUEUE = 0x1000
BUFFER = 0x8000
FAR = 0x40000
EMPTY = 0x50000
RAM = [(0, 0x10000), (FAR, 0x4000), (FAR + 0x4000, 0x4000)]
RAM_END = FAR + 0x8000
SIZES = [1 << bits for bits in range(11)]


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Any:
    """Return the implementation under test."""
    return SIDES[request.param]


@pytest.fixture
def ram() -> Ram:
    return Ram(RAM)


def moved(layout: Layout, part: str, address: int) -> Layout:
    """Place one part of a queue elsewhere."""
    fields: dict[str, Any] = {part: address}
    return dataclasses.replace(layout, **fields)


class TestConfiguration:
    """What pv_virtqueue_new refuses."""

    @pytest.mark.parametrize("size", SIZES)
    def test_size_may_be_a_power_of_two_to_1024(self, side: Any, ram: Ram, size: int) -> None:
        layout = Layout.at(QUEUE, size)
        assert serve(side(ram, layout)) == []

    @pytest.mark.parametrize("size", [0, 3, 6, 1023, 1025, 2048, 32768, 65535])
    def test_size_must_be_a_power_of_two_to_1024(self, side: Any, ram: Ram, size: int) -> None:
        with pytest.raises(RefusedError):
            side(ram, Layout.at(0, size))

    @pytest.mark.parametrize(("part", "alignment"), [("desc", 16), ("avail", 2), ("used", 4)])
    def test_parts_must_be_aligned(self, side: Any, ram: Ram, part: str, alignment: int) -> None:
        good = Layout(0x1000, 0x2000, 0x3000, 8)
        at = vars(good)[part]
        side(ram, moved(good, part, at + alignment))
        step = 1
        while step < alignment:
            with pytest.raises(RefusedError):
                side(ram, moved(good, part, at + step))
            step *= 2

    @pytest.mark.parametrize("size", [1, 8, 1024])
    @pytest.mark.parametrize("part", ["desc", "avail", "used"])
    def test_parts_must_lie_in_memory_to_their_last_byte(
        self, side: Any, ram: Ram, part: str, size: int
    ) -> None:
        length = {"desc": 16 * size, "avail": 6 + 2 * size, "used": 6 + 8 * size}[part]
        alignment = {"desc": 16, "avail": 2, "used": 4}[part]
        good = Layout(0, 0x6000, 0x8000, size)
        last = (RAM_END - length) & -alignment
        side(ram, moved(good, part, last))
        with pytest.raises(RefusedError):
            side(ram, moved(good, part, last + alignment))

    @pytest.mark.parametrize("part", ["desc", "avail", "used"])
    @pytest.mark.parametrize("at", [EMPTY, 0x10000 - 16, FAR - 16, FAR + 0x4000 - 16, 2**64 - 16])
    def test_parts_must_not_touch_what_is_no_memory(
        self, side: Any, ram: Ram, part: str, at: int
    ) -> None:
        with pytest.raises(RefusedError):
            side(ram, moved(Layout(0x1000, 0x2000, 0x3000, 8), part, at))

    def test_the_configuration_is_copied(self, ram: Ram) -> None:
        """A size changed after activation must not be looked at."""
        memory = ram.native()
        layout = Layout.at(QUEUE, 4)
        config = ffi.new("struct pv_virtqueue_config *", vars(layout))
        out = ffi.new("struct pv_virtqueue **")
        assert lib.pv_virtqueue_new(memory, config, out) == 0
        queue = ffi.gc(out[0], lib.pv_virtqueue_free)
        config.size, config.desc, config.used = 1024, 2**64 - 16, 1
        driver = Driver(ram, layout)
        head = driver.add([(BUFFER, 1)])
        driver.publish()
        chain = ffi.new("struct pv_chain *")
        assert lib.pv_virtqueue_pop(queue, chain) == 1
        assert (chain.head, ram.address(chain.iov[0].iov_base)) == (head, BUFFER)
        assert lib.pv_virtqueue_push(queue, head, 3) == 0
        lib.pv_virtqueue_publish(queue)
        assert driver.collect() == [(head, 3)]


class TestAvailableRing:
    """What is taken from the driver."""

    def test_nothing_is_there_at_first(self, side: Any, ram: Ram) -> None:
        device = side(ram, Layout.at(QUEUE, 8))
        assert device.pop() is None
        assert device.error is None

    def test_chains_come_in_the_order_of_the_ring(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        heads = [driver.add([(BUFFER + i, 1)]) for i in range(8)]
        driver.publish()
        for place, head in enumerate(heads):
            chain = device.pop()
            assert chain == (head, [(BUFFER + place, 1)], [])
        assert device.pop() is None

    def test_what_is_not_published_is_not_seen(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 1)])
        assert device.pop() is None
        driver.publish()
        assert device.pop() is not None

    @pytest.mark.parametrize("size", [1, 2, 1024])
    def test_idx_may_be_the_whole_ring_ahead(self, side: Any, ram: Ram, size: int) -> None:
        layout = Layout.at(QUEUE, size)
        driver, device = Driver(ram, layout), side(ram, layout)
        heads = [driver.add([(BUFFER, 1)]) for _ in range(size)]
        driver.publish()
        assert serve(device) == heads

    @pytest.mark.parametrize("size", [1, 2, 1024])
    @pytest.mark.parametrize("jump", [1, 0x7FFF, 0xFBFE, 0xFFFF])
    def test_idx_must_not_be_more_than_the_ring_ahead(
        self, side: Any, ram: Ram, size: int, jump: int
    ) -> None:
        """An idx from nowhere would otherwise be endless work on stale entries."""
        layout = Layout.at(QUEUE, size)
        device = side(ram, layout)
        ahead = min(size + jump, 0xFFFF)
        Ring(ram, layout).avail_idx = ahead
        with pytest.raises(BrokenError, match=f"avail idx is {ahead}, {ahead} ahead in a queue"):
            device.pop()

    def test_idx_must_not_go_back(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        driver.ring.avail_idx = 0
        with pytest.raises(BrokenError, match="avail idx is 0, 65535 ahead in a queue of 8"):
            device.pop()

    @pytest.mark.parametrize("size", [1, 8])
    def test_indexes_wrap_at_65536(self, side: Any, ram: Ram, size: int) -> None:
        layout = Layout.at(QUEUE, size)
        driver, device = Driver(ram, layout), side(ram, layout)
        served = 0
        while served <= 0x10000 + size:
            heads = [driver.add(writable=[(BUFFER, 1)]) for _ in range(size)]
            driver.publish()
            assert serve(device, 1) == heads
            served += size
            assert driver.ring.used_idx == served & 0xFFFF
            assert driver.collect() == [(head, 1) for head in heads]

    @pytest.mark.parametrize("head", [8, 9, 0x7FFF, 0xFFFF])
    def test_head_must_be_below_the_size(self, side: Any, ram: Ram, head: int) -> None:
        layout = Layout.at(QUEUE, 8)
        ring, device = Ring(ram, layout), side(ram, layout)
        ring.offer(0, head)
        ring.avail_idx = 1
        with pytest.raises(BrokenError, match=f"^head {head} in a queue of 8$"):
            device.pop()

    def test_head_must_not_be_in_flight(self, side: Any, ram: Ram) -> None:
        """Two requests under one name are a use after free in the making."""
        layout = Layout.at(QUEUE, 8)
        ring, device = Ring(ram, layout), side(ram, layout)
        ring.describe(5, BUFFER, 1)
        ring.offer(0, 5)
        ring.offer(1, 5)
        ring.avail_idx = 2
        assert device.pop() == (5, [(BUFFER, 1)], [])
        with pytest.raises(BrokenError, match=r"^head 5 while it is in flight$"):
            device.pop()

    def test_head_may_come_again_once_it_is_pushed(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        ring, device = Ring(ram, layout), side(ram, layout)
        ring.describe(5, BUFFER, 1)
        ring.offer(0, 5)
        ring.offer(1, 5)
        ring.avail_idx = 2
        assert serve(device) == [5, 5]

    @pytest.mark.parametrize("size", [1, 4, 64, 1024])
    def test_no_more_than_the_size_is_in_flight(self, side: Any, ram: Ram, size: int) -> None:
        layout = Layout.at(QUEUE, size)
        driver, device = Driver(ram, layout), side(ram, layout)
        for expected in range(1, size + 1):
            driver.add([(BUFFER, 1)])
            driver.publish()
            assert device.pop() is not None
            assert device.in_flight == expected
        for _ in range(size):
            driver.ring.avail_idx += 1
            with pytest.raises(BrokenError):
                device.pop()
            assert device.in_flight == size

    def test_entries_known_are_served_before_idx_is_read_again(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        heads = [driver.add([(BUFFER, 1)]) for _ in range(3)]
        driver.publish()
        assert device.pop().head == heads[0]
        driver.ring.avail_idx = 0x8000
        assert [device.pop().head, device.pop().head] == heads[1:]
        with pytest.raises(BrokenError):
            device.pop()


class TestUsedRing:
    """What is given back to the driver."""

    def test_entries_carry_head_and_length(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 4)
        driver, device = Driver(ram, layout), side(ram, layout)
        heads = [driver.add(writable=[(BUFFER, 64)]) for _ in range(4)]
        driver.publish()
        for head, written in zip(heads, [0, 1, 64, 0xFFFFFFFF], strict=True):
            assert device.pop().head == head
            assert device.push(head, written)
        device.publish()
        assert driver.collect() == list(zip(heads, [0, 1, 64, 0xFFFFFFFF], strict=True))

    def test_chains_may_complete_in_any_order(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        heads = [driver.add(writable=[(BUFFER, 8)]) for _ in range(8)]
        driver.publish()
        while device.pop():
            pass
        for head in reversed(heads):
            assert device.push(head, head)
        device.publish()
        assert driver.collect() == [(head, head) for head in reversed(heads)]

    def test_nothing_shows_before_it_is_published(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        for _ in range(3):
            driver.add(writable=[(BUFFER, 8)])
        driver.publish()
        for shown in range(3):
            head = device.pop().head
            assert device.push(head, 1)
            assert driver.ring.used_idx == shown
            device.publish()
            assert driver.ring.used_idx == shown + 1

    @pytest.mark.parametrize("head", [0, 3, 8, 0xFFFF])
    def test_what_is_not_in_flight_cannot_be_pushed(self, side: Any, ram: Ram, head: int) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 1)])
        driver.publish()
        taken = device.pop().head
        before = bytes(ram.buffer)
        assert taken != head
        assert not device.push(head, 1)
        device.publish()
        assert bytes(ram.buffer) == before
        assert device.in_flight == 1
        assert device.error is None

    def test_nothing_can_be_pushed_twice(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        head = driver.add([(BUFFER, 1)])
        driver.publish()
        device.pop()
        assert device.push(head, 1)
        assert not device.push(head, 1)
        device.publish()
        assert driver.collect() == [(head, 1)]

    def test_nothing_else_is_written(self, side: Any, ram: Ram) -> None:
        """The used ring is the device's; every other byte belongs to the driver."""
        layout = Layout.at(QUEUE, 8, event_idx=True)
        driver, device = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 16)], [(BUFFER + 16, 16)])
        driver.publish()
        before = bytearray(ram.buffer)
        device.disable_kicks()
        serve(device, 16)
        device.needs_notify()
        device.enable_kicks()
        after = bytearray(ram.buffer)
        used = slice(layout.used, layout.end)
        assert before[used] != after[used]
        before[used] = after[used] = b""
        assert before == after


class TestBrokenQueue:
    """After the driver broke a rule."""

    @pytest.fixture
    def broken(self, side: Any, ram: Ram) -> tuple[Driver, DeviceSide, int]:
        """Return a queue with one chain in flight, broken by the next."""
        layout = Layout.at(QUEUE, 8)
        driver, device = Driver(ram, layout), side(ram, layout)
        head = driver.add(writable=[(BUFFER, 8)])
        driver.publish()
        assert device.pop()
        driver.add(writable=[(EMPTY, 8)])
        driver.publish()
        with pytest.raises(BrokenError):
            device.pop()
        return driver, device, head

    def test_stays_broken_for_the_same_reason(self, broken: tuple[Driver, DeviceSide, int]) -> None:
        driver, device, _ = broken
        reason = device.error
        driver.ring.avail_idx = 1
        for _ in range(3):
            with pytest.raises(BrokenError, match=str(reason).replace("+", r"\+")):
                device.pop()
        assert device.error == reason

    def test_completes_what_is_in_flight(self, broken: tuple[Driver, DeviceSide, int]) -> None:
        driver, device, head = broken
        assert device.in_flight == 1
        assert device.push(head, 8)
        device.publish()
        assert device.needs_notify()
        assert driver.collect() == [(head, 8)]

    def test_does_not_ask_for_more(self, broken: tuple[Driver, DeviceSide, int]) -> None:
        driver, device, _ = broken
        device.disable_kicks()
        assert not device.enable_kicks()
        assert driver.ring.used_flags == 1


def test_no_reason_while_all_is_well(ram: Ram) -> None:
    device = NativeSide(ram, Layout.at(QUEUE, 8))
    assert device.error is None
