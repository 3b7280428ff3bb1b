"""The option that describes the board: `-machine`.

Imported only when it is given.
"""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.config import DISCOVERIES, SLOTS
from . import members
from .members import one_of, pairs
from .parsed import ACCELERATORS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .parsed import Options

# Members that take one of some words, and where that is stored.
_WORDS = {
    "discovery": ("discovery", DISCOVERIES),
    "accel": ("accel", ACCELERATORS),
    "rtc": ("rtc_switch", ("auto", "on", "off")),
    "slots": ("slots", SLOTS),
}
# Members that are on or off, and where that is stored, "" for nowhere.
_SWITCHES = {
    "mem-share": "share",
    "mem_share": "share",
    "pit": "pit",
    "dump-guest-core": "dump_guest_core",
    "dump_guest_core": "dump_guest_core",
    "usb": "",
}


def read(options: Options, text: str) -> None:
    """Put what the value of `-machine` says into the options; ConfigError."""
    for key, value in pairs("-machine", text, "type"):
        if key == "type":
            if value.lower() != "microvm":
                raise ConfigError(f"-machine {text}: the only machine type is microvm")
        elif key in _WORDS:
            field, words = _WORDS[key]
            setattr(options, field, one_of(f"-machine {key}", value, words))
        elif key == "memory-backend":
            options.memory_backend = members.name(f"-machine {key}", value)
        elif key in _SWITCHES:
            is_on = members.switch(f"-machine {key}", value)
            if _SWITCHES[key]:
                setattr(options, _SWITCHES[key], is_on)
        else:
            raise ConfigError(f"-machine {text}: no such member as {key}; see pyvirt run -help")
