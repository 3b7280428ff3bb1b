"""What serves the queues of a block device, with an image behind it and without.

That is native/block/block.h, native/virtio/vacant.h or a device of another process's, under one
interface; the last is for NICs as well.
"""

from __future__ import annotations

import errno
import os

from ...errors import BackendError, ConfigError
from ...native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ..iothread import IoThread
    from .device import Activation, Device

    class Loan(Protocol):
        """Something of another process's for a slot."""

        @property
        def device(self) -> Device:
            """What serves it."""

        @property
        def is_connected(self) -> bool:
            """Tell whether that process is there."""

    class Export(Loan, Protocol):
        """A disk of another process; its maker closes it."""

        @property
        def config(self) -> Any:
            """Its `id`."""

        @property
        def readonly(self) -> bool:
            """Tell whether the guest only reads."""

        @property
        def sectors(self) -> int:
            """Return its size in units of 512 bytes."""

        def check(self, features: int, known: bytes) -> None:
            """Raise ConfigError unless a driver that knows these can have it."""

        def close(self) -> None:
            """Let go of the process; once is enough."""


class Served:
    """The queues' service from an image (block.Image); owns the C side."""

    __slots__ = ("_engine", "_handle", "_iothread", "image", "name")
    lent: Device | None = None

    def __init__(self, image: Any, serial: str, iothread: IoThread | None) -> None:
        config, disk = image.config, image.disk
        self.image = image
        self.name = f"disk {config.id}"
        self._iothread = iothread  # which has to be there as long as this
        self._engine = image.engine
        words = {
            "fd": disk.fd,
            "flags": (config.readonly and lib.PV_BLOCK_READONLY)
            | (image.engine == "threads" and lib.PV_BLOCK_THREADS)
            | (config.unmap and lib.PV_BLOCK_UNMAP)
            | (config.detect_zeroes != "off" and lib.PV_BLOCK_DETECT_ZEROES)
            | (config.detect_zeroes == "unmap" and lib.PV_BLOCK_DETECT_UNMAP),
            "sectors": disk.sectors,
            "offset_align": disk.offset_align,
            "memory_align": disk.memory_align,
            "iops": config.iops,
            "id": os.fsencode(serial or config.serial).ljust(lib.PV_BLOCK_ID_BYTES, b"\0"),
            "iothread": iothread.handle if iothread else ffi.NULL,
            "overlay": image.overlay.handle if image.overlay else ffi.NULL,
        }
        handle = ffi.new("struct pv_block **")
        check(lib.pv_block_new(ffi.new("struct pv_block_config *", words), handle), self.name)
        self._handle = handle[0]

    @property
    def sectors(self) -> int:
        """Return the size in units of 512 bytes."""
        return int(self.image.disk.sectors)

    def activate(self, activation: Activation) -> None:
        """Serve each queue that is ready."""
        self._start(activation.features, _ready(activation), activation.irq)

    def _start(self, features: int, queues: Any, irq: Any) -> None:
        result = lib.pv_block_start(self._handle, features, queues, len(queues), irq)
        if result == -errno.EINVAL and self._iothread is not None:
            theirs = "io_uring" if self._engine == "threads" else "threads"
            raise ConfigError(
                f"{self.name}: the iothread {self._iothread.id} serves another device by {theirs}, "
                f"and this disk's aio is {self._engine}; give it aio {theirs}, or another iothread"
            )
        check(result, f"{self.name}: cannot start {self._engine}")

    def drain(self, limit: float) -> None:
        """Complete what is in flight before `stop`; BackendError, and it goes on, if that hangs."""
        if lib.pv_block_drain(self._handle, int(limit * 1e9)) < 0:
            raise BackendError(f"{self._late(limit)}, then ask again")

    def resume(self) -> None:
        """Go on after `drain`."""
        lib.pv_block_resume(self._handle)

    def halt(self) -> None:
        """Begin to stop."""
        lib.pv_block_halt(self._handle)

    def stop(self, limit: float) -> None:
        """Complete what is in flight and leave the threads; BackendError if that hangs."""
        if lib.pv_block_stop(self._handle, int(limit * 1e9)) < 0:
            self.image.is_in_use = True
            raise BackendError(self._late(limit))
        self.image.is_in_use = False

    def _late(self, limit: float) -> str:
        within = f"the host has not completed its requests within {limit:g} s"
        return f"{self.name}: {within}; see to the storage"

    def resize(self, size: int) -> None:
        """Change the image and what may be asked of it; it is stopped. ConfigError."""
        if self.image.overlay is not None:
            raise ConfigError(
                f"size {size}: its image is only read; leave overlay out, or resize the image and "
                "plug it anew"
            )
        self.image.disk.resize(size, self.image.config.logical_block)
        lib.pv_block_set_sectors(self._handle, self.image.disk.sectors)

    def freeze(self) -> tuple[int, ...]:
        """Freeze what is in an overlay; it is drained or stopped. BackendError."""
        overlay = self.image.overlay
        if overlay is None:
            return ()
        layers: tuple[int, ...] = overlay.freeze()
        lib.pv_block_set_overlay(self._handle, overlay.handle)
        return layers

    def read_stats(self, stats: Any) -> None:
        """Fill a struct pv_block_stats."""
        lib.pv_block_stats(self._handle, stats)

    def take_error(self, kind: Any) -> int:
        """Return the errno of a failure of the host's, and put the request's type into `kind`."""
        return int(lib.pv_block_take_error(self._handle, kind))

    def free(self) -> None:
        """Give the C side back; it is stopped."""
        lib.pv_block_free(self._handle)


class Vacant:
    """The queues' service without an image, or without whatever else answers requests."""

    __slots__ = ("_handle", "_kind", "_start_again", "name")
    image = None
    lent: Device | None = None
    sectors = 0

    def __init__(self, name: str, kind: int = lib.PV_VACANT_BLOCK) -> None:
        """`kind` is whose requests they are (native/virtio/vacant.h)."""
        self.name = name
        self._kind = kind
        self._handle: Any = ffi.NULL
        self._start_again: Callable[[], None] | None = None  # after `drain`

    def activate(self, activation: Activation) -> None:
        """Serve each queue that is ready."""
        self.start(activation.features, _ready(activation), activation.irq)

    def start(self, features: int, queues: Any, irq: Any) -> None:
        """Start a thread for all queues; `queues` is a struct pv_queue[]."""
        self._start_again = lambda: self.start(features, queues, irq)
        handle = ffi.new("struct pv_vacant **")
        result = lib.pv_vacant_start(self._kind, queues, len(queues), irq, handle)
        check(result, f"{self.name}: cannot start")
        self._handle = handle[0]

    def drain(self, limit: float) -> None:
        """End the thread; nothing is in flight then."""
        self._check(lib.pv_vacant_drain(self._handle, int(limit * 1e9)), limit)
        self._handle = ffi.NULL

    def resume(self) -> None:
        """Start another."""
        if self._start_again is not None:
            self._start_again()

    def halt(self) -> None:
        """Nothing takes long."""

    def stop(self, limit: float) -> None:
        """End the thread."""
        self._check(lib.pv_vacant_stop(self._handle, int(limit * 1e9)), limit)
        self._handle = ffi.NULL
        self._start_again = None

    def _check(self, result: int, limit: float) -> None:
        if result < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def read_stats(self, stats: Any) -> None:
        """Count nothing."""

    def take_error(self, kind: Any) -> int:
        """Nothing of the host's can fail."""
        return 0

    def free(self) -> None:
        """Nothing is left."""


class LentQueues:
    """The queues' service from a device that takes the place of the one in the slot."""

    __slots__ = ("_loan", "lent")

    def __init__(self, loan: Loan) -> None:
        """`loan` owns the device."""
        self._loan = loan
        self.lent = loan.device

    @property
    def is_connected(self) -> bool:
        """Tell whether there is a back end."""
        return self._loan.is_connected

    def activate(self, activation: Activation) -> None:
        """Give the queues to the back end; BackendError, and they can be served by another."""
        try:
            self.lent.activate(activation)
        except BackendError:
            # It may have used buffers before.
            for queue in activation.queues:
                if queue is not None:
                    lib.pv_virtqueue_seek(queue.handle, lib.pv_virtqueue_served(queue.handle))
            raise

    def drain(self, limit: float) -> None:
        """Have the back end let go of the queues; one that has gone did."""
        try:
            self.lent.drain(limit)
        except BackendError:
            if self._loan.is_connected:
                raise
            self.lent.drain(limit)

    def resume(self) -> None:
        """Give them to it again."""
        self.lent.resume()

    def halt(self) -> None:
        """Begin to stop."""
        self.lent.halt()

    def stop(self, limit: float) -> None:
        """Have the back end let go of the queues; BackendError if it does not."""
        self.lent.reset(limit)


class Lent(LentQueues):
    """The same for a disk."""

    __slots__ = ("image", "name")

    def __init__(self, image: Export) -> None:
        """`image` owns the device."""
        super().__init__(image)
        self.image = image
        self.name = image.device.name

    @property
    def sectors(self) -> int:
        """Return what the back end says, in units of 512 bytes."""
        return self.image.sectors

    def read_stats(self, stats: Any) -> None:
        """Count nothing: requests are the back end's."""

    def take_error(self, kind: Any) -> int:
        """Tell of nothing: errors are the back end's, too."""
        return 0

    def free(self) -> None:
        """Nothing is ours."""


def _ready(activation: Activation) -> Any:
    ready = [(queue.handle, queue.kick_fd) for queue in activation.queues if queue]
    return ffi.new("struct pv_queue[]", ready)
