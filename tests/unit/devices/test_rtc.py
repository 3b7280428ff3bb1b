"""The real-time clock: what its registers show and take, and when it interrupts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices import rtc
from pyvirt.devices.rtc import Rtc, RtcConfig, seconds
from pyvirt.errors import StateError
from pyvirt.state import Fields

S = 10**9
A, B, C, D, CENTURY = 10, 11, 12, 13, 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 4, 2
# A Saturday.
NOON = seconds(2026, 11, 28, 12 * 3600)


class Chip(Rtc):
    """One whose clock and timer are the test's."""

    def __init__(self, config: RtcConfig | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        super().__init__(config or RtcConfig(), self.fd)
        self.timer.close()
        self.timer = self  # type: ignore[assignment]
        self.due: int | None = None
        self.at = NOON * S
        self._clock = lambda: self.at
        self._skip()

    def start(self, ns: int) -> None:
        self.due = self.at + ns

    def stop(self) -> None:
        self.due = None

    def is_due(self) -> bool:
        return self.due is not None

    def go(self, to: float) -> int:
        """Let time pass to so many seconds after noon; return how often it interrupted."""
        to_ns = NOON * S + round(to * S)
        count = 0
        while self.due is not None and self.due <= to_ns:
            self.at, self.due = self.due, None
            self._on_time()
            count += self.interrupted()
        self.at = to_ns
        return count

    def interrupted(self) -> bool:
        try:
            return os.eventfd_read(self.fd) > 0
        except BlockingIOError:
            return False

    def __getitem__(self, register: int) -> int:
        self.write(0, 1, register)
        return self.read(1, 1)

    def __setitem__(self, register: int, value: int) -> None:
        self.write(0, 1, 0x80 | register)
        self.write(1, 1, value)

    def shown(self) -> str:
        century, year, month, day, weekday, hour, minute, second = (
            self[register] for register in (CENTURY, 9, 8, 7, 6, 4, 2, 0)
        )
        date = f"{century:02x}{year:02x}-{month:02x}-{day:02x}"
        return f"{date} {weekday} {hour:02x}:{minute:02x}:{second:02x}"


@pytest.fixture
def chip() -> Iterator[Chip]:
    found = Chip()
    yield found
    os.close(found.fd)


def test_it_shows_the_hosts_time(chip: Chip) -> None:
    assert chip.shown() == "2026-11-28 7 12:00:00"
    assert (chip[A], chip[B], chip[D]) == (0x26, H24, 0x80)
    chip.go(3600 * 36 + 61)
    assert chip.shown() == "2026-11-30 2 00:01:01"


@pytest.mark.parametrize(
    ("hour", "binary", "bcd"),
    [
        (0, 12, 0x12),
        (1, 1, 1),
        (11, 11, 0x11),
        (12, 0x8C, 0x92),
        (13, 0x81, 0x81),
        (23, 0x8B, 0x91),
    ],
)
def test_hours_of_twelve(chip: Chip, hour: int, binary: int, bcd: int) -> None:
    chip.go((hour - 12) * 3600)
    chip[B] = 0
    assert chip[4] == bcd
    chip[B] = BINARY
    assert (chip[4], chip[9], chip[CENTURY]) == (binary, 26, 20)
    chip[4] = binary
    chip[B] = BINARY | H24
    assert chip[4] == hour


def test_the_hosts_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    chip = Chip(RtcConfig("localtime"))
    assert chip.shown() == "2026-11-28 7 15:00:00"
    os.close(chip.fd)
    monkeypatch.delenv("TZ")
    time.tzset()


def test_a_time_of_the_users() -> None:
    device = Rtc(RtcConfig(NOON, "vm"), 0)
    assert device.clock is not None
    device.write(0, 1, 4)
    assert device.read(1, 1) == 0x12
    device.write(0, 1, 9)
    assert device.read(1, 1) == 0x26
    device.timer.close()


def test_a_driver_sets_it_as_linux_does(chip: Chip) -> None:
    chip.go(0.3)
    chip[B] = SET | H24
    chip[A] = 0x70 | 6
    for register, value in {
        0: 0x50,
        2: 0x59,
        4: 0x23,
        7: 0x29,
        8: 2,
        9: 0x96,
        CENTURY: 0x19,
    }.items():
        chip[register] = value
    chip.go(20)
    assert chip.shown().startswith("1996-02-29")
    chip[B] = H24
    chip[A] = 0x26
    assert chip.shown() == "1996-02-29 5 23:59:50"
    chip.go(29.49)
    assert chip.shown() == "1996-02-29 5 23:59:59"
    chip.go(29.5)  # half a second after the divider was let go
    assert chip.shown() == "1996-03-01 6 00:00:00"


def test_a_register_that_is_written_while_it_runs_counts_at_once(chip: Chip) -> None:
    chip.go(0.5)
    chip[2] = 0x30
    assert chip.shown() == "2026-11-28 7 12:30:00"
    chip.go(1)
    assert chip.shown() == "2026-11-28 7 12:30:01"


@given(st.dictionaries(st.integers(0, 127), st.integers(0, 255)), st.integers(0, 255))
def test_no_value_is_too_odd(values: dict[int, int], mode: int) -> None:
    chip = Chip()
    chip[B] = mode | SET
    for register, value in values.items():
        chip[register] = value
    chip[B] = mode & ~SET
    chip.shown()
    chip.go(86400 if not mode & (PIE | UIE) else 3)
    chip.shown()
    fields = Fields(chip.save())
    other = Chip()
    other.restore(fields)
    fields.done()
    os.close(chip.fd)
    os.close(other.fd)


def test_an_update_is_announced(chip: Chip) -> None:
    chip.go(0.9997)
    assert chip[A] == 0x26
    chip.go(0.9998)
    assert chip[A] == 0xA6
    chip.go(1)
    assert chip[A] == 0x26
    chip[B] = SET
    chip.go(1.9998)
    assert chip[A] == 0x26


def test_memory_is_kept_over_a_reset(chip: Chip) -> None:
    for register in range(14, 128):
        if register != CENTURY:
            chip[register] = register
    chip[B] = PIE | AIE | UIE | H24
    chip.reset()
    assert [chip[n] for n in range(14, 128) if n != CENTURY] == [
        n for n in range(14, 128) if n != CENTURY
    ]
    assert chip[B] == H24
    assert chip.due is None
    chip[C], chip[D] = 1, 1
    assert (chip[C], chip[D]) == (0, 0x80)


def test_the_ports_take_bytes(chip: Chip) -> None:
    chip.write(0, 2, 0x0A0B)
    assert chip._index == 0
    assert chip.read(0, 1) & 0xFF == chip.read(1, 2) & 0xFF == 0xFF


@pytest.mark.parametrize(
    ("alarm", "when"),
    [
        ((0x12, 0x00, 0x05), 5),
        ((0x13, 0x30, 0x00), 5400),
        ((0x12, 0x00, 0x00), 86400),
        ((0x11, 0x59, 0x59), 86399),
        ((0xFF, 0x00, 0x00), 3600),
        ((0xC0, 0x01, 0xFF), 60),
        ((0xFF, 0xFF, 0x30), 30),
        ((0xFF, 0xFF, 0xFF), 1),
        ((0x00, 0xFF, 0xFF), 43200),
    ],
)
def test_an_alarm_interrupts_once(chip: Chip, alarm: tuple[int, ...], when: int) -> None:
    for register, value in zip((5, 3, 1), alarm, strict=True):
        chip[register] = value
    chip[B] = H24 | AIE
    assert chip.due == (NOON + when) * S
    assert chip.go(when - 0.001) == 0
    assert chip.go(when + 0.5) == 1
    assert not chip.is_due()
    assert chip[C] & 0xB0 == 0xB0
    assert chip[C] == 0
    assert chip.is_due()


@pytest.mark.parametrize("alarm", [(0x24, 0, 0), (0x12, 0x60, 0), (0x12, 0, 0x99), (0xAA, 0, 0)])
def test_an_alarm_at_no_time_never_comes(chip: Chip, alarm: tuple[int, ...]) -> None:
    for register, value in zip((5, 3, 1), alarm, strict=True):
        chip[register] = value
    chip[B] = H24 | AIE
    assert chip.due is None


def test_flags_are_there_without_interrupts(chip: Chip) -> None:
    chip[5], chip[3], chip[1] = 0x12, 0, 2
    chip.go(1.5)
    assert chip[C] == 0x50
    chip.go(2.5)
    assert chip[C] == 0x70
    assert chip[C] == 0
    assert not chip.interrupted()
    chip.go(3.5)
    chip[B] = H24 | UIE
    assert chip.go(3.5) == 1


def test_updates_interrupt_once_a_second_for_who_reads_c(chip: Chip) -> None:
    chip[B] = H24 | UIE
    assert chip.go(10) == 1
    count = 0
    for quarter in range(40, 81):
        assert chip[C] in {0, 0xD0, 0x40, 0x50}
        count += chip.go(quarter / 4)
    assert count == 10


def test_there_is_one_interrupt_until_c_is_read(chip: Chip) -> None:
    chip[B] = H24 | UIE | AIE | PIE
    assert chip.go(1) == 1
    for second in range(2, 5):
        chip.go(second)
        chip[50] = second
        assert not chip.interrupted()


@pytest.mark.parametrize("rate", range(16))
def test_periodic_interrupts_have_a_limit(chip: Chip, rate: int) -> None:
    chip[A] = 0x20 | rate
    chip[B] = H24 | PIE
    period = {0: 0, 1: 1 / 256, 2: 1 / 128}.get(rate, 2 ** (rate - 1) / 32768)
    count = 0
    for step in range(1, 1024):
        if chip.go(step / 1024):
            count += 1
            assert chip[C] & 0xC0 == 0xC0
    expected = 0 if rate == 0 else int(1 / max(period, 1 / 64))
    assert expected - 2 <= count <= expected


def test_state(chip: Chip) -> None:
    chip[5], chip[3], chip[1] = 0x12, 0, 5
    chip[B] = H24 | AIE
    chip[0] = 0x30
    chip.go(1)
    other = Chip()
    fields = Fields(chip.save())
    other.restore(fields)
    fields.done()
    other.at = chip.at
    assert not other.is_due()
    other.resume()
    assert other.shown() == chip.shown()
    assert other.is_due()
    other.go(86400)
    fields = Fields(other.save())
    chip.restore(fields)
    chip.resume()
    assert chip.interrupted()
    for name, value in (("index", 128), ("registers", "00"), ("offset", 1 << 81), ("elapsed", -1)):
        with pytest.raises(StateError, match=name):
            other.restore(Fields({**chip.save(), name: value}))
    os.close(other.fd)


@given(st.integers(-(10**11), 10**12))
def test_seconds_of_a_date(at: int) -> None:
    year, month, day, hour, minute, second = time.gmtime(at)[:6]
    assert seconds(year, month, day, (hour * 60 + minute) * 60 + second) == at


def test_months_beyond_a_year() -> None:
    assert seconds(2025, 14, 1) == seconds(2026, 2, 1)
    assert seconds(2026, 0, 1) == seconds(2025, 12, 1)
    assert rtc._ALARM == (5, 3, 1)
