"""Rules that hold for every virtio device, against drivers that keep none (virtio 1.2, 2 and 4.2).

Whatever a driver does, a device completes what it is asked, or needs a reset and says why in one
line; the reset works, the next driver finds it as new, and no descriptor or thread is left.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.fault import OPERATIONS
from pyvirt.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE

from .bench import NEGOTIATED, RING_STEP, RINGS, RUNNING
from .every_device import EVERY, Subject
from .mock_driver import Driver, Ram, indirect_table
from .queue_bench import DATA, QueueBench

MIB = 1 << 20
LOW, HIGH_AT, HIGH = 8 * MIB, 1 << 32, 1 * MIB
TABLE = DATA + 0x10_0000
TRANSPORT = r.VERSION_1 | r.INDIRECT_DESC | r.EVENT_IDX
SECONDS = 10

Break = Callable[[Driver, Ram], None]


@contextmanager
def opened(subject: Subject) -> Iterator[QueueBench]:
    """Put the device behind a transport; check that nothing of it is left at the end."""
    with ExitStack() as outside:
        ram = _ram(outside, shared=subject.shared)
        threads, fds = _threads(), len(os.listdir("/proc/self/fd"))
        with ExitStack() as stack:
            bench = QueueBench(subject.make(stack), ram)
            try:
                yield bench
                assert not bench.transport.is_given_up
            finally:
                bench.close()
        assert len(os.listdir("/proc/self/fd")) == fds
        _wait_for(lambda: _threads() == threads)


def _ram(stack: ExitStack, *, shared: bool) -> Ram:
    regions = [(0, LOW), (HIGH_AT, HIGH)]
    if not shared:
        # Of pages of its own, as a balloon gives them away.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return Ram(regions, mmap.mmap(-1, LOW + HIGH, flags))
    fd = os.memfd_create("ram")
    stack.callback(os.close, fd)
    os.truncate(fd, LOW + HIGH)
    return Ram(regions, mmap.mmap(fd, LOW + HIGH), fd)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _wait_for(what: Callable[[], bool]) -> None:
    """Wait for what a thread does, for a limited time."""
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until
        time.sleep(0.001)


def _wait_for_answer(bench: QueueBench, index: int) -> None:
    _wait_for(lambda: bench.broken or bench.drivers[index].ring.used_idx > 0)


@pytest.fixture(params=EVERY)
def subject(request: pytest.FixtureRequest) -> Subject:
    return EVERY[request.param]


@pytest.fixture
def bench(subject: Subject) -> Iterator[QueueBench]:
    with opened(subject) as bench:
        yield bench


def offered(bench: QueueBench) -> int:
    """Return all feature bits that the device shows."""
    found = 0
    for word in range(4):
        bench.set(r.DEVICE_FEATURES_SEL, word)
        found |= bench.get(r.DEVICE_FEATURES) << 32 * word
    return found


def check_as_new(bench: QueueBench) -> None:
    """Reset the device, and let another driver begin."""
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0
    assert bench.get(r.INTERRUPT_STATUS) == 0
    for index in range(len(bench.device.queue_sizes)):
        bench.set(r.QUEUE_SEL, index)
        assert bench.get(r.QUEUE_READY) == 0
    bench.start(offered(bench) & ~TRANSPORT)
    assert not bench.broken


def said(bench: QueueBench) -> list[str]:
    """Return the log's lines so far: each is one, and of this device."""
    bench.transport.report()
    assert all(line.startswith(bench.device.name) and "\n" not in line for line in bench.log)
    return bench.log


# Registers


def test_what_every_device_shows(bench: QueueBench) -> None:
    assert bench.get(r.MAGIC_VALUE) == r.MAGIC
    assert bench.get(r.VERSION) == 2
    assert bench.get(r.DEVICE_ID) > 0
    assert bench.get(r.STATUS) == bench.get(r.INTERRUPT_STATUS) == 0
    assert offered(bench) & TRANSPORT == TRANSPORT
    sizes = bench.device.queue_sizes
    for index in (*range(len(sizes)), len(sizes), 1 << 16, r.WORD):
        bench.set(r.QUEUE_SEL, index)
        most = bench.get(r.QUEUE_NUM_MAX)
        assert most == (sizes[index] if index < len(sizes) else 0)
        assert most & (most - 1) == 0
    for word in (4, 5, r.WORD):
        bench.set(r.DEVICE_FEATURES_SEL, word)
        assert bench.get(r.DEVICE_FEATURES) == 0


def test_no_bit_is_accepted_that_was_not_offered(bench: QueueBench) -> None:
    stray = [1 << bit for bit in range(128) if not offered(bench) >> bit & 1]
    for bits in (*stray, sum(stray)):
        assert bench.negotiate(r.VERSION_1 | bits) == r.ACKNOWLEDGE | r.DRIVER
        bench.set(r.STATUS, 0)
    bench.set_status(r.ACKNOWLEDGE | r.DRIVER)
    bench.accept(r.VERSION_1)
    bench.set(r.DRIVER_FEATURES_SEL, 4)
    bench.set(r.DRIVER_FEATURES, 1)
    assert not bench.set_status(r.FEATURES_OK) & r.FEATURES_OK
    check_as_new(bench)


def test_no_driver_of_before_virtio_1(bench: QueueBench) -> None:
    assert bench.negotiate(offered(bench) & ~r.VERSION_1) == r.ACKNOWLEDGE | r.DRIVER
    bench.set_status(r.DRIVER_OK)
    assert bench.get(r.STATUS) == r.ACKNOWLEDGE | r.DRIVER


def test_each_offered_bit_can_be_declined(bench: QueueBench) -> None:
    bits = [1 << bit for bit in range(128) if offered(bench) >> bit & 1]
    for declined in bits:
        if declined != r.VERSION_1:
            bench.start(sum(bits) & ~TRANSPORT & ~declined)
            assert not bench.broken
    bench.start(0, event_idx=False)


def test_status_goes_one_way(bench: QueueBench) -> None:
    bench.set(r.STATUS, r.DRIVER_OK)
    assert bench.get(r.STATUS) == 0
    bench.set(r.STATUS, r.FEATURES_OK | r.DRIVER_OK)
    assert bench.get(r.STATUS) == 0
    bench.start()
    for value in (r.ACKNOWLEDGE, r.DRIVER, NEGOTIATED, r.DRIVER_OK):
        bench.set(r.STATUS, value)
        assert bench.get(r.STATUS) == RUNNING
    bench.set(r.STATUS, RUNNING | r.NEEDS_RESET)
    assert bench.get(r.STATUS) == RUNNING
    bench.set_status(r.FAILED)
    bench.set(r.STATUS, RUNNING)
    assert bench.get(r.STATUS) == RUNNING | r.FAILED
    check_as_new(bench)


def test_a_driver_that_makes_no_queue(bench: QueueBench) -> None:
    bench.negotiate(offered(bench))
    bench.set_status(r.DRIVER_OK)
    for index in range(len(bench.device.queue_sizes)):
        bench.set(r.QUEUE_NOTIFY, index)
    check_as_new(bench)
    assert len(said(bench)) <= 1


def test_queues_are_set_up_between_features_ok_and_driver_ok(bench: QueueBench) -> None:
    for index in range(len(bench.device.queue_sizes)):
        bench.set_queue(index)
        assert bench.get(r.QUEUE_READY) == 0
    bench.start()
    for index in range(len(bench.device.queue_sizes)):
        bench.set_queue(index, 0, base=0xFFFF_FFFF_0000, ready=0)
        assert bench.get(r.QUEUE_READY) == 1
    assert not bench.broken


@pytest.mark.parametrize("size", [0, 3, 15, 1 << 15, 1 << 16, 1 << 16 | 16, r.WORD])
def test_a_queue_of_a_size_that_cannot_be(bench: QueueBench, size: int) -> None:
    sizes = bench.device.queue_sizes
    bench.negotiate()
    for index in range(len(sizes)):
        bench.set_queue(index, size if index == len(sizes) - 1 else 2)
    bench.set_queue(len(sizes), 16)
    assert bench.set_status(r.DRIVER_OK) & r.NEEDS_RESET
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    assert len(said(bench)) == 1
    check_as_new(bench)


def test_a_queue_larger_than_its_maximum(bench: QueueBench) -> None:
    for index, most in enumerate(bench.device.queue_sizes):
        bench.negotiate()
        for other in range(len(bench.device.queue_sizes)):
            bench.set_queue(other, 2 * most if other == index else 2)
        assert bench.set_status(r.DRIVER_OK) & r.NEEDS_RESET
        bench.set(r.STATUS, 0)
    check_as_new(bench)


PLACES = [0, 1, 8, LOW - 16, LOW, HIGH_AT - 16, HIGH_AT + HIGH, (1 << 63), (1 << 64) - 16]


@pytest.mark.parametrize("register", [r.QUEUE_DESC, r.QUEUE_DRIVER, r.QUEUE_DEVICE])
def test_rings_that_are_not_in_memory(bench: QueueBench, register: int) -> None:
    for place in PLACES:
        if place == 0 or (place == 8 and register != r.QUEUE_DESC):
            continue
        bench.negotiate()
        for index in range(len(bench.device.queue_sizes)):
            bench.set_queue(index, 2, ready=0)
            if index == 0:
                # Of a driver's part, any even address will do, of the device's a multiple of 4.
                bench.set(register, place & r.WORD)
                bench.set(register + 4, place >> 32)
            bench.set(r.QUEUE_READY, 1)
        fits = place == LOW - 16 and register != r.QUEUE_DESC
        needs_reset = bool(bench.set_status(r.DRIVER_OK) & r.NEEDS_RESET)
        assert needs_reset or fits, hex(place)
        bench.set(r.STATUS, 0)
    check_as_new(bench)


def test_the_configuration_space_is_all_that_a_write_to_it_reaches(bench: QueueBench) -> None:
    length = len(bench.device.config())
    before = bytes(bench.map)
    for value in (0x55, 0xFF):
        bench.set(r.CONFIG, value, 1)
    assert bytes(bench.map) == before  # no driver has begun
    bench.start(offered(bench) & ~TRANSPORT)
    kept = [*range(r.INTERRUPT_STATUS), *range(r.STATUS, r.CONFIG)]
    before = bytes(bench.map)
    for offset in range(min(length, 64) + 8):
        bench.set(r.CONFIG + offset, 0xA5, 1)
    for offset in (length - 1, length, length + 1, 0x200, r.PAGE_SIZE - r.CONFIG - 8):
        for size in (1, 2, 4, 8):
            bench.set(r.CONFIG + max(0, offset), (1 << 64) - 1, size)
    after = bytes(bench.map)
    assert after[r.CONFIG + length :] == bytes(r.PAGE_SIZE - r.CONFIG - length)
    assert [after[place] for place in kept] == [before[place] for place in kept]
    assert bench.device.config() == after[r.CONFIG : r.CONFIG + length]
    check_as_new(bench)


def test_a_changed_configuration_has_another_generation_and_an_interrupt(
    subject: Subject, bench: QueueBench
) -> None:
    bench.start()
    bench.interrupts()
    before = bench.get(r.CONFIG_GENERATION)
    bench.set(r.CONFIG, 0, 1)
    assert bench.get(r.CONFIG_GENERATION) == before
    bench.device.config_changed()
    assert bench.get(r.CONFIG_GENERATION) != before
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    assert bench.interrupts() > 0
    bench.set(r.INTERRUPT_ACK, r.INTERRUPT_USED)
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    bench.set(r.INTERRUPT_ACK, r.WORD)
    # Where others raise the line, "used buffers" stands.
    assert bench.get(r.INTERRUPT_STATUS) == (r.INTERRUPT_USED if subject.shared else 0)


def test_registers_take_whole_words_at_their_own_place_only(bench: QueueBench) -> None:
    bench.start()
    before = bytes(bench.map)
    for offset in range(r.CONFIG):
        for size in (1, 2, 8) if offset % 4 == 0 else (1, 2, 4, 8):
            bench.set(offset, 0, size)
    after = bytes(bench.map)
    assert after == before
    assert not bench.broken


def test_notifications_of_queues_that_are_not_there(bench: QueueBench) -> None:
    for stage in (lambda: None, bench.negotiate, lambda: bench.set_status(r.DRIVER_OK)):
        stage()
        for value in (0, 1, len(bench.device.queue_sizes), 1 << 16, r.WORD):
            bench.set(r.QUEUE_NOTIFY, value)
    check_as_new(bench)


# Rings


def jump(driver: Driver, _: Ram) -> None:
    driver.ring.avail_idx = driver.position + driver.ring.layout.size + 1


def head_outside(driver: Driver, _: Ram) -> None:
    _offer(driver, driver.ring.layout.size)


def _offer(driver: Driver, head: int) -> None:
    driver.ring.offer(driver.position, head)
    driver.ring.avail_idx = driver.position + 1


def chain(*descriptors: tuple[int, int, int, int]) -> Break:
    def breach(driver: Driver, _: Ram) -> None:
        for index, descriptor in enumerate(descriptors):
            driver.ring.describe(index, *descriptor)
        _offer(driver, 0)

    return breach


def table(*descriptors: tuple[int, int, int, int], flags: int = 0, length: int = -1) -> Break:
    def breach(driver: Driver, ram: Ram) -> None:
        size = indirect_table(ram, TABLE, descriptors)
        driver.ring.describe(0, TABLE, size if length < 0 else length, DESC_INDIRECT | flags, 1)
        _offer(driver, 0)

    return breach


PLAIN = (DATA, 16, 0, 0)
BREACHES: dict[str, Break] = {
    "an index that jumps": jump,
    "a head outside the queue": head_outside,
    "a loop of one": chain((DATA, 16, DESC_NEXT, 0)),
    "a loop of two": chain((DATA, 16, DESC_NEXT, 1), (DATA, 16, DESC_NEXT, 0)),
    "a next one outside": chain((DATA, 16, DESC_NEXT, 99)),
    "an address behind memory": chain((LOW, 16, 0, 0)),
    "an address in the hole": chain((HIGH_AT - 8, 16, DESC_WRITE, 0)),
    "an end behind memory": chain((LOW - 8, 16, DESC_WRITE, 0)),
    "an end behind all addresses": chain(((1 << 64) - 8, 16, 0, 0)),
    "a length behind memory": chain((DATA, r.WORD, DESC_WRITE, 0)),
    "an unknown flag": chain((DATA, 16, 1 << 7, 0)),
    "readable after writable": chain((DATA, 16, DESC_WRITE | DESC_NEXT, 1), (DATA, 16, 0, 0)),
    "a table of nothing": table(PLAIN, length=0),
    "a table of half a descriptor": table(PLAIN, length=24),
    "a table outside memory": chain((LOW, 16, DESC_INDIRECT, 0)),
    "a table and a next one": table(PLAIN, flags=DESC_NEXT),
    "a table in a table": table((TABLE, 16, DESC_INDIRECT, 0)),
    "a loop in a table": table((DATA, 16, DESC_NEXT, 0)),
    "a next one outside its table": table((DATA, 16, DESC_NEXT, 1)),
}


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_broken_ring_breaks_the_device(
    subject: Subject, bench: QueueBench, event_idx: bool
) -> None:
    features = offered(bench) & ~TRANSPORT
    for index in range(len(bench.device.queue_sizes)):
        for name, breach in BREACHES.items():
            bench.start(features, event_idx=event_idx, indirect=True)
            bench.log.clear()
            breach(bench.drivers[index], bench.ram)
            bench.set(r.QUEUE_NOTIFY, index)
            if index in subject.served:
                assert "; it needs a reset" in bench.wait_broken(), (name, index)
                assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
                assert len(said(bench)) == 1
            for other in range(len(bench.device.queue_sizes)):
                bench.set(r.QUEUE_NOTIFY, other)
    check_as_new(bench)


def test_a_table_that_was_not_negotiated(subject: Subject, bench: QueueBench) -> None:
    for index in subject.served:
        bench.start(offered(bench) & ~TRANSPORT)
        table(PLAIN)(bench.drivers[index], bench.ram)
        bench.set(r.QUEUE_NOTIFY, index)
        assert "not negotiated" in bench.wait_broken()
    check_as_new(bench)


ODD = [
    ([0], []),
    ([], [0]),
    ([1], []),
    ([], [1]),
    ([15], [1]),
    ([16], [1]),
    ([1] * 8, [1] * 8),
    ([], [65536]),
    ([65536], []),
    ([1 << 20], [1 << 20]),
    ([0, 0, 3, 0], [0, 5, 0]),
]


@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\1"])
def test_odd_buffers_are_completed_or_break_the_device(
    subject: Subject, bench: QueueBench, fill: bytes
) -> None:
    features = offered(bench) & ~TRANSPORT
    for index in range(len(bench.device.queue_sizes)):
        for readable, writable in ODD:
            bench.ram.view(DATA, 2 << 20)[:] = fill * (2 << 20)
            bench.start(features, indirect=True)
            driver = bench.drivers[index]
            head = driver.add(
                [(DATA, length) for length in readable],
                [(DATA + (1 << 20), length) for length in writable],
                table=TABLE + (2 << 20),
            )
            bench.publish(index)
            if index in subject.served and index not in subject.keeps:
                _wait_for_answer(bench, index)
            for done, length in driver.collect():
                assert done == head
                assert length <= sum(writable)
    check_as_new(bench)


# Life


def test_a_reset_in_the_middle_of_everything(bench: QueueBench) -> None:
    features = offered(bench) & ~TRANSPORT
    for turn in range(30):
        bench.start(features, event_idx=bool(turn & 1), indirect=True)
        for index, driver in bench.drivers.items():
            while len(driver.free) >= 2:
                driver.add([(DATA, 16)], [(DATA + 4096, 4096)])
            driver.publish()
            bench.set(r.QUEUE_NOTIFY, index)
        bench.set(r.STATUS, 0)
        assert bench.get(r.STATUS) == 0
        # Nothing of it touches guest memory any more.
        marks = [bench.ram.view(RINGS, RING_STEP), bench.ram.view(DATA + 4096, 4096)]
        for mark in marks:
            mark[:] = b"?" * len(mark)
        assert all(mark == b"?" * len(mark) for mark in marks)
    check_as_new(bench)


def test_one_that_somebody_breaks_goes_on_after_a_reset(bench: QueueBench) -> None:
    bench.start()
    bench.transport.break_device("for a test")
    assert bench.broken
    assert said(bench) == [f"{bench.device.name}: for a test; it needs a reset"]
    check_as_new(bench)


def test_drain_and_resume(bench: QueueBench) -> None:
    bench.transport.drain(SECONDS)
    bench.transport.resume()
    bench.start()
    bench.transport.drain(SECONDS)
    bench.transport.resume()
    bench.transport.drain(SECONDS)
    check_as_new(bench)


def test_it_tells_of_itself_at_any_time(bench: QueueBench) -> None:
    def ask() -> None:
        assert len(bench.device.config()) == length
        assert set(bench.device.operations()) <= set(OPERATIONS)
        assert bench.device.news() == ""
        assert bench.device.take_events() == ()
        assert bench.transport.interrupts() >= 0
        if hasattr(bench.device, "stats"):
            bench.device.stats()

    length = len(bench.device.config())
    ask()
    bench.start()
    ask()
    bench.set(r.STATUS, 0)
    ask()


# Anything at all


class Write(NamedTuple):
    offset: int
    value: int

    def do(self, bench: QueueBench) -> None:
        bench.set(self.offset, self.value)


class Describe(NamedTuple):
    queue: int
    place: int
    address: int
    length: int
    flags: int
    next: int

    def do(self, bench: QueueBench) -> None:
        ring = bench.drivers[self.queue % len(bench.drivers)].ring
        ring.describe(self.place, self.address, self.length, self.flags, self.next)


class Offer(NamedTuple):
    queue: int
    head: int
    entries: int

    def do(self, bench: QueueBench) -> None:
        index = self.queue % len(bench.drivers)
        ring = bench.drivers[index].ring
        ring.offer(ring.avail_idx, self.head)
        ring.avail_idx += self.entries
        bench.set(r.QUEUE_NOTIFY, index)


class Poke(NamedTuple):
    data: bytes

    def do(self, bench: QueueBench) -> None:
        bench.ram.view(DATA, len(self.data))[:] = self.data


_OFFSETS = (
    *(r.DEVICE_FEATURES_SEL, r.DRIVER_FEATURES, r.DRIVER_FEATURES_SEL, r.QUEUE_SEL),
    *(r.QUEUE_NUM, r.QUEUE_READY, r.QUEUE_NOTIFY, r.INTERRUPT_ACK, r.STATUS),
    *(*r.QUEUE_ADDRESSES, r.CONFIG, r.CONFIG + 4, r.CONFIG + 12),
)
_VALUES = (0, 1, 2, 3, 7, 11, 15, 16, 0x4000, RINGS, 1 << 31, r.WORD)
_ADDRESSES = (0, DATA, DATA + 1, RINGS, TABLE, LOW - 1, HIGH_AT, (1 << 64) - 1)
_LENGTHS = (0, 1, 4, 10, 16, 17, 4096, 70_000, r.WORD)
_small = st.integers(0, 7)
_steps = st.lists(
    st.builds(Write, st.sampled_from(_OFFSETS), st.sampled_from(_VALUES))
    | st.builds(
        Describe,
        *(_small, _small, st.sampled_from(_ADDRESSES), st.sampled_from(_LENGTHS), _small, _small),
    )
    | st.builds(Offer, _small, st.integers(0, 9), st.integers(0, 2))
    | st.builds(Poke, st.binary(min_size=1, max_size=16)),
    max_size=40,
)


@given(_steps)
@settings(max_examples=15, deadline=None)
def test_whatever_a_driver_does(steps: list[Write | Describe | Offer | Poke]) -> None:
    """All devices with the same steps: so what breaks one is tried on the others."""
    for subject in EVERY.values():
        with opened(subject) as bench:
            bench.start(offered(bench) & ~TRANSPORT, indirect=True)
            for step in steps:
                step.do(bench)
            said(bench)
            check_as_new(bench)
        del bench  # and the descriptor of its memory, before those of the next one are counted


def test_there_is_a_line_for_each_device() -> None:
    folder = Path(__file__).resolve().parents[4] / "devices/virtio"
    found = {
        path.stem
        for path in folder.glob("*.py")
        if "\nDEVICE_TYPE = " in path.read_text(encoding="utf-8")
    }
    made = set()
    for subject in EVERY.values():
        with ExitStack() as stack:
            device = subject.make(stack)
            stack.callback(device.close)
            made.add(type(device).__module__.rpartition(".")[2])
    assert found
    assert found <= made
