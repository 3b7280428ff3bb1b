"""The devices of kvm-unit-tests: `-device pc-testdev` and `-device isa-debug-exit`.

Imported only when one is given. The second is there in any case, on its usual port.
"""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm import layout
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_DEBUG_EXIT_PLACE = {"iobase": layout.DEBUG_EXIT, "iosize": 4}


def parse(texts: Iterable[str]) -> bool:
    """Return whether the values of `-device` ask for pc-testdev; ConfigError."""
    wanted = False
    for text in texts:
        driver, _, rest = text.partition(",")
        places = _DEBUG_EXIT_PLACE if driver == "isa-debug-exit" else {}
        for key, value in pairs("-device", rest, "") if rest else ():
            if key == "id":
                continue
            if key not in places:
                raise ConfigError(f"-device {text}: no such member as {key}; leave it out")
            if not _is(value, places[key]):
                raise ConfigError(f"-device {text}: {key} is {places[key]:#x} here; give that")
        wanted = wanted or driver == "pc-testdev"
    return wanted


def _is(text: str, number: int) -> bool:
    try:
        return int(text, 0) == number
    except ValueError:
        return False
