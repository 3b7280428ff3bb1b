"""The real-time clock of a PC, an MC146818: time and date, an alarm, and 114 bytes of memory.

All of it is Python: Linux reads it once at its boot, and then when somebody asks. Its interrupts
are few, whatever a guest does: the next comes after register C was read, that of the update once
a second, and that of the periodic timer no more often than every 1/64 s.
Source: the chip's data sheet; where a PC has the century, QEMU's docs and Linux's mc146818rtc.h.
"""

from __future__ import annotations

import _thread
import os
import time

from .power import ONES
from .timer import Clock, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..state import Fields

HOST, VM = "host", "vm"  # the clocks it may go by
UTC, LOCALTIME = "utc", "localtime"
_NS = 1_000_000_000
_DAY_S = 86400

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY = 0, 2, 4, 6, 7, 8, 9, 0x32
_TIME = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_ALARM = (5, 3, 1)  # hours, minutes, seconds
_ANY = 0xC0  # in an alarm: this one does not matter
_A, _B, _C, _D = 10, 11, 12, 13
_BYTES = 128

_UPDATING = 1 << 7  # A
_UPDATE_NS = 244_000
_DIVIDER_RESET = 0x60  # of A; both bits: the clock stands
_HALF_A_SECOND = _NS // 2  # which goes by before it moves again
_DIVIDER = 0x26  # of a clock of 32768 Hz, and 1024 periods a second
_SET, _PERIODIC, _ALARMED, _UPDATED = 1 << 7, 1 << 6, 1 << 5, 1 << 4  # B, and as flags C
_SQUARE_WAVE, _BINARY, _24_HOURS = 1 << 3, 1 << 2, 1 << 1
_CAUSES = _PERIODIC | _ALARMED | _UPDATED
_INTERRUPT = 1 << 7  # C
_VALID = 1 << 7  # D
_PM = 1 << 7
_BASE_HZ = 32768
_PERIOD_MIN_NS = _NS // 64
# What the most that registers can say, 255 centuries and 255 years, is below.
_OFFSET_MAX = 1 << 80
_ELAPSED_MAX = 1 << 63


class RtcConfig:
    """What the clock goes by: `base` is UTC, LOCALTIME or a time; `clock` HOST or VM."""

    __slots__ = ("base", "clock")

    def __init__(self, base: str | int = UTC, clock: str = HOST) -> None:
        """Take a time in seconds since 1970, which it shows when the machine is made."""
        self.base = base
        self.clock = clock

    @property
    def is_usual(self) -> bool:
        """Say whether it shows what a guest expects without being told."""
        return (self.base, self.clock) == (UTC, HOST)


def seconds(year: int, month: int, day: int, time_of_day: int = 0) -> int:
    """Return the seconds since 1970 of a date of any year, whose month may be any number."""
    year, month = year + (month - 1) // 12, (month - 1) % 12 + 1
    # Of years that begin in March.
    years = year - (month < 3)
    days = 365 * years + years // 4 - years // 100 + years // 400
    days += (153 * ((month + 9) % 12) + 2) // 5 + day - 719469
    return days * _DAY_S + time_of_day


class Rtc:
    """Two ports: the number of a register, and the register."""

    SIZE = 2

    __slots__ = (
        "_clock",
        "_index",
        "_irq_fd",
        "_last",
        "_lock",
        "_offset",
        "_ram",
        "_seen",
        "_ticks",
        "clock",
        "timer",
    )

    def __init__(self, config: RtcConfig, irq_fd: int) -> None:
        """`irq_fd` is an eventfd of edges, borrowed. PyvirtError: there can be no thread."""
        self.clock: Clock | None = Clock() if config.clock == VM else None
        self._clock: Callable[[], int] = self.clock.now if self.clock else time.time_ns
        # What it shows, less what the clock says; nanoseconds.
        self._offset = 0
        if isinstance(config.base, int):
            self._offset = config.base * _NS - self._clock()
        elif self.clock is not None:
            self._offset = time.time_ns()
        if config.base == LOCALTIME:
            self._offset += time.localtime().tm_gmtoff * _NS
        self._irq_fd = irq_fd
        self._lock = _thread.allocate_lock()
        self._index = 0
        self._ram = bytearray(_BYTES)
        self._ram[_A], self._ram[_B], self._ram[_D] = _DIVIDER, _24_HOURS, _VALID
        self._last = 0  # the time of the last interrupt
        self._seen = self._ticks = 0  # the second, and the period, up to which flags are set
        self._skip()
        self.timer = Timer("rtc", self._on_time)
        if self.clock is None:
            self.timer.thaw()

    def read(self, offset: int, size: int) -> int:
        """Return a register; one that holds flags forgets them."""
        if (offset, size) != (1, 1):
            return ONES
        with self._lock:
            index = self._index
            if index in _TIME and not self._stands:
                self._show()
            value = self._ram[index]
            if index == _A and not self._stands and self._now() % _NS >= _NS - _UPDATE_NS:
                value |= _UPDATING
            if index == _C:
                self._catch_up(is_read=True)
                value = self._ram[_C]
                self._ram[_C] = 0
                self._schedule()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, or write it."""
        if size != 1:
            return
        with self._lock:
            if offset == 0:
                self._index = value & (_BYTES - 1)  # the highest bit masks NMIs on a PC
            else:
                self._write(self._index, value & 0xFF)

    def _write(self, index: int, value: int) -> None:
        if index in {_C, _D}:
            return
        stood = self._stands
        if not stood:
            self._show()
            self._catch_up()
        was_reset = self._is_reset
        self._ram[index] = value & ~_UPDATING if index == _A else value
        if not self._stands and (stood or index in _TIME):
            self._take(at=_HALF_A_SECOND if was_reset else self._now() % _NS)
        elif index == _A:
            self._skip()
        self._schedule()

    @property
    def _is_reset(self) -> bool:
        return self._ram[_A] & _DIVIDER_RESET == _DIVIDER_RESET

    @property
    def _stands(self) -> bool:
        return self._is_reset or bool(self._ram[_B] & _SET)

    def _now(self) -> int:
        return self._clock() + self._offset

    def _code(self, value: int) -> int:
        """Return a number as registers have it."""
        return value if self._ram[_B] & _BINARY else value // 10 % 10 << 4 | value % 10

    def _number(self, code: int) -> int:
        return code if self._ram[_B] & _BINARY else (code >> 4) * 10 + (code & 0xF)

    def _hour(self, code: int) -> int:
        if self._ram[_B] & _24_HOURS:
            return self._number(code)
        return self._number(code & ~_PM) % 12 + (12 if code & _PM else 0)

    def _show(self) -> None:
        """Put the time into the registers."""
        now = time.gmtime(self._now() // _NS)
        hour = self._code(now.tm_hour)
        if not self._ram[_B] & _24_HOURS:
            hour = self._code(now.tm_hour % 12 or 12) | (_PM if now.tm_hour >= 12 else 0)
        self._ram[_HOURS] = hour
        century, year = divmod(now.tm_year, 100)
        values = {
            _SECONDS: now.tm_sec,
            _MINUTES: now.tm_min,
            _WEEKDAY: (now.tm_wday + 1) % 7 + 1,
            _DAY: now.tm_mday,
            _MONTH: now.tm_mon,
            _YEAR: year,
            _CENTURY: century % 100,
        }
        for index, value in values.items():
            self._ram[index] = self._code(value)

    def _take(self, at: int) -> None:
        """Take the time from the registers, at that nanosecond of its second."""
        number = {index: self._number(self._ram[index]) for index in _TIME}
        time_of_day = (self._hour(self._ram[_HOURS]) * 60 + number[_MINUTES]) * 60
        shown = seconds(
            number[_CENTURY] * 100 + number[_YEAR],
            number[_MONTH],
            number[_DAY],
            time_of_day + number[_SECONDS],
        )
        self._offset = shown * _NS + at - self._clock()
        self._skip()

    def _skip(self) -> None:
        """Have no flags for the time so far."""
        self._seen = self._now() // _NS
        self._ticks = self._now() // (self._period() or _NS)

    def _period(self) -> int:
        """Return the periodic timer's period in ns, 0 for none."""
        rate = self._ram[_A] & 0xF
        if rate == 0:
            return 0
        return _NS * (1 << (rate - 1 if rate > 2 else rate + 6)) // _BASE_HZ

    def _alarm(self) -> int | None:
        """Return when the alarm is next after `_seen`, in seconds; None for never."""
        after = self._seen + 1
        day = after - after % _DAY_S
        for start, least in ((day, after % _DAY_S), (day + _DAY_S, 0)):
            found = next(self._alarms(least), None)
            if found is not None:
                return start + found
        return None

    def _alarms(self, least: int) -> Iterator[int]:
        """Yield the seconds of the day, from `least` on, that the alarm means."""
        hours, minutes, seconds_ = (self._meant(index) for index in _ALARM)
        for hour in (hour for hour in hours if hour >= least // 3600):
            for minute in minutes:
                before = hour * 3600 + minute * 60
                if before + 59 >= least:
                    yield from (before + second for second in seconds_ if before + second >= least)

    def _meant(self, index: int) -> range:
        code, most = self._ram[index], 24 if index == _ALARM[0] else 60
        if code & _ANY == _ANY:
            return range(most)
        number = self._hour(code) if index == _ALARM[0] else self._number(code)
        return range(number, min(number + 1, most))

    def _catch_up(self, *, is_read: bool = False) -> None:
        """Set the flags of what has happened, and raise the interrupt that is asked for.

        `is_read` says that somebody is about to see the flags.
        """
        if self._stands:
            return
        now = self._now()
        flags = 0
        if now // _NS > self._seen:
            alarm = self._alarm()
            flags |= _UPDATED
            flags |= _ALARMED if alarm is not None and alarm <= now // _NS else 0
        period = self._period()
        if period and now // period > self._ticks:
            flags |= _PERIODIC
        if flags:
            self._skip()
        before = self._ram[_C]
        self._ram[_C] |= flags
        if self._ram[_C] & self._ram[_B] & _CAUSES and not before & _INTERRUPT:
            self._ram[_C] |= _INTERRUPT
            self._last = now
            if not is_read:
                os.eventfd_write(self._irq_fd, 1)

    def _schedule(self) -> None:
        """Have the timer end when the next interrupt is due."""
        enabled, now = self._ram[_B], self._now()
        ends: list[int] = []
        if not self._stands and not self._ram[_C] & _INTERRUPT:
            if self._ram[_C] & enabled & _CAUSES:
                ends.append(now)
            alarm = self._alarm() if enabled & _ALARMED else None
            if alarm is not None:
                ends.append(alarm * _NS)
            if enabled & _UPDATED:
                ends.append((self._seen + 1) * _NS)
            period = self._period()
            if enabled & _PERIODIC and period:
                ends.append(max((self._ticks + 1) * period, self._last + _PERIOD_MIN_NS))
        if ends:
            self.timer.start(max(0, min(ends) - now))
        else:
            self.timer.stop()

    def _on_time(self) -> None:
        with self._lock:
            self._catch_up()
            self._schedule()

    def reset(self) -> None:
        """Forget the interrupts; time and memory have a battery."""
        with self._lock:
            self._ram[_B] &= ~(_CAUSES | _SQUARE_WAVE)
            self._ram[_C] = 0
            self.timer.stop()

    def save(self) -> dict[str, object]:
        """Return the registers, and what the time is, by the clock that it goes by."""
        with self._lock:
            if not self._stands:
                self._show()
            self._catch_up()
            elapsed = self.clock.now() if self.clock else 0
            return {
                "index": self._index,
                "registers": self._ram.hex(),
                "offset": self._offset,
                "elapsed": elapsed,
            }

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        with self._lock:
            self._index = fields.integer("index", 0, _BYTES - 1)
            self._ram[:] = fields.data("registers", _BYTES)
            self._ram[_A] &= ~_UPDATING
            self._ram[_C] &= _CAUSES | _INTERRUPT
            self._ram[_D] = _VALID
            self._offset = fields.integer("offset", -_OFFSET_MAX, _OFFSET_MAX)
            elapsed = fields.integer("elapsed", 0, _ELAPSED_MAX)
            if self.clock is not None:
                self.clock.set(elapsed)
            self._skip()

    def resume(self) -> None:
        """Go on after `restore`: raise an interrupt again that may have been on its way."""
        with self._lock:
            if self._ram[_C] & _INTERRUPT:
                os.eventfd_write(self._irq_fd, 1)
            self._schedule()
