"""WDAT, the table of actions by which a guest drives a watchdog that it knows nothing of.

Imported only when the machine has one. Source: Hardware Watchdog Timers Design Specification
(Microsoft, 2006), and what Linux's drivers/acpi/acpi_watchdog.c and wdat_wdt.c ask for.
"""

from __future__ import annotations

from struct import pack

from ...devices.watchdog import AcpiWatchdog
from .. import layout
from .acpi import table

_HEADER_SIZE = 32
_NO_PCI = 0xFF
_ENABLED = 1
_IO_SPACE = 1

# Actions, and the kinds of instruction that carry one out.
_RESET, _GET_LEFT, _GET_COUNTDOWN, _SET_COUNTDOWN = 1, 4, 5, 6
_GET_RUNNING, _SET_RUNNING, _GET_STOPPED, _SET_STOPPED = 8, 9, 10, 11
_GET_STATUS, _SET_STATUS = 32, 33
_READ_VALUE, _READ_COUNTDOWN, _WRITE_VALUE, _WRITE_COUNTDOWN = range(4)


def _entry(action: int, instruction: int, register: int, value: int = 0, size: int = 1) -> bytes:
    """Return an action of one instruction on a register of `size` bytes."""
    place = pack("<BBBBQ", _IO_SPACE, 8 * size, 0, size, layout.ACPI_WATCHDOG + register)
    mask = (1 << 8 * size) - 1
    return pack("<BBH", action, instruction, 0) + place + pack("<II", value, mask)


def build() -> bytes:
    """Return the table of devices/watchdog.py's AcpiWatchdog."""
    dog = AcpiWatchdog
    entries = (
        _entry(_RESET, _WRITE_VALUE, dog.KICK, 1),
        _entry(_GET_LEFT, _READ_COUNTDOWN, dog.LEFT, size=2),
        _entry(_GET_COUNTDOWN, _READ_COUNTDOWN, dog.COUNTDOWN, size=2),
        _entry(_SET_COUNTDOWN, _WRITE_COUNTDOWN, dog.COUNTDOWN, size=2),
        _entry(_GET_RUNNING, _READ_VALUE, dog.RUN, 1),
        _entry(_SET_RUNNING, _WRITE_VALUE, dog.RUN, 1),
        _entry(_GET_STOPPED, _READ_VALUE, dog.RUN, 0),
        _entry(_SET_STOPPED, _WRITE_VALUE, dog.RUN, 0),
        _entry(_GET_STATUS, _READ_VALUE, dog.FIRED, 1),
        _entry(_SET_STATUS, _WRITE_VALUE, dog.FIRED, 1),
    )
    head = pack(
        "<IHBBB3xIIIB3xI",
        _HEADER_SIZE,
        _NO_PCI,  # of 16 bits, and yet Linux compares it with this
        _NO_PCI,
        _NO_PCI,
        _NO_PCI,
        dog.PERIOD_MS,
        dog.COUNT_MAX,
        1,
        _ENABLED,
        len(entries),
    )
    return table(b"WDAT", 1, head + b"".join(entries))
