"""A machine whose host has no descriptors left, or whose files have gone when they are wanted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import PyvirtError
from pyvirt.qmp.host import DiskRequest
from pyvirt.qmp.machine import MachineHost
from pyvirt.vmm.execution import RUNNING
from pyvirt.vmm.hotplug import BLOCK
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.save import Saver
from pyvirt.vmm.steps import finish

from ..unit.devices.virtio.bench import RUNNING as DRIVER_RUNS
from ..unit.file_limit import descriptor_limit
from .support import MAILBOX, Guest
from .test_hotplug import Make, disk
from .test_life import wait_until
from .test_virtio_mmio import driver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.any_kvm
ROOM_MAX = 64  # descriptors; everything is done with fewer


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def drive(guest: Guest) -> int:
    """Be the driver of the first disk's slot; return its status then."""
    assert guest.slots
    transport = guest.slots.transports[0]
    transport.write(r.STATUS, 4, 0)
    for _, address, value in driver(rings=0x30_0000):
        transport.write(address & (r.PAGE_SIZE - 1), 4, value)
    return transport.status


def goes_on(guest: Guest) -> None:
    before = guest.read_words(MAILBOX, 1)
    wait_until(lambda: guest.read_words(MAILBOX, 1) != before, "the guest goes on")
    assert guest.state == RUNNING


def with_ever_more_room(do: Callable[[], None]) -> list[str]:
    """Do it with no descriptor left, with one, and so on, until it works; return the refusals."""
    refusals = []
    for room in range(ROOM_MAX):
        before = open_files()
        try:
            with descriptor_limit(room):
                do()
        except PyvirtError as error:
            refusals.append(str(error))
            assert open_files() == before
        else:
            return refusals
    pytest.fail("it never works")


def test_a_disk_that_is_plugged(make: Make, tmp_path: Path) -> None:
    """Into a slot that a driver has, so that a worker is started for it as well."""
    guest, path = make("spin"), disk(tmp_path / "a", 8).path
    host = MachineHost(guest)
    guest.start()
    assert drive(guest) == DRIVER_RUNS

    def plug() -> None:
        host.inventory.add(BLOCK, "a", lambda: host.open_disk(DiskRequest("a", path)))
        try:
            finish(host.inventory.plug("a", "virtio-blk-mmio", host.attach))
        except BaseException:
            host.inventory.remove(BLOCK, "a")
            raise

    refusals = with_ever_more_room(plug)
    assert len(refusals) > 1
    assert refusals[0] == f"-drive file={path}: Too many open files; raise ulimit -n"
    for text in refusals:
        assert "Too many open files" in text
        assert "\n" not in text
    goes_on(guest)
    finish(host.inventory.unplug("a", host.detach))
    host.close()


def test_a_driver_that_starts_its_disk(make: Make, tmp_path: Path) -> None:
    """The device needs a reset, says why, and is whole with the next one."""
    guest = make("spin", disks=(disk(tmp_path / "a", 8),))
    guest.start()
    statuses = []
    for room in range(ROOM_MAX):
        with descriptor_limit(room):
            statuses.append(drive(guest))
        if statuses[-1] == DRIVER_RUNS:
            break
        assert statuses[-1] & r.NEEDS_RESET
    assert len(statuses) > 1
    assert statuses[-1] == DRIVER_RUNS
    guest.report()
    assert "disk a: " in guest.log_text()
    assert "Too many open files" in guest.log_text()
    goes_on(guest)


def test_a_snapshot(make: Make, tmp_path: Path) -> None:
    guest, folder = make("spin"), tmp_path / "snapshot"
    saver = Saver(guest, Log())
    guest.start()

    def save() -> None:
        try:
            saver.start(Folder(str(folder)))
            saver.wait()
        finally:
            if saver.status == "completed":
                guest.resume()
        if saver.status != "completed":
            assert not folder.exists()
            if guest.state != RUNNING:
                guest.resume()
            raise PyvirtError(saver.error)

    refusals = with_ever_more_room(save)
    assert refusals
    assert [text for text in refusals if "Too many open files" not in text] == []
    goes_on(guest)


def test_a_machine_begins_anew(make: Make) -> None:
    """It goes on as it was, and begins anew when it can."""
    guest = make("spin")
    guest.start()
    refusals = with_ever_more_room(guest.reset)
    assert refusals
    assert [text for text in refusals if "Too many open files" not in text] == []
    goes_on(guest)


def test_a_kernel_that_is_gone_when_the_machine_begins_anew(
    make: Make, kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    """The guest that is there goes on."""
    guest = make("spin")
    guest.start()
    kernel("spin").rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(PyvirtError, match=r"^-kernel .*: No such file .*; name a file that"):
            guest.reset()
        goes_on(guest)
    finally:
        (tmp_path / "elsewhere").rename(kernel("halt").with_name("spin.elf"))
    guest.reset()
    goes_on(guest)
