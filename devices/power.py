"""How a guest ends itself: ACPI's sleep and reset registers, and the keyboard controller's reset.

Python devices of a few registers, written once in a guest's life; each calls back on the
writing vCPU's thread. Sources: ACPI 6.4, 4.8.3.7 (sleep control) and 4.8.3.6 (reset register);
StratoVirt's `reboot=k` for the i8042.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ONES = 0xFFFF_FFFF_FFFF_FFFF


class AcpiPower:
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


class I8042:
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
