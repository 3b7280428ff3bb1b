"""The virtio block device (virtio 1.2, 5.2): what the driver sees; native/block.h does the work."""

from __future__ import annotations

import os
import struct

from ...errors import BackendError, ConfigError
from ...native import check, ffi, lib
from ..disk import SECTOR, Disk
from .device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..iothread import IoThread
    from .device import Activation

DEVICE_TYPE = 2
QUEUES_MAX = 64
QUEUE_SIZE_MIN, QUEUE_SIZE_MAX = 2, 1024
SERIAL_BYTES = 20
IOPS_MAX = 1_000_000
ENGINES = ("auto", "io_uring", "threads")
ZERO_DETECTION = ("off", "on", "unmap")

# Feature bits, 5.2.3.
SEG_MAX = 1 << 2
RO = 1 << 5
BLK_SIZE = 1 << 6
FLUSH = 1 << 9
TOPOLOGY = 1 << 10
MQ = 1 << 12
DISCARD = 1 << 13
WRITE_ZEROES = 1 << 14

# struct virtio_blk_config to the write-zeroes fields, 5.2.4: capacity, size_max, seg_max, geometry,
# blk_size, topology (4), writeback, num_queues, discard (3), write zeroes (3).
_CONFIG = struct.Struct("<QIIIIBBHIBxHIIIIIB3x")


class BlockConfig:
    """One disk, as it was asked for."""

    __slots__ = (
        "detect_zeroes",
        "direct",
        "engine",
        "id",
        "iops",
        "iothread",
        "path",
        "queue_size",
        "queues",
        "readonly",
        "serial",
        "unmap",
    )

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        path: str,
        *,
        readonly: bool = False,
        direct: bool | None = None,
        engine: str = "auto",
        iops: int = 0,
        unmap: bool = False,
        detect_zeroes: str = "off",
        serial: str = "",
        queues: int = 1,
        queue_size: int = 256,
        iothread: IoThread | None = None,
    ) -> None:
        """`path` is a raw image or a block device; `readonly` keeps the guest from writing.

        `direct` goes past the host's page cache, None where that is possible. `engine` is
        `io_uring`, `threads`, or `auto`: io_uring where this process may use it. `iops` limits
        requests per second (to 1,000,000; 0: no limit). `unmap` gives the room of discarded
        sectors back; `detect_zeroes` makes ranges of written zeroes, with the value `unmap`, for
        which `unmap` must be set, ones that take no room. `serial` has 20 bytes at most. `queues`
        is 1 to 64, each with a thread or all on `iothread`, `queue_size` a power of two from 2
        to 1024.
        """
        self.id = id
        self.path = path
        self.readonly = readonly
        self.direct = direct
        self.engine = engine
        self.iops = iops
        self.unmap = unmap
        self.detect_zeroes = detect_zeroes
        self.serial = serial
        self.queues = queues
        self.queue_size = queue_size
        self.iothread = iothread


class Block(Device):
    """A disk of the guest; owns the image and the C side."""

    __slots__ = ("_config", "_disk", "_handle", "_iothread", "engine")

    def __init__(self, config: BlockConfig) -> None:
        """Open the image; ConfigError, and nothing stays behind."""
        super().__init__(
            f"disk {config.id}",
            device_type=DEVICE_TYPE,
            features=_features(config),
            queue_sizes=(config.queue_size,) * config.queues,
        )
        self.engine = _engine(config.engine)
        self._iothread = config.iothread
        disk = Disk(config.path, readonly=config.readonly, direct=config.direct)
        try:
            self._handle = self._new(config, disk)
        except BaseException:
            disk.close()
            raise
        self._disk: Disk | None = disk
        self._config = _config_space(config, disk)

    def _new(self, config: BlockConfig, disk: Disk) -> Any:
        words = {
            "fd": disk.fd,
            "flags": (config.readonly and lib.PV_BLOCK_READONLY)
            | (self.engine == "threads" and lib.PV_BLOCK_THREADS)
            | (config.unmap and lib.PV_BLOCK_UNMAP)
            | (config.detect_zeroes != "off" and lib.PV_BLOCK_DETECT_ZEROES)
            | (config.detect_zeroes == "unmap" and lib.PV_BLOCK_DETECT_UNMAP),
            "sectors": disk.sectors,
            "offset_align": disk.offset_align,
            "memory_align": disk.memory_align,
            "iops": config.iops,
            "id": os.fsencode(config.serial).ljust(SERIAL_BYTES, b"\0"),
            "iothread": config.iothread.handle if config.iothread else ffi.NULL,
        }
        handle = ffi.new("struct pv_block **")
        check(lib.pv_block_new(ffi.new("struct pv_block_config *", words), handle), self.name)
        return handle[0]

    def config(self) -> bytes:
        """Return struct virtio_blk_config; nothing in it can be written."""
        return self._config

    def activate(self, activation: Activation) -> None:
        """Serve each queue that is ready."""
        ready = [(queue.handle, queue.kick_fd) for queue in activation.queues if queue]
        if not ready:
            raise BackendError(f"{self.name}: the driver made no queue ready")
        check(
            lib.pv_block_start(
                self._handle,
                activation.features,
                ffi.new("struct pv_block_queue[]", ready),
                len(ready),
                activation.irq,
            ),
            f"{self.name}: cannot start {self.engine}",
        )

    def reset(self) -> None:
        """Complete what is in flight and leave the threads."""
        lib.pv_block_stop(self._handle)

    def stats(self) -> Any:
        """Return a struct pv_block_stats (native/block.h) of this moment; any thread."""
        stats = ffi.new("struct pv_block_stats *")
        lib.pv_block_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close and unlock the image."""
        if self._disk is not None:
            lib.pv_block_free(self._handle)
            self._disk.close()
            self._disk = None


def _engine(wanted: str) -> str:
    failure = lib.pv_uring_probe() if wanted != "threads" else 0
    if failure < 0 and wanted == "io_uring":
        raise ConfigError(f"-drive aio=io_uring: {os.strerror(-failure)}; give aio=threads")
    return "threads" if failure < 0 or wanted == "threads" else "io_uring"


def _features(config: BlockConfig) -> int:
    features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY
    if config.queues > 1:
        features |= MQ
    if config.readonly:
        return features | RO
    return features | WRITE_ZEROES | (DISCARD if config.unmap else 0)


def _config_space(config: BlockConfig, disk: Disk) -> bytes:
    logical = max(SECTOR, disk.offset_align)
    physical = max(logical, disk.block_size)
    return _CONFIG.pack(
        disk.sectors,
        0,  # size_max
        max(1, config.queue_size - 2),  # beside the header and the status
        0,  # geometry
        logical,
        (physical // logical).bit_length() - 1,
        0,  # alignment offset
        1,  # least and
        0,  # best I/O size: nothing to say
        0,  # writeback
        config.queues,
        lib.PV_BLOCK_RANGE_SECTORS,
        lib.PV_BLOCK_RANGES,
        physical // SECTOR,
        lib.PV_BLOCK_RANGE_SECTORS,
        lib.PV_BLOCK_RANGES,
        config.unmap,
    )
