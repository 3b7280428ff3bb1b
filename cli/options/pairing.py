"""Options that describe a device in two halves, the host's side and the guest's, or in one.

`-drive` and `-netdev` are the host's side; a `-device` names one of them by its id. `-disk` and
`-net` are both sides in one.
"""

from __future__ import annotations

from ...errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fields = dict[str, Any]

_BACKEND, _DEVICE, _WHOLE = range(3)


class Pairing:
    """What the options of one kind of device say so far, in their order."""

    __slots__ = ("_backend", "_devices", "_given", "_names", "_prefix")

    def __init__(self, backend: str, prefix: str) -> None:
        """`backend` is the option of the host's side, and the member of `-device` that names one.

        `prefix` and a number are the id of a device that has none.
        """
        self._backend = backend
        self._prefix = prefix
        self._names: set[str] = set()  # of backends
        self._devices: set[str] = set()
        self._given: list[tuple[int, Fields]] = []

    def add_backend(self, fields: Fields) -> None:
        """Add the host's side of a device, which has an `id`; ConfigError."""
        self._enter(_BACKEND, f"-{self._backend}", fields)

    def add_whole(self, option: str, fields: Fields) -> None:
        """Add a device in one option; it is given an `id` if it has none. ConfigError."""
        number = len(self._given)
        while "id" not in fields:
            if f"{self._prefix}{number}" not in self._names:
                fields["id"] = f"{self._prefix}{number}"
            number += 1
        self._enter(_WHOLE, option, fields)

    def _enter(self, kind: int, option: str, fields: Fields) -> None:
        name = fields["id"]
        if name in self._names:
            raise ConfigError(f"{option} id={name}: there is one of that name; give another")
        self._names.add(name)
        self._given.append((kind, fields))

    def add_device(self, text: str, fields: Fields) -> None:
        """Add the guest's side of a device, whose own id is `device`; ConfigError.

        `text` is the option's value.
        """
        if self._backend not in fields:
            raise ConfigError(f"-device {text}: names no {self._backend}; give {self._backend}=ID")
        name = fields.get("device")
        if name in self._devices:
            raise ConfigError(f"-device id={name}: there is one of that name; give another")
        if name is not None:
            self._devices.add(name)
        self._given.append((_DEVICE, fields))

    def devices(self) -> list[tuple[Fields, Fields]]:
        """Return both sides of each device, the guest's first, in the order of their options.

        The second is empty for what is one: a device in one option, or a backend that no device
        names, in its own place. ConfigError when the options do not match.
        """
        backends = {fields["id"]: fields for kind, fields in self._given if kind == _BACKEND}
        named: set[str] = set()
        for kind, fields in self._given:
            if kind != _DEVICE:
                continue
            name = fields[self._backend]
            where = f"-device {self._backend}={name}"
            if name in named or (name in self._names and name not in backends):
                raise ConfigError(f"{where}: has a device already; drop one")
            if name not in backends:
                raise ConfigError(f"{where}: there is no such -{self._backend}; add id={name}")
            named.add(name)
        return [
            (fields, backends[fields[self._backend]] if kind == _DEVICE else {})
            for kind, fields in self._given
            if kind != _BACKEND or fields["id"] not in named
        ]
