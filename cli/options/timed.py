"""The options of what has a time of its own: `-rtc`, `-device ib700` or acpi-watchdog.

Imported only when one of them is given.
"""

from __future__ import annotations

import re
import time

from ...devices.rtc import HOST, LOCALTIME, UTC, VM, RtcConfig, seconds
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .parsed import Options

_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d))?", re.ASCII)


def _base(option: str, text: str) -> str | int:
    if text in {UTC, LOCALTIME}:
        return text
    match = _DATE.fullmatch(text)
    if match:
        year, month, day, hour, minute, second = map(int, match.groups("0"))
        found = seconds(year, month, day, (hour * 60 + minute) * 60 + second)
        # There is no such date where that of these seconds is another.
        if time.gmtime(found)[:6] == (year, month, day, hour, minute, second):
            return found
    raise ConfigError(
        f"{option} {text}: not a time; give {UTC}, {LOCALTIME} or one such as 2026-01-31T12:00:00"
    )


def _clock(option: str, text: str) -> str:
    return VM if members.one_of(option, text, (HOST, "rt", VM)) == VM else HOST


_RTC: tuple[members.Member, ...] = (
    ("base", "base", _base),
    ("clock", "clock", _clock),
    ("driftfix", "", members.only("none", "slew")),  # there are no ticks that could be lost
)
_WATCHDOG: tuple[members.Member, ...] = (("id", "id", members.name),)


def rtc(text: str) -> RtcConfig:
    """Return what the value of `-rtc` says; ConfigError."""
    return RtcConfig(**members.read("-rtc", pairs("-rtc", text, "base"), _RTC))


def place_rtc(options: Options) -> None:
    """Decide by `-machine rtc=` whether there is a clock.

    Left to us, it is there when it is to show something else than a guest's own clock does.
    """
    if options.rtc_switch == "on":
        options.rtc = options.rtc or RtcConfig()
    elif options.rtc_switch == "off" or (options.rtc is not None and options.rtc.is_usual):
        options.rtc = None


def watchdog(texts: Sequence[str]) -> str:
    """Return which watchdog the values of `-device` name; ConfigError."""
    if len(texts) > 1:
        raise ConfigError(f"-device {texts[1]}: there is a watchdog already; drop one")
    driver, _, rest = texts[0].partition(",")
    members.read("-device", pairs("-device", rest, "") if rest else [], _WATCHDOG)
    return driver
