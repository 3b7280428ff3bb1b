"""Pause, resume and stop, from another thread, under load."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest
from pyvirt.vmm import bus
from pyvirt.vmm.end import End
from pyvirt.vmm.execution import ENDED, PAUSED, RUNNING

from .conftest import Make
from .support import BUFFER, MAILBOX, MMIO, PATIENCE, PORT, Guest

PAUSES = 200
VCPUS = 4
INPUT_32 = 5  # of string_io.S
COUNTERS = 0x1_0800  # of count_smp.S


class Ledger:
    """Checks that count.S's accesses come one after another, none twice and none left out."""

    STEPS = (("port read", 0), ("port write", 4), ("write", 0), ("read", 4))

    def __init__(self, steps: int) -> None:
        self.steps = self.STEPS[:steps]
        self.accesses = 0
        self.wrong: list[str] = []

    def take(self, what: str, offset: int, value: int | None) -> int:
        done, step = divmod(self.accesses, len(self.steps))
        expected = (*self.steps[step], done + 1)
        if (what, offset, value or done + 1) != expected:
            self.wrong.append(f"{what} at {offset} of {value} instead of {expected}")
        self.accesses += 1
        return done + 1


class Face:
    """How a ledger looks on one of the two buses, at `skip` bytes into the device."""

    def __init__(self, ledger: Ledger, prefix: str) -> None:
        self.ledger = ledger
        self.prefix = prefix

    def read(self, offset: int, size: int) -> int:
        return self.ledger.take(f"{self.prefix}read", offset, None)

    def write(self, offset: int, size: int, value: int) -> None:
        self.ledger.take(f"{self.prefix}write", offset, value)


def wait_until(condition: Callable[[], object], what: str) -> None:
    patience = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < patience, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.001)


def counting(machine: Make, *, frozen: bool = False) -> tuple[Guest, Ledger]:
    guest = machine("count", frozen=frozen)
    ledger = Ledger(4)
    guest.bus.add(bus.PIO, PORT, 8, Face(ledger, "port "))
    guest.bus.add(bus.MMIO, MMIO, 8, Face(ledger, ""))
    return guest, ledger


def test_pausing_under_load_loses_and_repeats_nothing(machine: Make) -> None:
    guest, ledger = counting(machine)
    moments = random.Random(2)
    guest.start()
    progress = 0
    for _ in range(PAUSES):
        time.sleep(moments.uniform(0, 0.003))
        guest.pause()
        assert guest.state == PAUSED
        before = ledger.accesses, guest.read_words(MAILBOX, 1)
        time.sleep(0.001)
        assert (ledger.accesses, guest.read_words(MAILBOX, 1)) == before
        rounds, steps = divmod(ledger.accesses, len(ledger.steps))
        # Eight additions come before the first access of a round; registers count full rounds.
        assert 8 * rounds + (8 if steps else 0) <= before[1][0] <= 8 * (rounds + 1)
        progress += ledger.accesses > 0
        guest.resume()
        assert guest.state == RUNNING
    reached = ledger.accesses
    wait_until(lambda: ledger.accesses > reached + 8 or guest.end, "the guest goes on")
    guest.close()
    assert ledger.wrong == []
    assert guest.end is not None
    assert guest.end.reason == "host"
    assert progress > PAUSES // 2


class Sequence:
    """A device that answers its reads with running numbers."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, offset: int, size: int) -> int:
        self.reads += 1
        return self.reads - 1

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("nobody writes here")


def test_pausing_within_a_string_instruction(machine: Make) -> None:
    """One exit of `rep insl` carries many elements; a pause may come between any two."""
    count = 30_000
    guest = machine("string_io")
    device = Sequence()
    guest.bus.add(bus.PIO, PORT, 4, device)
    guest.write_words(MAILBOX, INPUT_32, PORT, count, BUFFER, 0)
    guest.start()
    within = 0
    while guest.end is None:
        guest.pause()
        before = device.reads
        time.sleep(0.001)
        assert device.reads == before
        within += 0 < before < count
        guest.resume()
        time.sleep(0.002)
    assert guest.wait().reason == "debug-exit"
    assert guest.read(BUFFER, 4 * count) == b"".join(i.to_bytes(4, "little") for i in range(count))
    assert device.reads == count
    assert within > 0


@pytest.mark.parametrize("name", ["spin", "halt", "flood"])
def test_pause_holds_where_python_is_not_asked(machine: Make, name: str) -> None:
    """In code without exits, in a processor that stands still, in exits that C serves."""
    guest = machine(name)
    guest.start()
    seen = set()
    for _ in range(20):
        time.sleep(0.002)
        guest.pause()
        before = guest.read_words(MAILBOX, 1), guest.stats()
        time.sleep(0.001)
        assert (guest.read_words(MAILBOX, 1), guest.stats()) == before
        guest.resume()
        seen.add((before[0][0], before[1].unclaimed))
    assert (len(seen) > 2) == (name != "halt")
    guest.finish(End("host"))
    assert guest.wait().reason == "host"


def counting_on_all(machine: Make) -> tuple[Guest, list[Ledger]]:
    guest = machine("count_smp", vcpus=VCPUS)
    ledgers = [Ledger(2) for _ in range(VCPUS)]
    for index, ledger in enumerate(ledgers):
        guest.bus.add(bus.PIO, PORT + 8 * index, 8, Face(ledger, "port "))
    return guest, ledgers


def wait_until_all_run(ledgers: list[Ledger]) -> None:
    wait_until(lambda: all(ledger.accesses for ledger in ledgers), "all vCPUs run")


def test_pausing_four_vcpus_loses_and_repeats_nothing(machine: Make) -> None:
    guest, ledgers = counting_on_all(machine)
    moments = random.Random(3)
    guest.start()
    wait_until_all_run(ledgers)

    def seen() -> tuple[list[int], bytes]:
        return [ledger.accesses for ledger in ledgers], guest.read(COUNTERS, 4 * VCPUS)

    for _ in range(PAUSES // 2):
        time.sleep(moments.uniform(0, 0.003))
        guest.pause()
        before = seen()
        time.sleep(0.001)
        assert seen() == before
        guest.resume()
    reached = [ledger.accesses for ledger in ledgers]
    wait_until(
        lambda: all(now.accesses > then for now, then in zip(ledgers, reached, strict=True)),
        "all vCPUs go on",
    )
    guest.close()
    assert [ledger.wrong for ledger in ledgers] == [[]] * VCPUS


def test_pause_while_others_wait_for_their_start(machine: Make) -> None:
    guest = machine("count", vcpus=VCPUS)
    ledger = Ledger(4)
    guest.bus.add(bus.PIO, PORT, 8, Face(ledger, "port "))
    guest.bus.add(bus.MMIO, MMIO, 8, Face(ledger, ""))
    guest.start()
    for _ in range(20):
        guest.pause()
        before = ledger.accesses
        time.sleep(0.001)
        assert ledger.accesses == before
        guest.resume()
    guest.close()
    assert ledger.wrong == []
    assert [guest.marks.count(mark) for mark in ("end", "vm-ready")] == [1, 1]


def test_pauses_around_the_startup_ipi_do_not_lose_it(machine: Make) -> None:
    moments = random.Random(4)
    for _ in range(5):
        guest, ledgers = counting_on_all(machine)
        guest.start()
        for _ in range(5):
            guest.pause()
            guest.resume()
            time.sleep(moments.uniform(0, 0.0005))
        wait_until_all_run(ledgers)
        guest.close()
        assert [ledger.wrong for ledger in ledgers] == [[]] * VCPUS


@pytest.mark.any_kvm
def test_frozen_runs_nothing_before_resume(machine: Make) -> None:
    guest, ledger = counting(machine, frozen=True)
    guest.start()
    assert guest.state == PAUSED
    time.sleep(0.02)
    assert guest.first_run_ns() == 0
    assert ledger.accesses == 0
    resumed = time.monotonic_ns()
    guest.resume()
    wait_until(lambda: ledger.accesses, "the guest runs")
    assert guest.first_run_ns() >= resumed


@pytest.mark.any_kvm
def test_pause_and_resume_are_idle_where_there_is_nothing_to_do(machine: Make) -> None:
    guest, _ = counting(machine)
    guest.start()
    guest.resume()
    assert guest.state == RUNNING
    guest.pause()
    guest.pause()
    assert guest.state == PAUSED
    guest.finish(End("host"))
    guest.pause()
    guest.resume()
    assert guest.state == ENDED
    assert guest.wait().reason == "host"


@pytest.mark.any_kvm
def test_close_while_paused(machine: Make) -> None:
    guest, ledger = counting(machine)
    guest.start()
    guest.pause()
    before = ledger.accesses
    guest.close()
    assert ledger.accesses == before
    assert guest.end is not None
    assert guest.end.reason == "host"


@pytest.mark.any_kvm
def test_close_while_frozen(machine: Make) -> None:
    guest, ledger = counting(machine, frozen=True)
    guest.start()
    guest.close()
    assert ledger.accesses == 0


@pytest.mark.any_kvm
def test_the_end_comes_while_another_thread_pauses(machine: Make) -> None:
    """Whichever is first, both return and the guest has ended."""
    for _ in range(20):
        guest, _ = counting(machine)
        guest.start()
        pauser = threading.Thread(target=guest.pause)
        pauser.start()
        guest.finish(End("host"))
        pauser.join(PATIENCE)
        assert not pauser.is_alive()
        assert guest.wait().reason == "host"
        assert guest.state == ENDED
        guest.close()


@pytest.mark.any_kvm
def test_of_many_ends_the_first_holds(machine: Make) -> None:
    guest, _ = counting(machine)
    guest.start()
    barrier = threading.Barrier(8)
    seen: list[End | None] = []

    def finish(end: End) -> None:
        barrier.wait(PATIENCE)
        guest.finish(end)
        seen.append(guest.end)

    ends = [End(f"reason {i}", i) for i in range(8)]
    threads = [threading.Thread(target=finish, args=(end,)) for end in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    end = guest.wait()
    assert end in ends
    assert seen == [end] * 8
    assert guest.marks.count("end") == 1
    assert os.eventfd_read(guest.ended_fd) == 1


@pytest.mark.any_kvm
def test_who_sees_the_end_may_close_at_once(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that ends the machine is done with its descriptor by then, however slow it is."""
    write, errors = os.eventfd_write, []

    def write_late(fd: int, value: int) -> None:
        time.sleep(0.05)
        try:
            write(fd, value)
        except OSError as error:
            errors.append(error)

    monkeypatch.setattr(os, "eventfd_write", write_late)
    guest = machine("halt")
    guest.start()
    ender = threading.Thread(target=guest.finish, args=(End("host"),))
    ender.start()
    wait_until(lambda: guest.end, "its end")
    guest.close()
    ender.join(PATIENCE)
    assert errors == []


@pytest.mark.parametrize("name", ["count", "spin", "halt"])
def test_a_running_guest_can_be_stopped(machine: Make, name: str) -> None:
    guest = machine(name, vcpus=2)
    ledger = Ledger(4)
    guest.bus.add(bus.PIO, PORT, 8, Face(ledger, "port "))
    guest.bus.add(bus.MMIO, MMIO, 8, Face(ledger, ""))
    guest.start()
    wait_until(guest.first_run_ns, "the guest runs")
    guest.finish(End("host"))
    guest.stop()
