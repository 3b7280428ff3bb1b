"""A disk that QEMU's storage daemon serves: a back end that others wrote."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user.block import FLUSH, BlockConfig
from pyvirt.devices.vhost_user.plugged import Export
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import Block

from ..unit.devices.vhost_user.bench import VhostUserBench, block, wait

SIZE = 1 << 20
IN, OUT = 0, 1
QUEUES = 2
EXPORT = "vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix"


@contextmanager
def daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Serve `disk.img` of a folder at its `s`."""
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=n,filename={folder}/disk.img"),
            *("--export", f"{EXPORT},addr.path={folder}/s,num-queues={QUEUES}"),
            *("--pidfile", f"{folder}/pid"),
        ]
    )
    try:
        wait(lambda: process.poll() is not None or (folder / "pid").exists())
        yield process
    finally:
        process.kill()
        process.wait()
        for name in ("s", "pid"):
            (folder / name).unlink(missing_ok=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of a short name, with an image."""
    with tempfile.TemporaryDirectory(prefix="vu-", dir="/tmp") as name:
        Path(name, "disk.img").write_bytes(random.Random(1).randbytes(SIZE))
        yield Path(name)


class Driver(VhostUserBench):
    """A driver of disks."""

    def read(self, sector: int, size: int, queue: int = 0) -> bytes:
        answer = self.offer(struct.pack("<IIQ", IN, 0, sector), queue, size + 1)
        assert [length for _, length in self.used(1, queue)] == [size + 1]
        assert self.memory.read(answer + size, 1) == b"\0"
        return self.memory.read(answer, size)

    def write(self, sector: int, data: bytes, queue: int = 0) -> None:
        answer = self.offer(struct.pack("<IIQ", OUT, 0, sector) + data, queue, 1)
        self.used(1, queue)
        assert self.memory.read(answer, 1) == b"\0"


class Disk(Driver):
    """One that is there for good."""

    def __init__(self, folder: Path) -> None:
        super().__init__(block(folder / "s", queues=QUEUES))
        self.start(r.VERSION_1 | r.EVENT_IDX | r.INDIRECT_DESC | FLUSH)


class Slot(Driver):
    """An empty one, all of whose features the driver takes."""

    def __init__(self) -> None:
        self.block = Block(slot=1)
        super().__init__(self.block)
        self.start(self.block.features | r.VERSION_1 | r.EVENT_IDX | r.INDIRECT_DESC)


def test_reads_and_writes(folder: Path) -> None:
    image = folder / "disk.img"
    before = image.read_bytes()
    with daemon(folder):
        disk = Disk(folder)
        config = disk.device.config()
        assert struct.unpack_from("<Q", config)[0] == SIZE // 512
        assert struct.unpack_from("<H", config, 34)[0] == QUEUES
        for sector in range(0, 64, 3):
            assert disk.read(sector, 4096, sector % QUEUES) == before[sector * 512 :][:4096]
        for sector in range(0, 64, 8):
            disk.write(sector, b"%08d" % sector * 512, sector // 8 % QUEUES)
        assert disk.report() == []
        disk.close()
    written = b"".join(b"%08d" % sector * 512 for sector in range(0, 64, 8))
    assert image.read_bytes() == written + before[len(written) :]


def test_is_plugged_into_a_slot_whose_driver_is_at_work(folder: Path) -> None:
    image = (folder / "disk.img").read_bytes()
    with daemon(folder):
        slot = Slot()
        for life in range(2):
            where = SocketBackEnd("chardev c", f"{folder}/s")
            export = Export(BlockConfig("d0", where, queue_size=256, config_wce=False))
            slot.block.attach(export)
            assert slot.get(r.CONFIG, 8) == SIZE // 512
            assert slot.read(8, 4096) == image[4096:8192]
            slot.write(life, bytes([life + 1]) * 512)
            slot.block.detach()
            export.close()
            answer = slot.offer(struct.pack("<IIQ", IN, 0, 0), 0, 513)
            slot.used()
            assert slot.memory.read(answer + 512, 1) == b"\1"
        assert slot.report() == []
        slot.close()
    assert (folder / "disk.img").read_bytes()[:1024] == b"\1" * 512 + b"\2" * 512


def test_a_driver_comes_and_goes(folder: Path) -> None:
    with daemon(folder):
        disk = Disk(folder)
        for life in range(3):
            disk.write(life, bytes([life]) * 512)
            disk.set(r.STATUS, 0)
            assert disk.get(r.STATUS) == 0
            assert disk.start() == 0xF
        assert disk.read(0, 1536) == b"\0" * 512 + b"\1" * 512 + b"\2" * 512
        disk.close()


def test_it_is_killed_and_comes_back(folder: Path) -> None:
    with daemon(folder) as first:
        disk = Disk(folder)
        disk.write(5, b"kept" * 128)
        first.send_signal(signal.SIGKILL)
        first.wait()
        (folder / "s").unlink()
        (folder / "pid").unlink()
        answer = disk.offer(struct.pack("<IIQ", IN, 0, 5), 1, 513)
        with daemon(folder):
            disk.used(1, 1)
            assert disk.memory.read(answer, 512) == b"kept" * 128
            disk.write(6, b"more" * 128)
            assert disk.read(5, 1024) == b"kept" * 128 + b"more" * 128
            wait(lambda: "there is a back end again" in " ".join(disk.report()))
            assert not disk.is_broken
            disk.close()
    assert os.path.getsize(folder / "disk.img") == SIZE
