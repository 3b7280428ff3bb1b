"""An option in a configuration file, and where it stands there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ConfigError

if TYPE_CHECKING:
    from .positions import Positions

# Of the options whose value has a first word without a name.
FIRST = {
    "device": "driver",
    "netdev": "type",
    "object": "qom-type",
    "chardev": "backend",
    "numa": "type",
}


class Entry:
    """One option in a file: its name, its value or the members of that, and where it stands."""

    __slots__ = ("name", "places", "value")

    def __init__(self, name: str, value: Any, places: dict[str, str]) -> None:
        """`value` is text, None for an option without one, or a dict; `places` as of Placed."""
        self.name = name
        self.value = value
        self.places = places


class Source:
    """A file, and where its members stand."""

    __slots__ = ("_path", "_where")

    def __init__(self, path: str, where: Positions) -> None:
        self._path = path
        self._where = where

    def place(self, *way: str | int) -> str:
        """Return FILE:LINE:COLUMN of a member, or of the nearest that it is in."""
        while way not in self._where:
            way = way[:-1]
        line, column = self._where[way]
        return f"{self._path}:{line}:{column}"

    def error(self, text: str, *way: str | int) -> ConfigError:
        """Return the error of a member."""
        return ConfigError(f"{self.place(*way)}: {text}")

    def places(self, *way: str | int, members: dict[str, Any] | None = None) -> dict[str, str]:
        """Return the places of an option and of its members."""
        own = {name: self.place(*way, name) for name in members or {}}
        return own | {"": self.place(*way)}
