"""The balloon: memory really goes back to the host, statistics, and what a driver may not do."""

from __future__ import annotations

import mmap
import os
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.balloon import (
    DEFLATE,
    DEFLATE_ON_OOM,
    INFLATE,
    PAGE,
    PAGE_POISON,
    REPORTING,
    STATISTICS,
    STATS_VQ,
    Auto,
    Balloon,
    BalloonConfig,
)
from pyvirt.native import lib

from .mock_driver import Ram
from .queue_bench import DATA, Make, QueueBench, idle, make

__all__ = ["make"]  # fixture

MIB = 1 << 20
LOW, HIGH_AT, HIGH = 24 * MIB, 1 << 32, 8 * MIB
MEMORY = LOW + HIGH
FREE = 8 * MIB  # where memory begins that no test's driver uses itself
NUM_PAGES, ACTUAL, POISON = r.CONFIG, r.CONFIG + 4, r.CONFIG + 12
BOTH = STATS_VQ | REPORTING


def balloon(**options: object) -> Balloon:
    return Balloon(BalloonConfig("b", **options))  # type: ignore[arg-type]


def memory_of(kind: str) -> Ram:
    """Return memory in two regions, every page of which is there."""
    fd = -1
    if kind == "shared":
        fd = os.memfd_create("ram")
        os.ftruncate(fd, MEMORY)
        memory = mmap.mmap(fd, MEMORY, mmap.MAP_SHARED)
        os.close(fd)
    else:
        memory = mmap.mmap(-1, MEMORY, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory[:] = b"x" * MEMORY
    return Ram([(0, LOW), (HIGH_AT, HIGH)], memory)


@pytest.fixture
def ram() -> Ram:
    return memory_of("private")


@pytest.fixture(params=["private", "shared"])
def any_ram(request: pytest.FixtureRequest) -> Ram:
    return memory_of(request.param)


def pss() -> int:
    """Return the bytes of memory that this process takes."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("Pss:"))
    return int(line.split()[1]) << 10


def tell(bench: QueueBench, queue: int, pages: list[int]) -> None:
    """Hand over a list of pages, and wait until it is done with."""
    data = struct.pack(f"<{len(pages)}I", *pages)
    bench.ram.view(DATA, len(data))[:] = data
    head = bench.add(queue, len(data), writable=False)
    assert bench.used(queue) == [(head, 0)]


def byte(bench: QueueBench, page: int) -> bytes:
    return bytes(bench.ram.view(page * PAGE, 1))


def numbers(start: int, size: int) -> list[int]:
    return list(range(start // PAGE, (start + size) // PAGE))


# What a driver finds


def test_features_queues_and_configuration_space(make: Make) -> None:
    bench = make(balloon())
    assert bench.get(r.DEVICE_ID) == 5
    assert bench.device.features == STATS_VQ
    assert bench.device.queue_sizes == (128,) * 5
    assert bench.device.config() == bytes(8)
    full = balloon(deflate_on_oom=True, free_page_reporting=True)
    assert full.features == BOTH | DEFLATE_ON_OOM | PAGE_POISON
    assert full.config() == bytes(16)
    full.close()
    assert lib.PV_BALLOON_PAGE == PAGE


def test_a_driver_is_told_of_its_target(make: Make) -> None:
    bench = make(balloon())
    assert isinstance(bench.device, Balloon)
    bench.device.set_target(5 * PAGE + 1)
    bench.start()
    assert bench.get(NUM_PAGES) == 5
    bench.interrupts()
    generation = bench.get(r.CONFIG_GENERATION)
    bench.device.set_target(7 * PAGE)
    assert bench.get(NUM_PAGES) == 7
    assert bench.get(r.CONFIG_GENERATION) != generation
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
    bench.set(r.STATUS, 0)
    assert bench.get(NUM_PAGES) == 7
    bench.device.set_target(1 << 63)
    assert bench.get(NUM_PAGES) == 0xFFFFFFFF


def test_of_the_configuration_space_only_what_is_the_drivers_can_be_written(
    make: Make, ram: Ram
) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    assert isinstance(bench.device, Balloon)
    bench.device.set_target(PAGE)
    bench.start(BOTH)
    for offset in range(16):
        bench.set(r.CONFIG + offset, 0xFF, 1)
    assert bench.get(NUM_PAGES) == 1
    assert bench.get(ACTUAL) == 0xFFFFFFFF
    assert bench.get(POISON) == 0  # a driver tells before DRIVER_OK
    assert bench.device.ballooned == MEMORY


# Pages


def test_memory_in_the_balloon_is_the_hosts_until_the_guest_takes_it_back(
    make: Make, any_ram: Ram
) -> None:
    size = 12 * MIB
    bench = make(balloon(), any_ram)
    bench.start(STATS_VQ)
    before = pss()
    for start in range(FREE, FREE + size, MIB):
        tell(bench, INFLATE, numbers(start, MIB))
    assert before - pss() > size - MIB
    assert bench.stat("inflated") == bench.stat("released") == size // PAGE
    assert (bench.stat("kept"), bench.stat("refused")) == (0, 0)
    assert bench.stat("releases") == size // MIB
    for start in range(FREE, FREE + size, MIB):
        tell(bench, DEFLATE, numbers(start, MIB))
    assert bench.stat("deflated") == size // PAGE
    view = any_ram.view(FREE, size)
    assert view == bytes(size)
    view[:] = b"y" * size
    assert before - pss() < MIB
    assert view == b"y" * size
    assert byte(bench, FREE // PAGE - 1) == b"x"
    assert byte(bench, (FREE + size) // PAGE) == b"x"


def test_pages_side_by_side_go_together_in_whatever_order_they_come(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    bench.start(STATS_VQ)
    run = numbers(FREE, 64 * PAGE)
    other = numbers(FREE + MIB, 3 * PAGE)
    tell(bench, INFLATE, [*run[::-2], *other, *run[::2], run[-1], *run[1::2]])
    assert bench.stat("releases") == 2
    assert bench.stat("released") == 67
    assert all(byte(bench, page) == b"\0" for page in run + other)
    assert byte(bench, run[-1] + 1) == byte(bench, run[0] - 1) == b"x"


def test_pages_above_4_gib(make: Make, any_ram: Ram) -> None:
    bench = make(balloon(), any_ram)
    bench.start(STATS_VQ)
    tell(bench, INFLATE, numbers(HIGH_AT + MIB, MIB))
    assert any_ram.view(HIGH_AT + MIB, MIB) == bytes(MIB)
    assert bytes(any_ram.view(HIGH_AT + 2 * MIB, 1)) == b"x"


def test_pages_that_are_not_the_guests_are_counted_and_left_alone(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    bench.start(STATS_VQ)
    wrong = [LOW // PAGE, (HIGH_AT - PAGE) // PAGE, (HIGH_AT + HIGH) // PAGE, 0xFFFFFFFF]
    tell(bench, INFLATE, [*wrong, FREE // PAGE])
    assert bench.stat("refused") == 4
    assert bench.stat("released") == 1
    tell(bench, DEFLATE, wrong)
    assert bench.stat("refused") == 8
    assert not bench.broken


def test_a_list_that_is_longer_than_a_turn_is_done_in_several(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    bench.start(STATS_VQ)
    pages = [*numbers(FREE, 14 * MIB), *numbers(HIGH_AT, 6 * MIB)]
    data = struct.pack(f"<{len(pages)}I", *pages)
    ram.view(DATA, len(data))[:] = data
    # In segments that split a number.
    head = bench.add(INFLATE, 4097, 4098, len(data) - 8195, writable=False)
    assert bench.used(INFLATE) == [(head, 0)]
    assert bench.stat("released") == len(pages)
    assert ram.view(FREE, 14 * MIB) == bytes(14 * MIB)


def test_a_list_of_nothing_is_done_with(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    bench.start(STATS_VQ)
    head = bench.add(INFLATE, 0, writable=False)
    assert bench.used(INFLATE) == [(head, 0)]


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
@pytest.mark.parametrize(
    ("length", "writable", "why"),
    [
        (8, True, "a list of pages that is to be written"),
        (7, False, "a list of pages that ends in half a one"),
    ],
)
def test_a_list_of_the_wrong_kind_breaks_the_device(
    make: Make, queue: int, length: int, writable: bool, why: str
) -> None:
    bench = make(balloon())
    bench.start(STATS_VQ)
    bench.add(queue, length, writable=writable)
    assert bench.wait_broken() == f"virtio-balloon b: {why}; it needs a reset"
    assert idle(0.1)
    bench.start(STATS_VQ)
    tell(bench, INFLATE, [0xFFFFFFFF])


# Reports of free memory


@pytest.mark.parametrize("queue", [3, 4])
def test_reported_memory_is_given_back(make: Make, any_ram: Ram, queue: int) -> None:
    bench = make(balloon(free_page_reporting=True), any_ram)
    bench.start(BOTH, queues=(INFLATE, DEFLATE, STATISTICS, queue))
    before = pss()
    spans = [(FREE, 12 * MIB), (HIGH_AT, 8 * MIB)]
    head = bench.drivers[queue].add(writable=spans)
    bench.publish(queue)
    assert bench.used(queue) == [(head, 0)]
    assert before - pss() > 19 * MIB
    assert bench.stat("reported") == bench.stat("released") == 20 * MIB // PAGE
    assert bytes(any_ram.view(FREE + 12 * MIB, 1)) == b"x"


def test_only_whole_pages_of_a_report_are_given_back(make: Make, ram: Ram) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    bench.start(BOTH, queues=(INFLATE, DEFLATE, STATISTICS, 4))
    bench.drivers[4].add(writable=[(FREE + 1, 3 * PAGE), (FREE + 8 * PAGE + 1, PAGE - 2)])
    bench.publish(4)
    bench.used(4)
    assert bench.stat("released") == 2
    assert [byte(bench, FREE // PAGE + page) for page in range(4)] == [b"x", b"\0", b"\0", b"x"]
    assert bytes(ram.view(FREE + 8 * PAGE, PAGE)) == b"x" * PAGE


def test_a_report_that_is_longer_than_a_turn_is_done_in_several(make: Make, ram: Ram) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    bench.start(BOTH, queues=(INFLATE, DEFLATE, STATISTICS, 4))
    bench.drivers[4].add(writable=[(FREE + 5, 11 * MIB), (HIGH_AT, HIGH)])
    bench.publish(4)
    bench.used(4)
    assert bench.stat("released") == 11 * MIB // PAGE - 1 + HIGH // PAGE
    assert ram.view(FREE + PAGE, 11 * MIB - PAGE) == bytes(11 * MIB - PAGE)


@pytest.mark.parametrize(("poison", "kept"), [(0, False), (0xAAAAAAAA, True)])
def test_free_memory_with_contents_that_the_driver_wants_back_stays(
    make: Make, ram: Ram, poison: int, kept: bool
) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    bench.start(
        BOTH | PAGE_POISON,
        queues=(INFLATE, DEFLATE, STATISTICS, 4),
        before=lambda: bench.set(POISON, poison),
    )
    assert bench.get(POISON) == poison
    bench.drivers[4].add(writable=[(FREE, MIB)])
    bench.publish(4)
    bench.used(4)
    assert bench.stat("reported") == MIB // PAGE
    assert bench.stat("released") == (0 if kept else MIB // PAGE)
    assert byte(bench, FREE // PAGE) == (b"x" if kept else b"\0")
    bench.set(r.STATUS, 0)
    assert bench.get(POISON) == 0


def test_a_report_that_is_to_be_read_breaks_the_device(make: Make) -> None:
    bench = make(balloon(free_page_reporting=True))
    bench.start(BOTH, queues=(INFLATE, DEFLATE, STATISTICS, 4))
    bench.add(4, PAGE, writable=False)
    assert "a buffer of free pages that is to be read" in bench.wait_broken()


# Statistics


def send(bench: QueueBench, values: dict[int, int], queue: int = STATISTICS) -> None:
    data = b"".join(struct.pack("<HQ", tag, value) for tag, value in values.items())
    bench.ram.view(DATA, len(data))[:] = data
    bench.add(queue, len(data), writable=False)


def known(bench: QueueBench) -> dict[int, int]:
    assert isinstance(bench.device, Balloon)
    values = bench.device.statistics().values
    return {tag: value for tag, value in enumerate(values) if value != (1 << 64) - 1}


def test_statistics_are_read_and_asked_for_by_giving_their_buffer_back(
    make: Make, ram: Ram
) -> None:
    bench = make(balloon(), ram)
    assert isinstance(bench.device, Balloon)
    assert known(bench) == {}
    bench.start(STATS_VQ)
    send(bench, {4: 1000, 5: 2000, 99: 1})
    bench.wait_stat("statistics", 1)
    assert known(bench) == {4: 1000, 5: 2000}
    assert 0 < bench.device.statistics().updated <= time.time()
    assert idle(0.1)
    assert bench.drivers[STATISTICS].collect() == []
    lib.pv_balloon_poll(bench.device._handle, 1000, 0)
    for number in range(5):
        assert len(bench.used(STATISTICS)) == 1
        send(bench, {6: number, 9: 1})
        bench.wait_stat("statistics", 2 + number)
    assert known(bench)[9] == 1
    lib.pv_balloon_poll(bench.device._handle, 0, 0)
    assert not bench.broken


def test_more_statistics_than_there_are_tags_are_passed_over(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    bench.start(STATS_VQ)
    ram.view(DATA, 100_000)[:] = struct.pack("<HQ", 4, 7) * 10_000
    bench.add(STATISTICS, 99_999, writable=False)
    bench.wait_stat("statistics", 1)
    assert known(bench) == {4: 7}


def test_statistics_in_a_buffer_to_be_written_break_the_device(make: Make) -> None:
    bench = make(balloon())
    bench.start(STATS_VQ)
    bench.add(STATISTICS, 10, writable=True)
    assert "a buffer of statistics that is to be written" in bench.wait_broken()


def test_queues_without_gaps_are_those_of_the_features_in_their_order(make: Make, ram: Ram) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    bench.start(REPORTING, queues=(INFLATE, DEFLATE, 2))
    bench.drivers[2].add(writable=[(FREE, MIB)])
    bench.publish(2)
    bench.used(2)
    assert bench.stat("released") == MIB // PAGE


def test_a_queue_that_was_not_made_is_not_served(make: Make, ram: Ram) -> None:
    bench = make(balloon(free_page_reporting=True), ram)
    bench.start(BOTH, queues=(INFLATE,))
    tell(bench, INFLATE, [FREE // PAGE])
    for index in range(1, 5):
        bench.set(r.QUEUE_NOTIFY, index)
    tell(bench, INFLATE, [FREE // PAGE])
    assert not bench.broken


# Monitors


def test_a_monitor_is_told_of_each_size_once(make: Make, ram: Ram) -> None:
    bench = make(balloon(), ram)
    device = bench.device
    assert isinstance(device, Balloon)
    bench.start(STATS_VQ)
    assert device.take_events() == ()
    bench.set(ACTUAL, 256)
    assert os.eventfd_read(bench.broken_fd) == 1
    assert device.ballooned == 256 * PAGE
    assert device.take_events() == (("BALLOON_CHANGED", {"actual": MEMORY - MIB}),)
    assert device.take_events() == ()
    bench.set(ACTUAL, 256)
    bench.set(r.STATUS, 0)
    assert device.ballooned == 0
    assert os.eventfd_read(bench.broken_fd) == 1
    assert device.take_events() == (("BALLOON_CHANGED", {"actual": MEMORY}),)


# The balloon that follows


def test_the_balloon_follows_what_the_guest_uses(make: Make, ram: Ram) -> None:
    bench = make(balloon(auto=Auto(50, 5)), ram)
    device = bench.device
    assert isinstance(device, Balloon)
    bench.start(STATS_VQ)
    send(bench, {6: 0})
    bench.used(STATISTICS)  # the first time at once
    send(bench, {4: 1, 6: MEMORY - 4 * MIB})
    bench.wait_stat("statistics", 2)
    os.eventfd_read(bench.broken_fd)
    bench.transport.report()
    assert device.target == MEMORY - 6 * MIB
    assert bench.get(NUM_PAGES) == device.target // PAGE


@pytest.mark.parametrize(
    ("ballooned", "available", "target"),
    [
        (0, MEMORY, MEMORY),
        (0, 0, 0),
        (0, MEMORY - 4 * MIB, MEMORY - 6 * MIB),
        (MEMORY - 6 * MIB, 2 * MIB, MEMORY - 6 * MIB),
        (MEMORY - 6 * MIB, 0, MEMORY - 9 * MIB),
        (MEMORY, 1 << 63, MEMORY),
    ],
)
def test_what_is_to_be_in_the_balloon(ballooned: int, available: int, target: int) -> None:
    assert Auto(50).target(MEMORY, ballooned, available) == target


@given(
    st.integers(0, MEMORY), st.integers(0, (1 << 64) - 1), st.integers(20, 80), st.integers(1, 4)
)
def test_it_comes_to_rest(ballooned: int, available: int, percent: int, steps: int) -> None:
    auto = Auto(percent)
    used = MEMORY - ballooned - min(available, MEMORY - ballooned)
    target = auto.target(MEMORY, ballooned, available)
    assert 0 <= target <= MEMORY
    for _ in range(steps):
        assert auto.target(MEMORY, target, max(0, MEMORY - target - used)) == target
