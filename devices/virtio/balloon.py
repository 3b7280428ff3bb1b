"""The virtio balloon device (virtio 1.2, 5.5); native/balloon/balloon.h does the work.

What a guest puts into the balloon, or tells to be free, is given back to the host. How much it puts
there is the host's wish (`set_target`), and the driver's to fulfil.
"""

from __future__ import annotations

import struct

from ...errors import BackendError
from ...native import check, ffi, lib
from .device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from .device import Activation, Queue

DEVICE_TYPE = 5
QUEUE_SIZE = 128
PAGE = 4096

# Feature bits, 5.5.3.
STATS_VQ, DEFLATE_ON_OOM = 1 << 1, 1 << 2
PAGE_POISON, REPORTING = 1 << 4, 1 << 5

# Indexes of queues, 5.5.2: 3 is that of a feature that is not offered.
INFLATE, DEFLATE, STATISTICS, REPORTS = 0, 1, 2, 4
_QUEUES = 5
# struct virtio_balloon_config, 5.5.4: num_pages, actual, free_page_hint_cmd_id, poison_val.
_CONFIG = struct.Struct("<4I")
_WITHOUT_POISON = 8
_PAGES_MAX = _WORD = (1 << 32) - 1
# Tags of statistics, 5.5.6.4.
_FREE, _AVAILABLE = 4, 6
_UNTOLD = (1 << 64) - 1
# A smaller change is not worth the guest's while.
_STEP = 16 << 20


class Auto:
    """How the balloon's size follows what the guest uses.

    Every `interval` seconds (5 to 300) the guest gets what it uses and `percent` (20 to 80) of
    that besides. StratoVirt has the guest work that out, by a queue that openEuler's driver alone
    knows.
    """

    __slots__ = ("interval", "percent")

    def __init__(self, percent: int = 50, interval: int = 10) -> None:
        self.percent = percent
        self.interval = interval

    def target(self, memory: int, ballooned: int, available: int) -> int:
        """Return the bytes to be in the balloon, of a guest of `memory` bytes.

        `available` is what the driver says that processes could have at once.
        """
        used = memory - ballooned - min(available, memory - ballooned)
        return max(0, memory - used * (100 + self.percent) // 100)


class BalloonConfig:
    """The balloon, as it was asked for."""

    __slots__ = ("auto", "deflate_on_oom", "free_page_reporting", "id")

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        *,
        deflate_on_oom: bool = False,
        free_page_reporting: bool = False,
        auto: Auto | None = None,
    ) -> None:
        """`deflate_on_oom` lets the guest take pages out before it kills processes.

        `free_page_reporting` has it tell of memory that nobody uses, at all times.
        """
        self.id = id
        self.deflate_on_oom = deflate_on_oom
        self.free_page_reporting = free_page_reporting
        self.auto = auto

    def make(self) -> Balloon:
        """Return the device."""
        return Balloon(self)


class Balloon(Device):
    """The balloon of a guest; owns the C side.

    `set_target`, and all that only tells, are for any thread, and do not wait.
    """

    __slots__ = (
        "_activation",
        "_actual",
        "_auto",
        "_handle",
        "_memory",
        "_poison",
        "_seen",
        "_target",
        "_told",
        "id",
        "interval",
    )

    def __init__(self, config: BalloonConfig) -> None:
        """Make it, empty; BackendError."""
        super().__init__(
            f"virtio-balloon {config.id}",
            device_type=DEVICE_TYPE,
            features=STATS_VQ
            | (DEFLATE_ON_OOM if config.deflate_on_oom else 0)
            | (REPORTING | PAGE_POISON if config.free_page_reporting else 0),
            queue_sizes=(QUEUE_SIZE,) * _QUEUES,
        )
        self.id = config.id
        handle = ffi.new("struct pv_balloon **")
        check(lib.pv_balloon_new(handle), self.name)
        self._handle = ffi.gc(handle[0], lib.pv_balloon_free)
        self._auto = config.auto
        self._target = self._actual = self._poison = 0
        self._told = 0  # the `_actual` that monitors know
        self._seen = 0  # how many statistics `_follow` has looked at
        self._memory = 0  # bytes of RAM, from the first activation on
        self._activation: Activation | None = None
        self.poll(0)

    def poll(self, interval: int) -> None:
        """Ask the driver for statistics every so many seconds; 0: only if the device has to."""
        self.interval = interval
        wanted = [one for one in (interval, self._auto.interval if self._auto else 0) if one]
        every = min(wanted, default=0) * 1_000_000_000
        lib.pv_balloon_poll(self._handle, every, self._auto is not None)

    def offer(self) -> int:
        """Return the features; a driver that begins has nothing in the balloon."""
        self._actual = self._poison = 0
        return self.features

    def config(self) -> bytes:
        """Return struct virtio_balloon_config, as far as the features need it."""
        words = _CONFIG.pack(self._target, self._actual, 0, self._poison)
        return words if self.features & PAGE_POISON else words[:_WITHOUT_POISON]

    def write_config(self, offset: int, data: bytes) -> None:
        """Take how many pages the driver has put into the balloon, and what free ones hold."""
        space = bytearray(self.config())
        space[offset : offset + len(data)] = data
        _, self._actual, _, poison = _CONFIG.unpack(space.ljust(_CONFIG.size, b"\0"))
        if self._activation is None:
            self._poison = poison  # what a driver says before DRIVER_OK
        elif self._actual != self._told:
            lib.pv_virtio_irq_news(self._activation.irq)

    def activate(self, activation: Activation) -> None:
        """Start the thread, for the queues that are ready."""
        self._start(activation)
        self._activation = activation
        if self._actual != self._told:
            lib.pv_virtio_irq_news(activation.irq)

    def _start(self, activation: Activation) -> None:
        memory, size = activation.memory, ffi.new("uint64_t *")
        index, total = 0, 0
        unused = ffi.new("uint64_t *"), ffi.new("void **")
        while lib.pv_memory_region(memory, index, unused[0], size, unused[1]) == 0:
            index, total = index + 1, total + size[0]
        self._memory = total
        statistics, reports = _by_features(activation)
        words = {
            "inflate": _queue(activation.queues[INFLATE]),
            "deflate": _queue(activation.queues[DEFLATE]),
            "statistics": _queue(statistics),
            "reporting": _queue(reports),
            "memory": memory,
            "irq": activation.irq,
            "keep_reported": bool(activation.features & PAGE_POISON and self._poison),
        }
        given = ffi.new("struct pv_balloon_activation *", words)
        check(lib.pv_balloon_start(self._handle, given), f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """End the thread."""
        self._check(lib.pv_balloon_stop(self._handle, int(limit * 1e9)), limit)
        activation, self._activation = self._activation, None
        self._actual = 0
        if self._told and activation is not None:
            lib.pv_virtio_irq_news(activation.irq)

    def _check(self, result: int, limit: float) -> None:
        if result < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def drain(self, limit: float) -> None:
        """End the thread; what it has not done is in the queues."""
        self._check(lib.pv_balloon_drain(self._handle, int(limit * 1e9)), limit)

    def resume(self) -> None:
        """Start another."""
        if self._activation is not None:
            self._start(self._activation)

    def save(self) -> dict[str, object]:
        """Return pages of 4 KiB: those asked for and those the driver says are in the balloon.

        Also what free pages hold, if the driver cares. Statistics are the driver's to send again.
        """
        return {"target": self._target, "actual": self._actual, "poison": self._poison}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned."""
        self._target = fields.integer("target", 0, _PAGES_MAX)
        self._actual = fields.integer("actual", 0, _PAGES_MAX)
        self._poison = fields.integer("poison", 0, _WORD)

    @property
    def ballooned(self) -> int:
        """Return the bytes that the guest's driver says are in the balloon."""
        return min(self._actual * PAGE, self._memory)

    def set_target(self, ballooned: int) -> None:
        """Ask the driver, now or when there is one, to have so many bytes in the balloon."""
        self._target = min(ballooned // PAGE, _PAGES_MAX)
        self.config_changed()

    @property
    def target(self) -> int:
        """Return what was asked for last."""
        return self._target * PAGE

    def news(self) -> str:
        """Let the balloon's size follow the guest, where that is asked for."""
        statistics = self.statistics()
        if self._auto and statistics.count != self._seen:
            self._seen = statistics.count
            self._follow(self._auto, statistics)
        return ""

    def _follow(self, auto: Auto, statistics: Any) -> None:
        values = statistics.values
        available = values[_AVAILABLE] if values[_AVAILABLE] != _UNTOLD else values[_FREE]
        if available == _UNTOLD:
            return
        wanted = auto.target(self._memory, self.ballooned, available)
        if abs(wanted - self.target) >= _STEP:
            self.set_target(wanted)

    def take_events(self) -> tuple[tuple[str, dict[str, object]], ...]:
        """Return BALLOON_CHANGED with the guest's memory, if that is another than it was."""
        actual = self._actual
        if actual == self._told:
            return ()
        self._told = actual
        return (("BALLOON_CHANGED", {"actual": self._memory - self.ballooned}),)

    def stats(self) -> Any:
        """Return a struct pv_balloon_stats (native/balloon/balloon.h) of this moment."""
        stats = ffi.new("struct pv_balloon_stats *")
        lib.pv_balloon_stats(self._handle, stats)
        return stats

    def statistics(self) -> Any:
        """Return a struct pv_balloon_statistics: what the driver said of the guest last."""
        statistics = ffi.new("struct pv_balloon_statistics *")
        lib.pv_balloon_statistics(self._handle, statistics)
        return statistics

    def close(self) -> None:
        """Give the C side back."""
        ffi.release(self._handle)


def _queue(queue: Queue | None) -> tuple[Any, int]:
    return (queue.handle, queue.kick_fd) if queue else (ffi.NULL, -1)


def _by_features(activation: Activation) -> tuple[Queue | None, Queue | None]:
    """Return the queues of statistics and of reports.

    The specification numbers them for good; Linux and QEMU leave no gaps where a feature is not
    negotiated. In both cases they are in this order.
    """
    bits, own = (STATS_VQ, REPORTING), (STATISTICS, REPORTS)
    wanted = [bit for bit in bits if activation.features & bit]
    made = [queue for queue in activation.queues[STATISTICS:] if queue]
    if len(made) == len(wanted):
        found = dict(zip(wanted, made, strict=True))
        return found.get(STATS_VQ), found.get(REPORTING)
    statistics, reports = (
        activation.queues[index] if bit in wanted else None
        for bit, index in zip(bits, own, strict=True)
    )
    return statistics, reports
