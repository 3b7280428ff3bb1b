"""Disks that come and go under Linux's own driver, which is told of nothing but a new size.

The guest boots once; each test has it as it was then. Cycles of plugs are in test_cycles.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.virtio.block import BlockConfig, Image
from pyvirt.harness.guest import kernel

from .live import Live, live

MIB = 1 << 20
SHM = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in a tmpfs: fast, and it can punch holes."""
    path = SHM / f"pyvirt-hotplug-{os.getpid()}"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def make(path: Path, mib: int, data: bytes = b"") -> BlockConfig:
    path.write_bytes(data)
    os.truncate(path, mib * MIB)
    return BlockConfig(path.name, str(path))


@pytest.fixture(scope="module")
def saved() -> Iterator[Path]:
    """Where the first of the next fixture's guests is saved when it has booted."""
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        yield Path(name) / "guest"


@pytest.fixture
def guest(micro: kernel.Kernel, folder: Path, saved: Path) -> Iterator[Live]:
    """A guest with a disk of its own, and five slots that are empty."""
    disks = (make(folder / "own", 16, random.Random(1).randbytes(MIB)),)
    with live(micro, folder, saved=saved, hotplug=True, disks=disks) as guest:
        yield guest


def sizes(guest: Live) -> list[int]:
    """Return what the guest says of its disks, in sectors."""
    return [int(size) for size in guest.run("cat /sys/block/vd?/size").split()]


def wait_for_sizes(guest: Live, expected: list[int]) -> None:
    """The interrupt is there when the host returns; what the guest does then takes a moment."""
    until = time.monotonic() + 20
    while (seen := sizes(guest)) != expected:
        assert time.monotonic() < until, f"{seen} instead of {expected}"


def test_a_disk_is_plugged_used_and_unplugged(guest: Live, folder: Path) -> None:
    config = make(folder / "b", 8, b"plugged")
    own = 16 * MIB // 512
    assert sizes(guest) == [own, 0, 0, 0, 0, 0]
    for life in range(2):
        image = Image(config)
        guest.machine.attach("block", 1, image, serial=f"life {life}")
        wait_for_sizes(guest, [own, 8 * MIB // 512, 0, 0, 0, 0])
        assert re.search(r"^ +\d+ +\d+ +8192 vdb$", guest.run("cat /proc/partitions"), re.MULTILINE)
        assert guest.run("cat /sys/block/vdb/serial") == f"life {life}"
        wanted = "plugged" if life == 0 else "written"
        assert guest.run("dd if=/dev/vdb bs=7 count=1 2>/dev/null") == wanted
        guest.run("mke2fs -F /dev/vdb >/dev/null 2>&1 && mkdir -p /m && mount -t ext4 /dev/vdb /m")
        guest.run("dd if=/dev/urandom of=/m/file bs=64k count=16 2>/dev/null && umount /m")
        guest.run("printf written | dd of=/dev/vdb conv=fsync 2>/dev/null")
        guest.machine.detach("block", 1)
        image.close()
        wait_for_sizes(guest, [own, 0, 0, 0, 0, 0])
        assert guest.run("dd if=/dev/vdb bs=4k count=1 iflag=direct 2>/dev/null | wc -c") == "0"
    assert (folder / "b").read_bytes()[:7] == b"written"
    assert guest.log.read_text() == ""


def test_the_boot_disk_too(guest: Live, folder: Path) -> None:
    own = guest.machine.slot("block", 0)
    image = own.resource
    guest.machine.detach("block", 0)
    image.close()
    wait_for_sizes(guest, [0] * 6)
    other = Image(make(folder / "other", 4, b"other"))
    guest.machine.attach("block", 0, other)
    wait_for_sizes(guest, [4 * MIB // 512, 0, 0, 0, 0, 0])
    assert guest.run("dd if=/dev/vda bs=5 count=1 2>/dev/null") == "other"


def test_plugged_while_paused(guest: Live, folder: Path) -> None:
    image = Image(make(folder / "b", 8))
    guest.machine.pause()
    guest.machine.attach("block", 3, image)
    guest.machine.resume()
    wait_for_sizes(guest, [16 * MIB // 512, 0, 0, 8 * MIB // 512, 0, 0])
    assert [name for name, _ in guest.events] == ["STOP", "RESUME"]
    guest.machine.pause()
    guest.machine.detach("block", 3)
    guest.machine.resume()
    image.close()
    wait_for_sizes(guest, [16 * MIB // 512, 0, 0, 0, 0, 0])


def test_unplugged_under_full_load(guest: Live, folder: Path) -> None:
    """Reads of the disk that goes fail, those of the other do not, and nothing hangs."""
    image = Image(make(folder / "b", 64, b"x" * MIB))
    guest.machine.attach("block", 1, image)
    wait_for_sizes(guest, [16 * MIB // 512, 64 * MIB // 512, 0, 0, 0, 0])
    # A read beyond the end, where all of a disk is when it is gone, is one of no bytes.
    whole = "dd if=/dev/vdb bs=64k count=64 iflag=direct 2>/dev/null | wc -c"
    for reader in "12":
        line = f'while [ "$({whole})" = {4 * MIB} ]; do echo >>/tmp/reads; done'
        guest.run(f"({line}; echo gone >/tmp/gone{reader}) & :")
    guest.run("until [ -s /tmp/reads ]; do sleep 0.1; done")
    guest.begin("dd if=/dev/vda bs=64k count=256 iflag=direct 2>/dev/null | md5sum")
    guest.machine.detach("block", 1)
    image.close()
    output, status = guest.finish()
    assert (output.strip(), status) == (f"{md5(folder / 'own')}  -", 0)
    guest.run("until [ -e /tmp/gone1 ] && [ -e /tmp/gone2 ]; do sleep 0.1; done")
    assert guest.run("dmesg | grep -c 'I/O error, dev vda' || :") == "0"
    assert guest.log.read_text() == ""


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
