"""The virtio block device (virtio 1.2, 5.2): what the driver sees; native/block/ does the work."""

from __future__ import annotations

import _thread
import os
import struct

from ...errors import BackendError, ConfigError, PyvirtError
from ...native import ffi, lib
from ..disk import SECTOR, Disk
from . import turn
from .device import Pluggable
from .served import Lent, Served, Vacant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from ..iothread import IoThread
    from ..overlay import Overlay
    from .device import Activation
    from .served import Export

DEVICE_TYPE = 2
QUEUES_MAX = 64
QUEUE_SIZE, QUEUE_SIZE_MIN, QUEUE_SIZE_MAX = 256, 2, 1024
PHYSICAL = 4096  # block size, in bytes, of a disk that is yet to come
# What such a one can do in a request at least, that of another process included.
SEGMENTS, RANGES, RANGE_SECTORS = 126, 1, 32768
SERIAL_BYTES = 20
LOGICAL_MAX, PHYSICAL_MAX = 4096, 65536  # bytes; Linux takes no larger logical blocks than a page
IOPS_MAX = 1_000_000
ENGINES = ("auto", "io_uring", "threads")
ZERO_DETECTION = ("off", "on", "unmap")

# Requests by their types, as QMP calls them; all others change the image too.
OPERATIONS = {0: "read", 1: "write", 4: "flush"}

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
_CAPACITY = struct.Struct("<Q")
_SECTORS_MAX = (1 << 64) // SECTOR - 1
_GEOMETRY = struct.Struct("<IIIIBBHIBxHIIIIIB3x")
# Of what a driver may ask an image for: where it is told, by which feature, and how much at most.
_RANGES = (
    (36, DISCARD, lib.PV_BLOCK_RANGE_SECTORS, "sectors in a discard"),
    (40, DISCARD, lib.PV_BLOCK_RANGES, "ranges in a discard"),
    (48, WRITE_ZEROES, lib.PV_BLOCK_RANGE_SECTORS, "sectors in a write of zeroes"),
    (52, WRITE_ZEROES, lib.PV_BLOCK_RANGES, "ranges in a write of zeroes"),
)


class BlockConfig:
    """One disk, as it was asked for."""

    __slots__ = (
        "detect_zeroes",
        "direct",
        "engine",
        "id",
        "iops",
        "iothread",
        "layers",
        "logical_block",
        "option",
        "overlay",
        "path",
        "physical_block",
        "queue_size",
        "queues",
        "raw",
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
        queue_size: int = QUEUE_SIZE,
        iothread: IoThread | None = None,
        logical_block: int = SECTOR,
        physical_block: int = 0,
        raw: bool = False,
        overlay: str = "",
        layers: tuple[int, ...] = (),
        option: str = "",
    ) -> None:
        """`path` is a raw image or a block device; `readonly` keeps the guest from writing.

        `direct` goes past the host's page cache, None where that is possible. `engine` is
        `io_uring`, `threads`, or `auto`: io_uring where this process may use it. `iops` limits
        requests per second (to 1,000,000; 0: no limit). `unmap` gives the room of discarded
        sectors back; `detect_zeroes` makes ranges of written zeroes, with the value `unmap`, for
        which `unmap` must be set, ones that take no room. `serial` has 20 bytes at most. `queues`
        is 1 to 64, each with a thread or all on `iothread`, `queue_size` a power of two from 2
        to 1024. `logical_block` is in what units the guest may ask, a power of two from 512 to
        4096 bytes; `physical_block` in what units it had better ask, to 65536 bytes, 0: those of
        the storage. An image that looks like one of another format is opened only if `raw` insists
        that it is none. With an `overlay`, which is `memory` or a folder, what the guest writes
        goes there, for as long as the machine is there, and the image is only read; `layers` are
        descriptors of what Block.freeze has returned for such a disk with the same image, borrowed
        until it is open. `option` is how messages call the image.
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
        self.logical_block = logical_block
        self.physical_block = physical_block
        self.raw = raw
        self.overlay = overlay
        self.layers = layers
        self.option = option or f"-drive file={path}"


class Image:
    """An image as a Block can have it behind it: open, locked, measured; its maker closes it."""

    __slots__ = ("config", "disk", "engine", "is_in_use", "overlay")

    def __init__(self, config: BlockConfig) -> None:
        """Open the image; ConfigError, and nothing stays behind."""
        self.config = config
        self.is_in_use = False  # by the host, which has not completed requests of a device
        self.engine = _engine(config)
        self.disk = Disk(
            config.path,
            readonly=config.readonly or bool(config.overlay),
            direct=config.direct,
            raw=config.raw,
            option=config.option,
        )
        self.overlay: Overlay | None = None
        try:
            if self.disk.sectors * SECTOR % config.logical_block:
                raise ConfigError(
                    f"{config.option},logical_block_size={config.logical_block}: the size is no "
                    f"multiple of it; run: truncate -s %{config.logical_block} {config.path}"
                )
            if config.overlay:
                self.overlay = _make_overlay(config, self.disk.sectors)
        except BaseException:
            self.close()
            raise

    @property
    def readonly(self) -> bool:
        """Tell whether the guest only reads."""
        return self.config.readonly

    def close(self) -> None:
        """Close and unlock the image; no device has it any more. Once is enough.

        One that the host is at work on stays open to the end of the process, as what it does by
        the descriptor may not become another file's.
        """
        if self.disk.fd >= 0 and not self.is_in_use:
            self.disk.close()
            if self.overlay is not None:
                self.overlay.close()


class Block(Pluggable):
    """A disk of the guest, whether an image is behind it or not.

    Without one its capacity is 0 and every request ends in an I/O error. Linux, and others, read
    all but the capacity only when their driver starts. So an image that comes later has the queues
    that are there, the block sizes that the driver knows (512 and 4096 bytes), and, as the one
    thing that may be refused, the driver's idea of read-only. A disk of another process is as it
    is, and refused unless all that the driver knows is true of it.
    """

    __slots__ = (
        "_activation",
        "_geometry",
        "_lock",
        "_offered",
        "_queues",
        "_served",
        "_vacant",
    )
    KIND = "block"

    def __init__(
        self, config: BlockConfig | None = None, slot: int = 0, *, opened: Image | None = None
    ) -> None:
        """Open the image, if there is to be one; ConfigError, and nothing stays behind.

        One that is `opened`, of this configuration, is behind the device as by `attach`. `slot` is
        how messages call a device without an image.
        """
        self._queues = config.queues if config else 1
        self._vacant = Vacant(f"disk slot {slot}")
        self._activation: Activation | None = None
        self._lock = _thread.allocate_lock()  # of `_served`, which `stats` looks at
        self._served: Served | Vacant | Lent = self._vacant
        if config is not None:
            image = opened or Image(config)
            try:
                self._served = Served(image, "", config.iothread)
            except BaseException:
                if opened is None:
                    image.close()
                raise
        super().__init__(
            self._served.name,
            device_type=DEVICE_TYPE,
            features=0,
            queue_sizes=(config.queue_size if config else QUEUE_SIZE,) * self._queues,
        )
        self.offer()

    def offer(self) -> int:
        """Return the features of the image, or all that one may have."""
        lent = self._served.lent
        if lent is not None:
            self._offered = self.features = lent.features
            self._geometry = lent.config()[_CAPACITY.size :]
            return self._offered
        image = self._served.image
        assert image is None or isinstance(image, Image)
        self._offered = self.features = _features(image.config if image else None, self._queues)
        self._geometry = _geometry(image, self._queues, self.queue_sizes[0])
        return self._offered

    def config(self) -> bytes:
        """Return struct virtio_blk_config; nothing in it can be written."""
        return _CAPACITY.pack(self._served.sectors) + self._geometry

    def ring_features(self) -> int:
        """Return those that who serves the queues has."""
        lent = self._served.lent
        return lent.ring_features() if lent is not None else super().ring_features()

    def news(self) -> str:
        """Return what has become of another process that serves the queues."""
        lent = self._served.lent
        return lent.news() if lent is not None else ""

    def operations(self) -> tuple[str, ...]:
        """Return the kinds of requests, and the interrupt; nothing where those are another's."""
        if self._served.lent is not None:
            return ()
        from .fault import DISK, INTERRUPT  # noqa: PLC0415  (only tests of drivers ask)

        return DISK + INTERRUPT

    def activate(self, activation: Activation) -> None:
        """Serve each queue that is ready."""
        if not any(activation.queues):
            raise BackendError(f"{self.name}: the driver made no queue ready")
        self._served.activate(activation)
        self._activation = activation

    def reset(self, limit: float) -> None:
        """Complete what is in flight and leave the threads."""
        self._served.stop(limit)
        self._activation = None

    def halt(self) -> None:
        """Begin nothing of what is in flight that can be left out."""
        self._served.halt()

    def drain(self, limit: float) -> None:
        """Complete what is in flight."""
        self._served.drain(limit)

    def resume(self) -> None:
        """Serve the queues again."""
        self._served.resume()

    def save(self) -> dict[str, object]:
        """Return what the driver knows of the disk; of an image, that there is one.

        A limit begins anew. No write waits in the device: those that are complete are the host's.
        """
        if self._served.lent is not None:
            raise ConfigError(
                f"{self.name}: was plugged, and a machine that is restored has no such disk in a "
                "slot; unplug it, or have it from the start by -device"
            )
        return {
            "sectors": self._served.sectors,
            "readonly": bool(self._offered & RO),
            "geometry": self._geometry.hex(),
        }

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; the disk may have become larger, and an empty slot a disk."""
        image, sectors = self._served.image, self._served.sectors
        before = fields.integer("sectors", 0, _SECTORS_MAX)
        if before > sectors:
            now = f"has {sectors} sectors of 512 bytes" if image else "is an empty slot"
            raise fields.wrong("sectors", f"{self.name} {now}, and had {before} when it was saved")
        readonly = fields.flag("readonly")
        if image and image.readonly != readonly:
            now = "read-only" if image.readonly else "writable"
            raise fields.wrong("readonly", f"{self.name} is {now}, which it was not when saved")
        # Linux asks for it when its driver starts, and never again.
        self._geometry = fields.data("geometry", _GEOMETRY.size)

    def offer_again(self, features: int) -> int:
        """Return what can be kept to: with an image, what an empty slot may promise too."""
        geometry = self._geometry
        self._offered = features & (self.offer() | _features(None, self._queues))
        self.features, self._geometry = self._offered, geometry
        return self._offered

    @property
    def resource(self) -> Image | Export | None:
        """Return the image behind the device; None when there is none."""
        return self._served.image

    @property
    def backend(self) -> str:
        """Return the image's id, "" without one."""
        return self._served.image.config.id if self._served.image else ""

    def attach(
        self, backend: Image | Export, *, serial: str = "", iothread: IoThread | None = None
    ) -> None:
        """Put an image behind the device; it is the caller's to close, after `detach`.

        `serial` and `iothread`, where they are given, stand for the image's own. An Export, which
        is a disk of another process, has neither.
        """
        if self.resource is not None:
            raise ConfigError(f"{self.name}: is in this slot already; take it out first")
        served: Served | Lent
        if isinstance(backend, Image):
            self._check_queues(backend.config)
            served = Served(backend, serial, iothread or backend.config.iothread)
        else:
            backend.device.config_changed = self.config_changed
            served = Lent(backend)

        def change(is_bound: bool) -> None:
            if is_bound:
                self._check_known(backend)
            self._replace(served)

        try:
            self.exchange(change)
        except BaseException:
            if self._served is served:  # and the guest could not be told
                self._withdraw()
            else:
                served.free()
            raise

    def _check_queues(self, config: BlockConfig) -> None:
        if config.queues > self._queues or config.queue_size > self.queue_sizes[0]:
            raise ConfigError(
                f"disk {config.id}: {config.queues} queues of {config.queue_size}: its slot has "
                f"{self._queues} of {self.queue_sizes[0]}; give no more"
            )

    def _check_known(self, backend: Image | Export) -> None:
        """Raise ConfigError where what the driver knows is not so."""
        if backend.readonly != bool(self._offered & RO):
            raise ConfigError(_misfit(backend.config.id, readonly=backend.readonly))
        known = self._offered | super().ring_features()
        features = self._activation.features if self._activation else known
        if isinstance(backend, Image):
            _check_ranges(backend.config.id, features, self.config())
        else:
            backend.check(features, self.config())

    def detach(self) -> Image | Export | None:
        """Take the image away; in-flight requests are complete, later ones end in errors.

        BackendError, and nothing has changed, when the host does not complete them.
        """
        image = self._served.image
        if image is not None:
            self._withdraw()
        return image

    def _withdraw(self) -> None:
        before = self._served

        def change(_: bool) -> None:
            if self._activation is not None:
                before.drain(turn.LIMIT_S)
            self._replace(self._vacant)

        try:
            self.exchange(change)
        finally:
            if self._served is not before:
                before.free()

    def _replace(self, served: Served | Vacant | Lent) -> None:
        """Let another serve the queues from the request on that comes next."""
        before, activation = self._served, self._activation
        if activation is not None:
            self._stop(before, activation)
            # A broken device is served by nobody before its reset.
            if not lib.pv_virtio_irq_is_broken(activation.irq):
                try:
                    served.activate(activation)
                except PyvirtError:
                    self._restart(before, activation)
                    raise
        with self._lock:
            self._served = served
        self.name = served.name

    @staticmethod
    def _stop(served: Served | Vacant | Lent, activation: Activation) -> None:
        """Stop what was drained; BackendError, and the device is broken."""
        try:
            served.stop(turn.LIMIT_S)
        except BackendError as error:
            lib.pv_virtio_irq_broken(activation.irq, str(error).encode())
            raise

    def _restart(self, served: Served | Vacant | Lent, activation: Activation) -> None:
        try:
            served.activate(activation)
        except PyvirtError as error:
            lib.pv_virtio_irq_broken(activation.irq, str(error).encode())

    def resize(self, size: int) -> None:
        """Make image and disk `size` bytes long; what is in flight is complete before.

        ConfigError or BackendError, and nothing has changed. Any thread but a vCPU's.
        """
        served = self._served

        def change(_: bool) -> None:
            if isinstance(served, Vacant):
                raise ConfigError("there is no image in the slot; plug one first")
            if isinstance(served, Lent):
                raise ConfigError("its back end says how large it is; see to that")
            activation = self._activation
            if activation is not None:
                served.drain(turn.LIMIT_S)
                self._stop(served, activation)
            try:
                served.resize(size)
            finally:
                if activation is not None and not lib.pv_virtio_irq_is_broken(activation.irq):
                    self._restart(served, activation)

        try:
            self.exchange(change)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def freeze(self) -> tuple[int, ...]:
        """Freeze what the guest has written to an overlay; return its layers, the oldest first.

        That is what `layers` of a BlockConfig take: descriptors, which stay the image's own; none
        where there is no overlay. The machine stands, and the device is drained. BackendError, and
        nothing has changed.
        """
        served = self._served
        if not isinstance(served, Served):
            return ()
        with self._lock:
            try:
                return served.freeze()
            except BackendError as error:
                raise BackendError(f"{self.name}: {error}") from None

    def overlay(self) -> Overlay | None:
        """Return the image's, which stays its own."""
        served = self._served
        return served.image.overlay if isinstance(served, Served) else None

    def take_failure(self) -> tuple[str, int] | None:
        """Return "read", "write" or "flush", and the errno; of many failures one a second."""
        kind = ffi.new("uint32_t *")
        with self._lock:
            error = self._served.take_error(kind)
        return (OPERATIONS.get(kind[0], "write"), error) if error else None

    def stats(self) -> Any:
        """Return a struct pv_block_stats (native/block/block.h) of the image; any thread.

        Of another process's disk what is known of that, as a dict.
        """
        lent: Any = self._served.lent
        if lent is not None:
            return lent.stats()
        stats = ffi.new("struct pv_block_stats *")
        with self._lock:
            self._served.read_stats(stats)
        return stats

    def close(self) -> None:
        """Close and unlock the image."""
        image = self._served.image
        if image is not None:
            with self._lock:
                self._served.free()
                self._served = self._vacant
            image.close()


def _make_overlay(config: BlockConfig, sectors: int) -> Overlay:
    from ..overlay import Overlay  # noqa: PLC0415  (few disks have one)

    option = f"{config.option},overlay={config.overlay}"
    return Overlay(config.overlay, sectors, config.layers, option=option)


def _engine(config: BlockConfig) -> str:
    wanted = config.engine
    failure = lib.pv_uring_probe() if wanted != "threads" else 0
    if failure < 0 and wanted == "io_uring":
        raise ConfigError(
            f"{config.option},aio=io_uring: {os.strerror(-failure)}; give aio=threads"
        )
    return "threads" if failure < 0 or wanted == "threads" else "io_uring"


def _check_ranges(id: str, features: int, known: bytes) -> None:  # noqa: A002
    """Raise ConfigError where the driver, from another process's disk, knows of larger ranges."""
    for offset, feature, most, what in _RANGES:
        least = int.from_bytes(known[offset : offset + 4], "little")
        if features & feature and least > most:
            raise ConfigError(
                f"disk {id}: an image takes {most} {what}, and the slot's driver in the guest "
                f"sends {least}, as the disk before took; unbind that first"
            )


def _misfit(id: str, *, readonly: bool) -> str:  # noqa: A002
    how, known = ("read-only", "writable") if readonly else ("writable", "read-only")
    return (
        f"disk {id}: {how}, and the guest's driver took its slot for a {known} disk, which "
        f"it asks only when it starts; plug it {known}, or unbind the driver in the guest first"
    )


def _features(config: BlockConfig | None, queues: int) -> int:
    features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY
    if queues > 1:
        features |= MQ
    if config is None:
        return features | WRITE_ZEROES | DISCARD
    if config.readonly:
        return features | RO
    return features | WRITE_ZEROES | (DISCARD if config.unmap else 0)


def _geometry(image: Image | None, queues: int, queue_size: int) -> bytes:
    """Return struct virtio_blk_config behind the capacity."""
    logical, physical = SECTOR, PHYSICAL
    segments = max(1, queue_size - 2)  # beside the header and the status
    ranges, range_sectors = lib.PV_BLOCK_RANGES, lib.PV_BLOCK_RANGE_SECTORS
    if image is None:
        segments, ranges, range_sectors = min(segments, SEGMENTS), RANGES, RANGE_SECTORS
    else:
        # Not what direct I/O asks of the host: partition tables count in logical blocks, and the
        # same image is to be the same disk wherever it lies.
        logical = image.config.logical_block
        physical = max(logical, image.config.physical_block or image.disk.block_size)
    return _GEOMETRY.pack(
        0,  # size_max
        segments,
        0,  # geometry
        logical,
        (physical // logical).bit_length() - 1,
        0,  # alignment offset
        1,  # least and
        0,  # best I/O size: nothing to say
        0,  # writeback
        queues,
        range_sectors,
        ranges,
        physical // SECTOR,
        range_sectors,
        ranges,
        image is None or image.config.unmap,
    )
