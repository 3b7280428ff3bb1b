"""How a guest ends itself, and how it is asked to: sleep and reset registers, the power button.

Python devices of a few registers, used once in a guest's life; those that are written call back
on the writing vCPU's thread. Sources: ACPI 6.4, 4.8.3.7 (sleep control), 4.8.3.6 (reset register)
and 5.6.9 (generic event device); StratoVirt's `reboot=k` for the i8042.
"""

from __future__ import annotations

import _thread
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import Fields

ONES = 0xFFFF_FFFF_FFFF_FFFF


class Stateless:
    """A device that keeps nothing from one access to the next; see state.py."""

    __slots__ = ()

    def save(self) -> dict[str, object]:
        """Return no fields."""
        return {}

    def restore(self, fields: Fields) -> None:
        """Take none."""

    def resume(self) -> None:
        """Nothing was on its way."""


class AcpiPower(Stateless):
    """Sleep control, sleep status and reset register, one byte each in this order."""

    SIZE = 3
    S5 = 5
    RESET_VALUE = 1
    _SLEEP_ENABLE = 1 << 5

    __slots__ = ("_on_reset", "_on_shutdown")

    def __init__(self, on_shutdown: Callable[[], None], on_reset: Callable[[], None]) -> None:
        self._on_shutdown = on_shutdown
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> int:
        """Sleep status never shows a wake: the machine does not sleep, it ends."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Act on SLP_EN with S5's type, and on the reset value."""
        if offset == 0 and value & self._SLEEP_ENABLE and value >> 2 & 7 == self.S5:
            self._on_shutdown()
        elif offset == 2 and value == self.RESET_VALUE:
            self._on_reset()


class I8042(Stateless):
    """A keyboard controller that is not there, except for its reset line (command 0xfe).

    The status port reads as an absent device's but for "input buffer full": Linux's driver then
    gives up after 16 reads instead of half a second, and `reboot=k` does not wait for it.
    """

    PORT = 0x64
    _ABSENT_BUT_READY = 0xFD
    _PULSE_RESET = 0xFE

    __slots__ = ("_on_reset",)

    def __init__(self, on_reset: Callable[[], None]) -> None:
        self._on_reset = on_reset

    def read(self, offset: int, size: int) -> int:
        """Return the status."""
        return ONES & ~0xFF | self._ABSENT_BUT_READY

    def write(self, offset: int, size: int, value: int) -> None:
        """Act on the reset command alone."""
        if value & 0xFF == self._PULSE_RESET:
            self._on_reset()


class EventDevice:
    """The selector behind ACPI's generic event device: a read tells what happened, and clears it.

    The tables say which bit is what; they read it when the interrupt comes.
    """

    SIZE = 4
    POWER_BUTTON = 1 << 0
    GENERATION = 1 << 1
    PLUG = 1 << 2
    EVENTS = 0xFFFF_FFFF  # all that there can be

    __slots__ = ("_irq_fd", "_lock", "_pending")

    def __init__(self, irq_fd: int) -> None:
        """`irq_fd` is an eventfd of edges, borrowed."""
        self._irq_fd = irq_fd
        self._pending = 0
        self._lock = _thread.allocate_lock()

    def press_power_button(self) -> None:
        """Ask the guest to switch itself off; any thread. Whether it does is its own business."""
        self._raise(self.POWER_BUTTON)

    def tell_generation(self) -> None:
        """Tell the guest that its generation ID is another; any thread."""
        self._raise(self.GENERATION)

    def tell_plug(self) -> None:
        """Tell the guest that a device has come; any thread."""
        self._raise(self.PLUG)

    def _raise(self, event: int) -> None:
        with self._lock:
            self._pending |= event
        os.eventfd_write(self._irq_fd, 1)

    def reset(self) -> None:
        """Forget what the guest has not looked at."""
        with self._lock:
            self._pending = 0

    def save(self) -> dict[str, object]:
        """Return what the guest has not looked at."""
        with self._lock:
            return {"pending": self._pending}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        pending = fields.integer("pending", 0, self.EVENTS)
        with self._lock:
            self._pending = pending

    def resume(self) -> None:
        """Raise the interrupt again, after `restore`, if there is something to look at."""
        if self._pending:
            os.eventfd_write(self._irq_fd, 1)

    def read(self, offset: int, size: int) -> int:
        """Return and clear the events; a read of a part leaves them."""
        with self._lock:
            pending = self._pending
            if (offset, size) == (0, self.SIZE):
                self._pending = 0
        return pending >> 8 * offset

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing can be written."""
