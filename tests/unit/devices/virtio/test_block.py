"""The virtio block device: what it offers, and its life between transport, worker and image."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.iothread import IoThread
from pyvirt.devices.virtio import block as block_module
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.device import Activation, Queue
from pyvirt.errors import BackendError
from pyvirt.native import ffi, lib

from ...refusal import refusal
from .mock_driver import Driver, Layout, Ram

SECTORS = 2048
VERSION_1 = 1 << 32
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
BITS = {"seg_max": 2, "ro": 5, "blk_size": 6, "flush": 9, "topology": 10, "mq": 12}
BITS |= {"discard": 13, "write_zeroes": 14}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SECTORS * 512)
    return path


def offered(image: Path, **options: Any) -> set[str]:
    block = Block(BlockConfig("d", str(image), **options))
    features = block.features
    block.close()
    names = {name for name, bit in BITS.items() if features >> bit & 1}
    assert features == sum(1 << BITS[name] for name in names)
    return names


ALWAYS = {"seg_max", "blk_size", "flush", "topology"}


def test_features(image: Path) -> None:
    assert offered(image) == ALWAYS | {"write_zeroes"}
    assert offered(image, unmap=True) == ALWAYS | {"write_zeroes", "discard"}
    assert offered(image, queues=2) == ALWAYS | {"write_zeroes", "mq"}
    assert offered(image, readonly=True, unmap=True) == ALWAYS | {"ro"}


def space(image: Path, **options: Any) -> bytes:
    block = Block(BlockConfig("d", str(image), **options))
    config = block.config()
    block.close()
    return config


def test_configuration_space(image: Path) -> None:
    config = space(image, direct=False, queue_size=128, queues=3, unmap=True)
    assert len(config) == 60
    capacity, size_max, seg_max = struct.unpack_from("<QII", config)
    assert (capacity, size_max, seg_max) == (SECTORS, 0, 126)
    assert struct.unpack_from("<I", config, 20) == (512,)
    exponent, alignment, least, best = struct.unpack_from("<BBHI", config, 24)
    assert (512 << exponent, alignment, least, best) == (os.stat(image).st_blksize, 0, 1, 0)
    assert struct.unpack_from("<H", config, 34) == (3,)
    assert struct.unpack_from("<IIIIIB", config, 36) == (
        lib.PV_BLOCK_RANGE_SECTORS,
        lib.PV_BLOCK_RANGES,
        512 << exponent >> 9,
        lib.PV_BLOCK_RANGE_SECTORS,
        lib.PV_BLOCK_RANGES,
        1,
    )


@pytest.mark.parametrize(("queue_size", "segments"), [(2, 1), (4, 2), (1024, 1022)])
def test_a_segment_limit_for_every_queue_size(image: Path, queue_size: int, segments: int) -> None:
    assert struct.unpack_from("<I", space(image, queue_size=queue_size), 12) == (segments,)


def test_what_python_allows_is_what_c_allows() -> None:
    assert block_module.QUEUES_MAX == lib.PV_BLOCK_QUEUES
    assert block_module.SERIAL_BYTES == lib.PV_BLOCK_ID_BYTES
    assert block_module.QUEUE_SIZE_MAX == lib.PV_VIRTQUEUE_SIZE_MAX


class NoUring:
    """A host whose kernel refuses io_uring."""

    def __getattr__(self, name: str) -> Any:
        return (lambda: -1) if name == "pv_uring_probe" else getattr(lib, name)


def test_without_io_uring_threads_do(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_module, "lib", NoUring())
    block = Block(BlockConfig("d", str(image)))
    assert isinstance(block.resource, block_module.Image)
    assert block.resource.engine == "threads"
    block.close()
    message = refusal(lambda: Block(BlockConfig("d", str(image), engine="io_uring")))
    assert message == f"-drive file={image},aio=io_uring: Operation not permitted; give aio=threads"
    block = Block(BlockConfig("d", str(image)))
    block.close()


def block_sizes(block: Block) -> tuple[int, int]:
    config = block.config()
    (logical,) = struct.unpack_from("<I", config, 20)
    return logical, logical << config[24]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (512, 4096)),
        ({"logical_block": 4096}, (4096, 4096)),
        ({"logical_block": 1024, "physical_block": 16384}, (1024, 16384)),
        ({"physical_block": 512}, (512, 512)),
    ],
)
def test_block_sizes_are_those_asked_for_not_those_of_the_storage(
    image: Path, options: dict[str, Any], sizes: tuple[int, int]
) -> None:
    block = Block(BlockConfig("d", str(image), **options))
    assert isinstance(block.resource, block_module.Image)
    disk = block.resource.disk
    for disk.offset_align, disk.block_size in ((1, 512), (512, 4096), (4096, 4096)):
        block.offer()
        physical = sizes[1] if options else max(512, disk.block_size)
        assert block_sizes(block) == (sizes[0], physical)
    block.close()


def test_a_disk_has_whole_logical_blocks(image: Path) -> None:
    os.truncate(image, 4096 + 512)
    Block(BlockConfig("d", str(image))).close()
    config = BlockConfig("d", str(image), logical_block=4096, option=f"-disk {image}")
    assert refusal(lambda: Block(config)) == (
        f"-disk {image},logical_block_size=4096: the size is no multiple of it; "
        f"run: truncate -s %4096 {image}"
    )
    os.truncate(image, 8192)
    block = Block(config)
    assert "not a multiple of 4096" in refusal(lambda: block.resize(8192 + 512))
    block.close()


def test_the_image_is_free_again_after_close(image: Path) -> None:
    config = BlockConfig("d", str(image))
    block = Block(config)
    assert "in use" in refusal(lambda: Block(config))
    block.close()
    block.close()
    Block(config).close()


class Started:
    """A device with one queue that is served, and an honest driver of it."""

    def __init__(self, config: BlockConfig) -> None:
        self.block = Block(config)
        self.ram = Ram([(0, 1 << 20)])
        self.layout = Layout.at(0, 16)
        self.kick_fd, self.irq_fd, self.broken_fd = (os.eventfd(0) for _ in range(3))
        self.page = memoryview(bytearray(8192))
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(self.page)))
        irq = ffi.new("struct pv_virtio_irq **")
        aligned = ffi.cast("void *", start + -start % 4096)
        assert lib.pv_virtio_irq_new(aligned, self.irq_fd, self.broken_fd, irq) == 0
        self.irq = irq[0]
        self.memory = self.ram.native()

    def start(self, features: int = VERSION_1 | 1 << 9) -> None:
        queue = ffi.new("struct pv_virtqueue **")
        layout = self.layout
        words = (layout.desc, layout.avail, layout.used, layout.size, 0, 0)
        config = ffi.new("struct pv_virtqueue_config *", words)
        self.ram.view(0, layout.end)[:] = bytes(layout.end)
        assert lib.pv_virtqueue_new(self.memory, config, queue) == 0
        self.queue = queue[0]
        self.driver = Driver(self.ram, layout)
        queues: list[Queue | None] = [None, Queue(1, self.queue, self.kick_fd)]
        self.block.activate(Activation(features, queues, self.irq, self.memory))

    def ask(self, kind: int, sector: int, data: int, length: int) -> int:
        """Return the status of one request; its data is at address `data`."""
        self.ram.view(0x8000, 16)[:] = struct.pack("<IIQ", kind, 0, sector)
        self.ram.view(0x9000, 1)[:] = b"\xff"
        spans = [(data, length)] if length else []
        readable = [(0x8000, 16)] + (spans if kind == OUT else [])
        writable = (spans if kind != OUT else []) + [(0x9000, 1)]
        self.driver.add(readable, writable)
        self.driver.publish()
        os.eventfd_write(self.kick_fd, 1)
        assert select.select([self.irq_fd], [], [], 10)[0]
        os.eventfd_read(self.irq_fd)
        assert len(self.driver.collect()) == 1
        return self.ram.view(0x9000, 1)[0]

    def stop(self) -> None:
        self.block.reset(30.0)
        lib.pv_virtqueue_free(self.queue)

    def close(self) -> None:
        self.block.close()
        lib.pv_virtio_irq_free(self.irq)
        for fd in (self.kick_fd, self.irq_fd, self.broken_fd):
            os.close(fd)


@pytest.fixture(params=["io_uring", "threads"])
def started(request: pytest.FixtureRequest, image: Path) -> Iterator[Started]:
    started = Started(BlockConfig("d", str(image), engine=request.param, serial="S/N 1"))
    started.start()
    yield started
    started.stop()
    started.close()


def test_requests_reach_the_image(started: Started, image: Path) -> None:
    data = os.urandom(4096)
    started.ram.view(0x10000, 4096)[:] = data
    assert started.ask(OUT, 8, 0x10000, 4096) == 0
    assert started.ask(FLUSH, 0, 0, 0) == 0
    assert image.read_bytes()[4096:8192] == data
    assert started.ask(IN, 8, 0x20000, 4096) == 0
    assert bytes(started.ram.view(0x20000, 4096)) == data
    assert started.ask(GET_ID, 0, 0x30000, 20) == 0
    assert bytes(started.ram.view(0x30000, 20)) == b"S/N 1".ljust(20, b"\0")
    assert started.ask(IN, SECTORS, 0x20000, 512) == 1
    stats = started.block.stats()
    assert (stats.reads, stats.writes, stats.flushes, stats.others) == (2, 1, 1, 1)
    assert (stats.bytes_read, stats.bytes_written, stats.errors) == (4096, 4096, 1)


def test_a_buffer_at_any_address(started: Started) -> None:
    for shift in (1, 2, 510):
        data = os.urandom(4096)
        started.ram.view(0x10000 + shift, 4096)[:] = data
        assert started.ask(OUT, 16, 0x10000 + shift, 4096) == 0
        assert started.ask(IN, 16, 0x20000 + 2 * shift, 4096) == 0
        assert bytes(started.ram.view(0x20000 + 2 * shift, 4096)) == data


def test_activated_a_hundred_times(started: Started) -> None:
    for _ in range(100):
        assert started.ask(IN, 0, 0x10000, 512) == 0
        started.stop()
        started.start()
    assert started.block.stats().reads == 100


def test_two_disks_on_one_thread(tmp_path: Path) -> None:
    shared = IoThread("io1")
    disks = []
    for name in ("a", "b"):
        path = tmp_path / name
        path.write_bytes(name.encode() * SECTORS * 512)
        disks.append(Started(BlockConfig(name, str(path), iothread=shared)))
    del shared
    for disk in disks:
        disk.start()
    for disk, byte in zip(disks, b"ab", strict=True):
        assert disk.ask(IN, 8, 0x10000, 512) == 0
        assert bytes(disk.ram.view(0x10000, 512)) == bytes([byte]) * 512
    disks[0].stop()
    disks[0].close()
    assert disks[1].ask(IN, 8, 0x10000, 512) == 0
    disks[1].stop()
    disks[1].close()


def test_a_thread_tells_its_id(image: Path) -> None:
    shared = IoThread("io1")
    assert shared.thread_id == 0
    disk = Started(BlockConfig("d", str(image), iothread=shared))
    for _ in range(2):
        disk.start()
        assert disk.ask(IN, 8, 0x10000, 512) == 0
        assert str(shared.thread_id) in os.listdir("/proc/self/task")
        disk.stop()
        assert shared.thread_id == 0
    disk.close()


def test_a_driver_without_queues_cannot_start_it(image: Path) -> None:
    block = Block(BlockConfig("d", str(image)))
    with pytest.raises(BackendError, match="disk d: the driver made no queue ready"):
        block.activate(Activation(VERSION_1, [None], None, None))
    block.close()
