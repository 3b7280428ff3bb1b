"""Watchdogs: a timer that a guest has to start anew, again and again, lest something is done.

Each start is a write that comes to Python, which is enough for what happens every few seconds; it
wakes no thread (timer.py). What is done is the machine's (vmm/end.py).
"""

from __future__ import annotations

from .power import ONES
from .timer import Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import Fields

_NS_PER_S = 1_000_000_000
_LEFT_MAX = 1 << 48  # nanoseconds; more than any of them can be set to


class _Watchdog:
    """What they share; vCPUs' threads, and the timer's."""

    __slots__ = ("_on_fired", "has_fired", "timer")

    def __init__(self, on_fired: Callable[[], None]) -> None:
        """`on_fired` is called on the timer's thread."""
        self._on_fired = on_fired
        self.has_fired = False  # until the guest has looked; a reset leaves it
        self.timer = Timer("watchdog", self._fire)

    def _fire(self) -> None:
        self.has_fired = True
        self._on_fired()

    def reset(self) -> None:
        """Stop, as after power-on."""
        self.timer.stop()

    def save(self) -> dict[str, object]:
        """Return whether it runs, with how many nanoseconds left, and whether it has fired."""
        left = self.timer.left()
        return {"runs": left is not None, "left": left or 0, "fired": self.has_fired}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        self.has_fired = fields.flag("fired")
        runs, left = fields.flag("runs"), fields.integer("left", 0, _LEFT_MAX)
        if runs:
            self.timer.start(left)
        else:
            self.timer.stop()

    def resume(self) -> None:
        """Nothing was on its way."""


class Ib700(_Watchdog):
    """QEMU's ib700: a write to its first port stops it, one to its third starts it.

    The low four bits of what is written there are the time: 0 for 30 s, 1 for 28 s, 15 for none.
    Source: the table in Linux's ib700wdt.c.
    """

    SIZE = 3
    STOP, START = 0, 2  # the ports
    _LONGEST_S = 30
    _STEP_S = 2

    __slots__ = ()

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """Stop it, or start it anew."""
        if offset == self.STOP:
            self.timer.stop()
        elif offset == self.START:
            self.timer.start((self._LONGEST_S - self._STEP_S * (value & 0xF)) * _NS_PER_S)


class AcpiWatchdog(_Watchdog):
    """The registers that the table of actions for watchdogs (WDAT) tells a guest about.

    Bytes: whether it runs; what is written to start it anew; whether it has fired, where a 1
    clears that. Words: the time that it is given, and what is left of it, in periods.
    Source: Hardware Watchdog Timers Design Specification (Microsoft, 2006); vmm/boot/wdat.py.
    """

    SIZE = 8
    RUN, KICK, FIRED, COUNTDOWN, LEFT = 0, 1, 2, 4, 6
    PERIOD_MS = 100
    COUNT_MAX = 0xFFFF
    _COUNT = 300  # 30 s
    _PERIOD_NS = PERIOD_MS * 1_000_000

    __slots__ = ("_count",)

    def __init__(self, on_fired: Callable[[], None]) -> None:
        super().__init__(on_fired)
        self._count = self._COUNT

    def read(self, offset: int, size: int) -> int:
        """Return a register."""
        left = self.timer.left()
        return {
            self.RUN: int(left is not None),
            self.FIRED: int(self.has_fired),
            self.COUNTDOWN: self._count,
            self.LEFT: -(-(left or 0) // self._PERIOD_NS),
        }.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Act on a register; a new time counts from the next start."""
        is_running = self.timer.left() is not None
        if offset == self.RUN and not value & 1:
            self.timer.stop()
        elif offset == self.RUN or (offset == self.KICK and is_running):
            self.timer.start(self._count * self._PERIOD_NS)
        elif offset == self.FIRED and value & 1:
            self.has_fired = False
        elif offset == self.COUNTDOWN:
            self._count = max(1, value & self.COUNT_MAX)

    def reset(self) -> None:
        """Stop, with the time as after power-on."""
        super().reset()
        self._count = self._COUNT

    def save(self) -> dict[str, object]:
        """Return the time that it is given, too."""
        return {**super().save(), "count": self._count}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        super().restore(fields)
        self._count = fields.integer("count", 1, self.COUNT_MAX)
