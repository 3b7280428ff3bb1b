"""Registers and counters of a machine that runs, stands, or has ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.errors import PyvirtError
from pyvirt.vmm import inspection, layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.execution import PAUSED, RUNNING

from .conftest import Make
from .support import MAILBOX, MEMORY, Guest
from .test_access import carry_out
from .test_life import wait_until


def test_registers_of_a_running_guest(machine: Make) -> None:
    guest = machine("spin", vcpus=2)
    events: list[str] = []
    guest.listeners.append(lambda name, _: events.append(name))
    guest.start()
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0], "the guest runs")
    values = inspection.registers(guest, 0)
    assert 0x10_0000 <= values["rip"] < 0x20_0000
    assert values["cr3"] == layout.PML4
    assert values["cs"] == 0x10
    assert values["gdt_base"] == layout.GDT
    before = guest.read_words(MAILBOX, 1)[0]
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0] > before, "the guest runs on")
    assert (guest.state, events) == (RUNNING, [])
    guest.pause()
    assert inspection.registers(guest, 0) == inspection.registers(guest, 0)
    assert guest.state == PAUSED
    with pytest.raises(IndexError):
        inspection.registers(guest, 2)
    guest.stop()
    with pytest.raises(PyvirtError, match="the machine has ended"):
        inspection.registers(guest, 0)


def test_registers_of_all_at_one_moment(machine: Make) -> None:
    guest = machine("spin", vcpus=3)
    guest.start()
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0], "the guest runs")
    assert len(inspection.all_registers(guest)) == 3
    assert inspection.all_registers(guest)[0]["cr3"] == layout.PML4
    assert guest.state == RUNNING


def test_memory_of_a_running_guest(machine: Make, tmp_path: Path) -> None:
    guest = machine("spin")
    guest.write_words(MAILBOX + 0x800, 0x0123_4567_89AB_CDEF)
    guest.start()
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0], "the guest runs")
    word = bytes.fromhex("efcdab8967452301")
    assert inspection.read_memory(guest, MAILBOX + 0x800, 8) == word
    # The boot loader's tables map memory to itself.
    assert inspection.read_memory(guest, MAILBOX + 0x800, 8, 0) == word
    path = tmp_path / "saved"
    inspection.save_memory(guest, str(path), MAILBOX, 0x1000, 0)
    assert path.read_bytes()[0x800:0x808] == word
    before = guest.read_words(MAILBOX, 1)[0]
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0] > before, "the guest runs on")
    core = tmp_path / "core"
    inspection.save_core(guest, str(core))
    assert core.stat().st_size > MEMORY
    assert guest.state == RUNNING
    guest.pause()
    guest.inject_nmi()
    assert guest.state == PAUSED


@pytest.mark.any_kvm
@pytest.mark.parametrize("vcpu", [None, 0])
def test_memory_that_is_not_there(machine: Make, tmp_path: Path, vcpu: int | None) -> None:
    guest = machine("spin")
    path = tmp_path / "saved"
    top = (1 << 64) - 1
    for address, length in ((top, 1), (MEMORY - 1, 2), (1 << 52, 4096), (0, MEMORY + 1)):
        with pytest.raises(IndexError):
            inspection.read_memory(guest, address, length, vcpu)
        with pytest.raises(IndexError):
            inspection.save_memory(guest, str(path), address, length, vcpu)
    assert not list(tmp_path.glob("saved*"))
    guest.stop()
    with pytest.raises(PyvirtError, match="the machine has ended"):
        inspection.read_memory(guest, 0, 1, vcpu)


def test_an_nmi_reaches_the_guest(machine: Make) -> None:
    """One without an interrupt table triple-faults."""
    guest = machine("spin")
    guest.start()
    wait_until(lambda: guest.read_words(MAILBOX, 1)[0], "the guest runs")
    guest.inject_nmi()
    end = guest.wait()
    assert end.reason in {"triple-fault", "crash"}  # the latter where KVM is emulated


def look_for_ever(guest: Guest) -> None:
    while True:
        inspection.registers(guest, 0)


def test_looking_while_the_end_comes(machine: Make) -> None:
    for number in range(10):
        guest = machine("spin")
        guest.start()
        ender = threading.Timer(number * 0.0003, guest.stop)
        ender.start()
        with pytest.raises(PyvirtError, match="the machine has ended"):
            look_for_ever(guest)
        ender.join()


@pytest.mark.any_kvm
def test_threads_have_their_numbers(machine: Make) -> None:
    guest = machine("spin", vcpus=3)
    assert guest.thread_ids == [0, 0, 0]
    guest.start()
    wait_until(lambda: all(guest.thread_ids), "the threads run")
    assert set(map(str, guest.thread_ids)) <= set(os.listdir("/proc/self/task"))
    assert len(set(guest.thread_ids)) == 3


@pytest.mark.any_kvm
def test_counters(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    image = tmp_path / "a"
    image.touch()
    os.truncate(image, 4096)
    disks = (BlockConfig("a", str(image)),)
    config = MachineConfig(str(kernel("script")), memory=MEMORY, disks=disks, hotplug=True)
    guest = Guest(config, tmp_path / "log")
    try:
        guest.load()
        base = layout.VIRTIO_MMIO
        carry_out(guest, ("write4", base + 0x70, 1), ("in1", layout.DEBUG_EXIT + 0x100, 0))
        found = inspection.counters(guest)
        assert [(whose, name) for whose, name, _ in found[:4]] == [
            ("vm", ""),
            ("vcpu", "0"),
            ("device", "disk a"),
            ("device", "disk slot 1"),
        ]
        assert found[1][2]["cold"] == 2  # the status, and the exit
        assert found[1][2]["exits-mmio"] == 1
        assert found[1][2]["unclaimed"] == 1
        assert found[2][2]["register-writes"] == 1
        assert found[2][2]["reads"] == 0
        assert found[0][2]["memory"] == MEMORY
        assert found[0][2]["exits-mmio"] == 1
        assert "first_run_ns" not in found[0][2]
    finally:
        guest.close()


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    ("value", "event"), [(1, "GUEST_PANICKED"), (2, "GUEST_CRASHLOADED"), (3, "GUEST_PANICKED")]
)
def test_a_panic_is_an_event(machine: Make, value: int, event: str) -> None:
    guest = machine("script")
    events: list[tuple[str, object]] = []
    guest.listeners.append(lambda name, data: events.append((name, data)))
    values = carry_out(guest, ("in1", layout.PANIC, 0), ("out1", layout.PANIC, value))
    assert values[0] == 3
    assert events[0] == (event, {"action": "run"})
