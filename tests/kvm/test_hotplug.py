"""Slots that a guest finds empty, and machines that begin anew, on any KVM."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import Block, BlockConfig, Image
from pyvirt.errors import ConfigError, KvmError, PyvirtError
from pyvirt.vmm.end import End
from pyvirt.vmm.execution import ENDED, PAUSED, RUNNING, Execution

from ..unit.devices.virtio.bench import RUNNING as DRIVER_RUNS
from .support import MAILBOX, PATIENCE, Guest
from .test_access import carry_out
from .test_create import SLOW, fail_at, replace_by_unknown
from .test_life import wait_until
from .test_virtio_mmio import driver, get

Make = Callable[..., Guest]
SLOTS = 6


def disk(path: Path, sectors: int) -> BlockConfig:
    path.touch()
    os.truncate(path, 512 * sectors)
    return BlockConfig(path.name, str(path))


def capacities(guest: Guest, slots: int) -> list[int]:
    """Return what the register pages say, as the guest reads them."""
    assert guest.slots
    return [transport.read(r.CONFIG, 8) for transport in guest.slots.transports[:slots]]


@pytest.mark.any_kvm
def test_disks_of_the_start_come_first(make: Make, tmp_path: Path) -> None:
    disks = tuple(disk(tmp_path / name, size) for name, size in (("a", 8), ("b", 16)))
    guest = make("script", disks=disks)
    assert guest.slots
    assert [slot.backend for slot in guest.slots.pluggable("block")] == ["a", "b", "", "", "", ""]
    assert capacities(guest, SLOTS) == [8, 16, 0, 0, 0, 0]


@pytest.mark.any_kvm
def test_more_disks_than_slots_at_the_start(make: Make, tmp_path: Path) -> None:
    disks = tuple(disk(tmp_path / f"d{number}", 8) for number in range(SLOTS + 2))
    guest = make("script", disks=disks)
    assert guest.slots
    assert len(guest.slots.pluggable("block")) == SLOTS + 2


@pytest.mark.any_kvm
def test_without_hotplug_there_are_no_empty_slots(
    machine: Callable[[str], Guest], tmp_path: Path
) -> None:
    guest = machine("script")
    image = Image(disk(tmp_path / "a", 8))
    with pytest.raises(ConfigError, match="slot 0: there are 0 of kind block"):
        guest.attach("block", 0, image)
    image.close()
    with pytest.raises(ConfigError, match="slot 0: there are 0 of kind block"):
        guest.detach("block", 0)


def test_a_driver_sees_the_plugged_disk(make: Make, tmp_path: Path) -> None:
    guest = make("script")
    image = Image(disk(tmp_path / "a", 24))
    guest.attach("block", 1, image)
    assert capacities(guest, 3) == [0, 24, 0]
    values = carry_out(guest, *driver(slot=1), get(r.STATUS, 1), get(r.CONFIG, 1), get(r.CONFIG, 2))
    assert values[-3:] == [DRIVER_RUNS, 24, 0]


@pytest.mark.any_kvm
def test_a_detached_disk_is_handed_back(make: Make, tmp_path: Path) -> None:
    guest = make("script")
    image = Image(disk(tmp_path / "a", 24))
    guest.attach("block", 1, image)
    assert guest.detach("block", 1) is image
    image.close()
    assert capacities(guest, 3) == [0, 0, 0]
    assert guest.detach("block", 1) is None


@pytest.mark.any_kvm
@pytest.mark.parametrize("addr", [-1, SLOTS, 99])
def test_a_slot_that_is_not_there(make: Make, tmp_path: Path, addr: int) -> None:
    guest = make("script")
    image = Image(disk(tmp_path / "a", 8))
    with pytest.raises(ConfigError, match=f"slot {addr}: there are 6 of kind block"):
        guest.attach("block", addr, image)
    image.close()


@pytest.mark.any_kvm
def test_disks_are_closed_with_the_machine(make: Make, tmp_path: Path) -> None:
    guest = make("script")
    image = Image(disk(tmp_path / "a", 8))
    guest.attach("block", 0, image)
    guest.close()
    Image(image.config).close()
    with pytest.raises(PyvirtError, match="the machine has ended"):
        guest.attach("block", 0, image)
    with pytest.raises(PyvirtError, match="the machine has ended"):
        guest.detach("block", 0)


def test_slots_change_in_many_threads_at_once(make: Make, tmp_path: Path) -> None:
    """Each hides the register pages from the guest for a moment."""
    guest = make("spin")
    guest.start()
    assert guest.slots
    devices = guest.slots.pluggable("block")
    images = [Image(disk(tmp_path / f"d{number}", 8)) for number in range(SLOTS)]
    failures: list[Exception] = []

    def plug(number: int) -> None:
        try:
            for _ in range(30):
                devices[number].attach(images[number])
                devices[number].detach()
        except (PyvirtError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=plug, args=(number,)) for number in range(SLOTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    for image in images:
        image.close()


def counter(guest: Guest) -> int:
    return guest.read_words(MAILBOX, 1)[0]


def test_a_reset_begins_anew(make: Make, tmp_path: Path) -> None:
    guest = make("spin", vcpus=2)
    events: list[str] = []
    resets: list[str] = []
    guest.listeners.append(lambda name, _: events.append(name))
    guest.on_reset.append(lambda: resets.append(guest.state))
    image = Image(disk(tmp_path / "a", 8))
    guest.attach("block", 3, image)
    guest.start()
    first_run = 0
    for life in range(20):
        wait_until(lambda: counter(guest) > 1000, "the guest runs")
        first_run = first_run or guest.first_run_ns()
        guest.write_words(MAILBOX + 0x8000, 42)
        guest.reset()
        assert guest.state == RUNNING
        assert guest.read_words(MAILBOX + 0x8000, 1) == [0]
        assert len(guest.vcpus) == 2
        assert (events.count("RESET"), len(resets)) == (life + 1, life + 1)
    assert guest.first_run_ns() == first_run
    assert set(events) == {"RESET"}
    assert set(resets) == {PAUSED}
    assert capacities(guest, 4) == [0, 0, 0, 8]


@pytest.mark.any_kvm
def test_a_reset_of_a_paused_machine_leaves_it_paused(make: Make) -> None:
    guest = make("spin")
    guest.start()
    wait_until(lambda: counter(guest), "the guest runs")
    guest.pause()
    guest.reset()
    assert guest.state == PAUSED
    assert counter(guest) == 0
    time.sleep(0.01)
    assert counter(guest) == 0
    guest.resume()
    wait_until(lambda: counter(guest), "the guest runs")


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", ["CREATE_VM", "CREATE_IRQCHIP", "CREATE_VCPU", "SET_LAPIC"])
def test_a_reset_that_fails_early_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    guest = make("spin")
    guest.start()
    wait_until(lambda: counter(guest), "the guest runs")
    with monkeypatch.context() as patch:
        if name in SLOW:
            replace_by_unknown(patch, name)
        else:
            fail_at(patch, name, 1)
        with pytest.raises(KvmError):
            guest.reset()
    assert guest.state == RUNNING
    before = counter(guest)
    wait_until(lambda: counter(guest) > before, "the guest runs on")


@pytest.mark.any_kvm
@pytest.mark.parametrize("name", ["IRQFD", "IOEVENTFD", "SET_SREGS"])
def test_a_reset_that_fails_late_ends_the_machine(
    make: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    guest = make("spin")
    guest.start()
    with monkeypatch.context() as patch:
        fail_at(patch, name, 1)
        with pytest.raises(KvmError):
            guest.reset()
    assert guest.state == ENDED
    assert guest.wait().reason == "crash"


@pytest.mark.any_kvm
def test_a_reset_to_a_file_that_is_no_kernel_ends_the_machine(make: Make, tmp_path: Path) -> None:
    guest = make("spin")
    guest.start()
    guest.config.kernel = str(tmp_path / "text")
    (tmp_path / "text").write_text("no kernel any more")
    with pytest.raises(ConfigError, match="text: not a kernel"):
        guest.reset()
    assert guest.wait().reason == "crash"
    with pytest.raises(PyvirtError, match="the machine has ended"):
        guest.reset()


@pytest.mark.any_kvm
def test_a_reset_of_what_was_restored_without_a_kernel_is_refused(make: Make) -> None:
    guest = make("spin")
    guest.start()
    guest.config.kernel = ""
    with pytest.raises(ConfigError, match="there is no kernel to begin anew with; restore the"):
        guest.reset()
    assert guest.state == RUNNING
    before = counter(guest)
    wait_until(lambda: counter(guest) > before, "the guest runs on")


@pytest.mark.long
@pytest.mark.parametrize("vcpus", [pytest.param(1, marks=pytest.mark.any_kvm), 4])
def test_the_end_comes_during_a_reset(make: Make, vcpus: int) -> None:
    """Whichever is first, all threads leave, and none uses a vCPU that is gone."""
    for number in range(20):
        guest = make("spin", vcpus=vcpus)
        guest.start()
        ender = threading.Timer(number * 0.0005, guest.finish, args=(End("host"),))
        ender.start()
        try:
            guest.reset()
        except PyvirtError as error:
            message = str(error)
            if message != "the machine has ended; start another":
                raise
        ender.join(PATIENCE)
        assert guest.wait().reason == "host"
        guest.close()


@pytest.mark.any_kvm
def test_a_reset_that_finds_the_end_does_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make("spin")
    guest.start()
    pause, vcpus = Execution.pause, list(guest.vcpus)

    def pause_late(execution: Execution) -> bool:
        guest.finish(End("host"))
        return pause(execution)

    monkeypatch.setattr(Execution, "pause", pause_late)
    with pytest.raises(PyvirtError, match="the machine has ended"):
        guest.reset()
    assert guest.vcpus == vcpus


@pytest.mark.any_kvm
def test_a_stop_tells_of_the_end_once(make: Make) -> None:
    guest = make("spin")
    events: list[tuple[str, dict[str, Any]]] = []
    guest.listeners.append(lambda name, data: events.append((name, data)))
    guest.start()
    guest.pause()
    guest.pause()
    guest.resume()
    guest.resume()
    guest.stop()
    guest.stop()
    guest.close()
    end = ("SHUTDOWN", {"guest": False, "reason": "host"})
    assert events == [("STOP", {}), ("RESUME", {}), end]


@pytest.mark.any_kvm
def test_a_failing_image_is_an_event_and_a_line(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make("script")
    image = Image(disk(tmp_path / "a", 24))
    guest.attach("block", 1, image)
    events: list[tuple[str, dict[str, Any]]] = []
    guest.listeners.append(lambda name, data: events.append((name, data)))
    failures = [("write", errno.ENOSPC), ("flush", errno.EIO)]

    def take(block: Block) -> tuple[str, int] | None:
        return failures.pop(0) if failures and block.backend else None

    monkeypatch.setattr(Block, "take_failure", take)
    guest.report()
    assert events == []
    for _ in range(3):
        os.eventfd_write(guest.notices_fd, 1)
        guest.report()
    shared = {"device": "a", "node-name": "a", "operation": "write", "action": "report"}
    assert events == [
        ("BLOCK_IO_ERROR", {**shared, "nospace": True, "reason": "No space left on device"}),
        ("BLOCK_IO_ERROR", {**shared, "nospace": False, "reason": "Input/output error"}),
    ]
    assert guest.log_text() == (
        "pyvirt: disk a: write: No space left on device\n"
        "pyvirt: disk a: flush: Input/output error\n"
    )
