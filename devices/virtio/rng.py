"""The virtio entropy device (virtio 1.2, 5.4); native/rng/rng.h does the work."""

from __future__ import annotations

import errno
import os
import stat

from ...errors import BackendError, ConfigError, GuestError
from ...native import check, ffi, lib
from .device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from .device import Activation

DEVICE_TYPE = 4
QUEUE_SIZE = 64
RATE_MIN, RATE_MAX = 64, 1_000_000_000  # bytes a second, as StratoVirt has them


class RngConfig:
    """One device, as it was asked for."""

    __slots__ = ("filename", "id", "object_id", "rate")

    def __init__(self, id: str, object_id: str, filename: str, rate: int = 0) -> None:  # noqa: A002  (the field's word)
        """`filename` is a character device, which the -object `object_id` names.

        `rate` is a limit in bytes a second, RATE_MIN to RATE_MAX, or 0: none.
        """
        self.id = id
        self.object_id = object_id
        self.filename = filename
        self.rate = rate

    def make(self) -> Rng:
        """Return the device; ConfigError."""
        return Rng(self)


class Rng(Device):
    """Random bytes of the host's; owns the source and the C side. `stats` is for any thread."""

    __slots__ = ("_activation", "_fd", "_filename", "_handle")

    def __init__(self, config: RngConfig) -> None:
        """Open the source; ConfigError, and it does not stay open."""
        super().__init__(
            f"virtio-rng {config.id}",
            device_type=DEVICE_TYPE,
            features=0,
            queue_sizes=(QUEUE_SIZE,),
        )
        self._activation: Activation | None = None
        self._filename = config.filename
        self._fd = _open(config)
        handle = ffi.new("struct pv_rng **")
        try:
            check(lib.pv_rng_new(self._fd, config.rate, handle), self.name)
        except BaseException:
            os.close(self._fd)
            raise
        self._handle = ffi.gc(handle[0], lib.pv_rng_free)

    def activate(self, activation: Activation) -> None:
        """Start the thread; GuestError when the driver has made no queue."""
        self._start(activation)
        self._activation = activation

    def _start(self, activation: Activation) -> None:
        queue = activation.queues[0]
        if queue is None:
            raise GuestError(f"{self.name}: the driver has not made its queue ready")
        served = ffi.new("struct pv_queue *", (queue.handle, queue.kick_fd))
        result = lib.pv_rng_start(self._handle, served, activation.irq)
        check(result, f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """End the thread; requests that were not answered go with their queue."""
        self._check(lib.pv_rng_stop(self._handle, int(limit * 1e9)), limit)
        self._activation = None

    def _check(self, result: int, limit: float) -> None:
        if result < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def drain(self, limit: float) -> None:
        """End the thread; requests that were not answered are in their queue."""
        self._check(lib.pv_rng_drain(self._handle, int(limit * 1e9)), limit)

    def resume(self) -> None:
        """Start another."""
        if self._activation is not None:
            self._start(self._activation)

    def save(self) -> dict[str, object]:
        """Return no fields: it keeps nothing but its queue. A limit begins anew."""
        return {}

    def restore(self, fields: Fields) -> None:
        """Take none."""

    def news(self) -> str:
        """Return why the source failed."""
        error = lib.pv_rng_take_failure(self._handle)
        if not error:
            return ""
        why = "it has come to its end" if error == errno.ENODATA else os.strerror(error)
        return f"{self._filename}: {why}; it is asked again every second"

    def stats(self) -> Any:
        """Return a struct pv_rng_stats (native/rng/rng.h) of this moment."""
        stats = ffi.new("struct pv_rng_stats *")
        lib.pv_rng_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close the source."""
        ffi.release(self._handle)
        os.close(self._fd)


def _open(config: RngConfig) -> int:
    """Return a descriptor that no read of which waits."""
    option = f"-object rng-random,id={config.object_id},filename={config.filename}"
    mend = "name a character device such as /dev/urandom"
    try:
        # What is none is not even opened: a FIFO's writer, say, would be told.
        if not stat.S_ISCHR(os.stat(config.filename).st_mode):
            raise ConfigError(f"{option}: not a character device; {mend}")
        fd = os.open(config.filename, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{option}: {error.strerror}; {mend}") from None
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"{option}: not a character device; {mend}")
    return fd
