"""The registers of virtio-mmio: what they say of the device, its features, and its queues.

They stand in a page that holds the words as they read at this moment. Which writes count, and when,
are the rules of mmio.py. Source: virtio 1.2, 4.2.2.
"""

from __future__ import annotations

from . import registers as r
from .queue_registers import QueueRegisters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, ClassVar

    from ...state import Fields

# Bits of Status, each with the one that it follows.
STEPS = (
    (r.ACKNOWLEDGE, 0),
    (r.DRIVER, r.ACKNOWLEDGE),
    (r.FEATURES_OK, r.DRIVER),
    (r.DRIVER_OK, r.FEATURES_OK),
    (r.FAILED, 0),
)
_STATUS_MAX = 0xFF
_FEATURES_MAX = (1 << 32 * r.FEATURE_WORDS) - 1


class RegisterPage:
    """The words of a page, and what of them a driver wrote; one thread at a time."""

    __slots__ = (
        "_device_features_sel",
        "_driver_features_sel",
        "_offered",
        "_queue_sel",
        "_sizes",
        "_strays",
        "_words",
        "driver_features",
        "queues",
    )

    def __init__(self, page: memoryview, device_type: int, sizes: Sequence[int]) -> None:
        """`sizes` are the largest of each queue; the page is the caller's, but for a view of it.

        What never changes reads as it does from here on, the rest with `forget`.
        """
        self._words = page.cast("I")
        self._sizes = sizes
        self.queues: list[QueueRegisters] = []
        self.driver_features = 0
        self._driver_features_sel = self._device_features_sel = self._queue_sel = 0
        self._strays = False  # bits beyond the 128 that can be offered
        self._offered = 0
        for offset, value in (
            (r.MAGIC_VALUE, r.MAGIC),
            (r.VERSION, 2),
            (r.DEVICE_ID, device_type),
            (r.VENDOR_ID, r.VENDOR),
            # No shared memory region has length and base of all ones.
            (r.SHM_LENGTH, r.WORD),
            (r.SHM_LENGTH + 4, r.WORD),
            (r.SHM_BASE, r.WORD),
            (r.SHM_BASE + 4, r.WORD),
        ):
            self.set(offset, value)

    def set(self, offset: int, value: int) -> None:
        """Let a register read as `value`; one store of four bytes."""
        self._words[offset // 4] = value

    def get(self, offset: int) -> int:
        """Return what a register reads as."""
        return self._words[offset // 4]

    @property
    def status(self) -> int:
        """Return the Status register."""
        return self._words[r.STATUS // 4]

    def write(self, offset: int, value: int) -> bool:
        """Take a word that the driver wrote; False: it is for no register of these."""
        if offset in self._WRITES:
            self._WRITES[offset](self, value)
        elif offset in r.QUEUE_ADDRESSES:
            self._write_queue_address(offset, value)
        else:
            return False
        return True

    def forget(self, features: int) -> None:
        """Let everything that the driver wrote be unwritten, and offer it features."""
        self.driver_features = self._driver_features_sel = 0
        self._strays = False
        self.queues = [QueueRegisters() for _ in self._sizes]
        self._device_features_sel = 0
        self.offer(features)
        self._select_queue(0)

    def release(self) -> None:
        """Give the view of the page back."""
        self._words.release()

    # Features

    def offer(self, features: int) -> None:
        """Let the driver find these features."""
        self._offered = features
        self._select_device_features(self._device_features_sel)

    def misfit(self) -> str:
        """Return why the driver's features cannot be; "": they can."""
        if self._strays or self.driver_features & ~self._offered:
            return "the driver accepts features that were not offered"
        if not self.driver_features & r.VERSION_1:
            return "the driver does not accept VERSION_1 (virtio 1.0)"
        return ""

    def _select_device_features(self, value: int) -> None:
        self._device_features_sel = value
        shown = self._offered >> 32 * value & r.WORD if value < r.FEATURE_WORDS else 0
        self.set(r.DEVICE_FEATURES, shown)

    def _select_driver_features(self, value: int) -> None:
        self._driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        if self.status & (r.DRIVER | r.FEATURES_OK | r.FAILED) != r.DRIVER:
            return
        if self._driver_features_sel >= r.FEATURE_WORDS:
            self._strays = self._strays or value != 0
            return
        shift = 32 * self._driver_features_sel
        self.driver_features = self.driver_features & ~(r.WORD << shift) | value << shift

    # Queues

    def _select_queue(self, value: int) -> None:
        self._queue_sel = value
        there = value < len(self.queues)
        self.set(r.QUEUE_NUM_MAX, self._sizes[value] if there else 0)
        self.set(r.QUEUE_READY, int(there and self.queues[value].ready))

    def _queue_in_setup(self) -> QueueRegisters | None:
        """Return the selected queue if its registers may be written now, QueueReady among them."""
        stage = self.status & (r.FEATURES_OK | r.DRIVER_OK | r.FAILED)
        if stage != r.FEATURES_OK or self._queue_sel >= len(self.queues):
            return None
        return self.queues[self._queue_sel]

    def _write_queue_num(self, value: int) -> None:
        queue = self._queue_in_setup()
        if queue and not queue.ready:
            queue.num = value

    def _write_queue_address(self, register: int, value: int) -> None:
        queue = self._queue_in_setup()
        if queue and not queue.ready:
            queue.addresses[register] = value

    def _write_queue_ready(self, value: int) -> None:
        queue = self._queue_in_setup()
        if queue:
            queue.ready = bool(value & 1)
            self.set(r.QUEUE_READY, int(queue.ready))

    # State

    def save(self, rings: Sequence[Any]) -> dict[str, object]:
        """Return their fields; `rings` has the struct pv_virtqueue of each queue, or NULL."""
        return {
            "status": self.status,
            "interrupt_status": self.get(r.INTERRUPT_STATUS),
            "offered": self._offered,
            "driver_features": self.driver_features,
            "driver_strays": self._strays,
            "device_features_sel": self._device_features_sel,
            "driver_features_sel": self._driver_features_sel,
            "queue_sel": self._queue_sel,
            "queues": [q.save(ring) for q, ring in zip(self.queues, rings, strict=True)],
        }

    def restore(self, fields: Fields, keep: Callable[[int], int]) -> list[tuple[int, int]]:
        """Take what `save` returned; return how far each queue is served; StateError.

        `keep` returns those of the features that were offered which can be again.
        """
        self._restore_status(fields)
        self._restore_features(fields, keep)
        found = fields.items("queues", len(self.queues))
        if len(found) != len(self.queues):
            raise fields.wrong("queues", f"has {len(found)} entries, not {len(self.queues)}")
        places = [q.restore(each) for q, each in zip(self.queues, found, strict=True)]
        self._select_queue(fields.integer("queue_sel", 0, r.WORD))
        return places

    def _restore_status(self, fields: Fields) -> None:
        status = fields.integer("status", 0, _STATUS_MAX)
        known = r.NEEDS_RESET
        for bit, before in STEPS:
            known |= bit if status & before == before else 0
        if status & ~known:
            raise fields.wrong("status", f"{status:#x} is none that a driver comes to")
        pending = fields.integer("interrupt_status", 0, r.INTERRUPT_USED | r.INTERRUPT_CONFIG)
        self.set(r.STATUS, status)
        self.set(r.INTERRUPT_STATUS, pending)

    def _restore_features(self, fields: Fields, keep: Callable[[int], int]) -> None:
        self._offered = keep(fields.integer("offered", 0, _FEATURES_MAX))
        self.driver_features = fields.integer("driver_features", 0, _FEATURES_MAX)
        self._strays = fields.flag("driver_strays")
        if self.status & r.FEATURES_OK and (misfit := self.misfit()):
            lacking = self.driver_features & ~self._offered
            if lacking:
                misfit = f"the guest uses features that there are not here: {lacking:#x}"
            raise fields.wrong("driver_features", misfit)
        self._select_device_features(fields.integer("device_features_sel", 0, r.WORD))
        self._select_driver_features(fields.integer("driver_features_sel", 0, r.WORD))

    _WRITES: ClassVar[dict[int, Callable[[RegisterPage, int], None]]] = {
        r.DEVICE_FEATURES_SEL: _select_device_features,
        r.DRIVER_FEATURES: _write_driver_features,
        r.DRIVER_FEATURES_SEL: _select_driver_features,
        r.QUEUE_SEL: _select_queue,
        r.QUEUE_NUM: _write_queue_num,
        r.QUEUE_READY: _write_queue_ready,
    }
