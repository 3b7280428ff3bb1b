"""Machines on one image at once, each with an overlay: the image stays as it is."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.devices.overlay import MARK_BYTES
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.queue import DESC, DESC_NEXT, DESC_WRITE
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot import template as templates
from pyvirt.vmm.snapshot.flatten import flatten
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.save import Saver

from ..unit.file_limit import file_limit
from .conftest import Make
from .support import MAILBOX, MEMORY, Guest
from .test_access import OPERATIONS
from .test_fork import by_command, taken
from .test_life import wait_until
from .test_qmp_run import Monitored
from .test_snapshot import Restored, restored, save
from .test_virtio_mmio import driver, set_

__all__ = ["restored"]  # a fixture

pytestmark = pytest.mark.any_kvm

RINGS, HEADER, DATA, STATUS = 0x30_0000, 0x33_0000, 0x33_1000, 0x33_2000
AVAIL = RINGS + 0x1000
OUT, SECTOR, PLACE = 1, 512, 3
OK, UNANSWERED = 0, 0xAA
HALT = 15  # of script.S
CONTENT = bytes(range(256)) * 4096


def offer_write(guest: Guest, data: bytes) -> None:
    """Have a queue offer a write of a sector."""
    assert guest.memory
    guest.memory.write(HEADER, struct.pack("<IIQ", OUT, 0, PLACE))
    guest.memory.write(DATA, data)
    guest.memory.write(STATUS, bytes([UNANSWERED]))
    parts = ((HEADER, 16, DESC_NEXT), (DATA, SECTOR, DESC_NEXT), (STATUS, 1, DESC_WRITE))
    table = b"".join(DESC.pack(*part, place + 1) for place, part in enumerate(parts))
    guest.memory.write(RINGS, table)
    guest.memory.write(AVAIL, struct.pack("<HHH", 0, 1, 0))


def kick(guest: Guest) -> None:
    """Let the guest bring its driver up, show the disk the request, and halt."""
    words: list[int] = []
    for operation, address, value in (*driver(rings=RINGS), set_(r.QUEUE_NOTIFY, 0)):
        words += (OPERATIONS.index(operation), address, value, 0)
    guest.write_words(MAILBOX, *words, HALT)
    guest.start()


def answered(guest: Guest) -> bool:
    return status(guest) != UNANSWERED


def status(guest: Guest) -> int:
    assert guest.memory
    return guest.memory.read(STATUS, 1)[0]


@pytest.fixture
def folder() -> Iterator[str]:
    """Return a folder for overlays; the lab's 9p knows no files without names."""
    with TemporaryDirectory() as name:
        yield name


def test_two_machines_write_their_own(
    kernel: Callable[[str], Path], tmp_path: Path, folder: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    written = [name * SECTOR for name in (b"A", b"B")]
    with ExitStack() as stack:
        guests = []
        for number, place in enumerate(("memory", folder)):
            config = MachineConfig(str(kernel("script")), memory=MEMORY)
            disk = Block(BlockConfig(f"d{number}", str(image), overlay=place))
            guests.append((Guest(config, tmp_path / f"log{number}", virtio=[disk]), disk))
            stack.callback(guests[-1][0].close)
        for (guest, _), data in zip(guests, written, strict=True):
            guest.load()
            offer_write(guest, data)
            kick(guest)
        for (guest, disk), data in zip(guests, written, strict=True):
            wait_until(partial(answered, guest), "the write is answered")
            assert status(guest) == OK
            guest.pause()
            (layer,) = disk.freeze()
            assert os.pread(layer, SECTOR, PLACE * SECTOR) == data
    assert image.read_bytes() == CONTENT


def test_a_template_has_what_was_written(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    disks = [Block(BlockConfig(f"d{number}", str(image), overlay="memory")) for number in range(2)]
    config = MachineConfig(str(kernel("script")), memory=MEMORY)
    with closing(Guest(config, tmp_path / "log", virtio=disks)) as guest:
        guest.load()
        offer_write(guest, b"A" * SECTOR)
        kick(guest)
        wait_until(partial(answered, guest), "the write is answered")
        guest.pause()
        for _ in range(2):
            with closing(taken(guest)) as template:
                # The second disk has nothing of its own.
                ((slot, layers),) = template.incoming().layers.items()
                assert slot == 0
                assert [os.pread(fd, SECTOR, PLACE * SECTOR) for fd in layers] == [b"A" * SECTOR]
    assert image.read_bytes() == CONTENT


def test_a_snapshot_has_what_was_written(
    make: Make, restored: Restored, tmp_path: Path, folder: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)

    def disks() -> tuple[BlockConfig, ...]:
        return tuple(
            BlockConfig(f"d{number}", str(image), overlay=place)
            for number, place in enumerate(("memory", folder))
        )

    guest = make("script", disks=disks())
    offer_write(guest, b"A" * SECTOR)
    kick(guest)
    wait_until(partial(answered, guest), "the write is answered")
    # Written as often as wanted: nothing of the guest's becomes more by it.
    for name in ("first", "second"):
        save(guest, tmp_path / name)
        # The second disk has nothing of its own.
        assert sorted(os.listdir(tmp_path / name)) == ["memory", "overlay-0", "state"]
    content = (tmp_path / "first/overlay-0").read_bytes()
    shutil.rmtree(tmp_path / "second")
    again = restored.make("script", tmp_path / "first", disks=disks(), hotplug=True)
    (layer,), *others = frozen(again)
    assert os.pread(layer, SECTOR, PLACE * SECTOR) == b"A" * SECTOR
    assert not any(others)
    save(again, tmp_path / "third")
    flatten(str(tmp_path / "third"), str(tmp_path / "fourth"))
    for name in ("first", "third", "fourth"):
        written = (tmp_path / name / "overlay-0").read_bytes()
        assert written[:-MARK_BYTES] == content[:-MARK_BYTES]
        assert (tmp_path / name / "overlay-0").stat().st_blocks * 512 < len(CONTENT)
    with closing(templates.read_folder(str(tmp_path / "fourth"))) as template:
        shutil.rmtree(tmp_path / "fourth")
        ((slot, (layer,)),) = template.incoming().layers.items()
        assert (slot, os.pread(layer, SECTOR, PLACE * SECTOR)) == (0, b"A" * SECTOR)
    assert image.read_bytes() == CONTENT


def frozen(guest: Guest) -> list[tuple[int, ...]]:
    assert guest.slots
    devices = [transport.device for transport in guest.slots.transports]
    return [device.freeze() for device in devices if isinstance(device, Block)]


def test_a_snapshot_without_room_for_what_was_written(make: Make, tmp_path: Path) -> None:
    """It leaves nothing, and the guest has what it had."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(4 * MEMORY)
    disk = BlockConfig("d", str(image), overlay="memory")
    guest = make("script", disks=(disk,))
    offer_write(guest, b"A" * SECTOR)
    kick(guest)
    wait_until(partial(answered, guest), "the write is answered")
    saver = Saver(guest, Log())
    with file_limit(2 * MEMORY):
        saver.start(Folder(str(tmp_path / "snapshot")))
        saver.wait()
    assert saver.status == "failed"
    assert "File too large; name a folder that can be written" in saver.error
    assert not (tmp_path / "snapshot").exists()
    save(guest, tmp_path / "snapshot")


def test_restored_on_the_command_line(
    make: Make, kernel: Callable[[str], Path], tmp_path: Path, folder: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    guest = make("script", disks=(BlockConfig("d", str(image), overlay="memory"),))
    offer_write(guest, b"A" * SECTOR)
    kick(guest)
    wait_until(partial(answered, guest), "the write is answered")
    save(guest, tmp_path / "snapshot")
    words = ("-incoming", f"file:{tmp_path}/snapshot", "-disk", f"{image},id=d,overlay={folder}")
    for _ in range(2):
        with Monitored(kernel("script"), *words) as one, Monitored(kernel("script"), *words):
            (disk,) = one.client.execute("query-block")
            assert disk["inserted"]["x-overlay"] == {"place": folder, "size": 0}
    done = by_command("restore", str(tmp_path / "snapshot"), "-accel", "kvm", "-disk", str(image))
    reason = (
        f"-disk {image}: the disk of the snapshot in {tmp_path}/snapshot has an overlay, and this "
        "one none; give overlay=memory or overlay=FOLDER"
    )
    assert (done.returncode, done.stderr) == (2, f"pyvirt: {reason}\n")


def test_on_the_command_line_and_plugged(
    kernel: Callable[[str], Path], tmp_path: Path, folder: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(CONTENT)
    file = {"driver": "file", "filename": str(image), "overlay": "memory"}
    words = ("-disk", f"{image},id=first,overlay={folder}")
    with Monitored(kernel("spin"), *words) as one, Monitored(kernel("spin"), *words) as other:
        for guest in (one, other):
            do = guest.client.execute
            do("blockdev-add", {"node-name": "second", "file": file})
            do("device_add", {"id": "second", "driver": "virtio-blk-mmio", "addr": "0x1"})
            found = {disk["device"]: disk["inserted"] for disk in do("query-block")}
            assert found["first"]["x-overlay"] == {"place": folder, "size": 0}
            assert found["second"]["x-overlay"] == {"place": "memory", "size": 0}
            assert not found["second"]["ro"]
            do("device_del", {"id": "second"})
    assert image.read_bytes() == CONTENT
