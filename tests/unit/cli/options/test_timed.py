"""Real-time clock and watchdog, as the options ask for them."""

from __future__ import annotations

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config
from pyvirt.devices.rtc import seconds

from ...refusal import refusal


def rtc(*words: str) -> tuple[str | int, str] | None:
    """Return what the clock goes by, None where there is none."""
    found = config(parse(list(words))).rtc
    return None if found is None else (found.base, found.clock)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], None),
        (["-machine", "microvm,rtc=auto"], None),
        (["-machine", "rtc=on"], ("utc", "host")),
        (["-machine", "rtc=off", "-rtc", "base=localtime"], None),
        # As libvirt passes it, and what StratoVirt leaves alone.
        (["-rtc", "base=utc,driftfix=slew"], None),
        (["-rtc", "base=utc", "-machine", "rtc=on"], ("utc", "host")),
        (["-rtc", "base=localtime"], ("localtime", "host")),
        (["-rtc", "localtime"], ("localtime", "host")),
        (["-rtc", "clock=vm"], ("utc", "vm")),
        (["-rtc", "clock=rt"], None),
        (["-rtc", "base=2026-01-31"], (seconds(2026, 1, 31), "host")),
        (["-rtc", "base=2024-02-29T23:59:58,clock=vm"], (seconds(2024, 2, 29, 86398), "vm")),
    ],
)
def test_rtc(words: list[str], found: tuple[str | int, str] | None) -> None:
    assert rtc(*words) == found


@pytest.mark.parametrize(
    "date",
    ["2026-02-29", "2026-13-01", "2026-00-01", "2026-01-01T24:00:00", "2026-01-01T00:60:00",
     "2026-1-1", "", "now", "2026-01-01T00:00", "\u0662026-01-01"],
)  # fmt: skip
def test_a_date_that_is_none(date: str) -> None:
    assert refusal(lambda: rtc("-rtc", f"base={date}")) == (
        f"-rtc base {date}: not a time; give utc, localtime or one such as 2026-01-31T12:00:00"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-rtc", "clock=sun"], "-rtc clock sun: not one of host, rt, vm"),
        (["-rtc", "driftfix=yes"], "-rtc driftfix yes: not one of none, slew"),
        (["-rtc", "base=utc,date=1"], "-rtc date: not understood here"),
        (["-machine", "rtc=maybe"], "-machine rtc maybe: not one of auto, on, off"),
        (["-device", "ib700,timeout=2"], "-device timeout: not understood here"),
        (
            ["-device", "ib700", "-device", "acpi-watchdog,id=w"],
            "-device acpi-watchdog,id=w: there is a watchdog already; drop one",
        ),
        (
            ["-machine", "discovery=cmdline", "-device", "acpi-watchdog"],
            "-device acpi-watchdog: not with -machine discovery=cmdline, which has no ACPI; ",
        ),
    ],
)
def test_refusals(words: list[str], message: str) -> None:
    assert refusal(lambda: parse(words)).startswith(message)


@pytest.mark.parametrize("name", ["ib700", "acpi-watchdog"])
def test_watchdog(name: str) -> None:
    assert config(parse([])).watchdog == ""
    assert config(parse(["-device", f"{name},id=w0"])).watchdog == name
