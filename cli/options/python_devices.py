"""The option that describes a virtio device in Python: `-device python`.

Imported only when it is given.
"""

from __future__ import annotations

from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ...devices.virtio.device import Device
    from .gather import Parts

_OWN = ("file", "class", "id")


class PythonDeviceConfig:
    """One such device: where its class is, and what its constructor gets."""

    __slots__ = ("class_name", "id", "options", "path")

    def __init__(self, path: str, class_name: str, id: str, options: Mapping[str, str]) -> None:  # noqa: A002
        self.path = path
        self.class_name = class_name
        self.id = id
        self.options = options

    def make(self) -> Device:
        """Import the file and make the device; ConfigError."""
        from ...devices.virtio.python_file import load

        return load(self.path, self.id, self.class_name, self.options)


def read(texts: Iterable[str], _parts: Parts) -> tuple[PythonDeviceConfig, ...]:
    """Return what the values of `-device python` say, in their order; ConfigError."""
    devices: dict[str, PythonDeviceConfig] = {}
    for text in texts:
        rest = text.partition(",")[2]
        given = dict(pairs("-device", rest, "")) if rest else {}
        if not given.get("file"):
            raise ConfigError(f"-device {text}: names no file; give python,file=FILE")
        name = members.name("-device id", given.get("id", f"python{len(devices)}"))
        if name in devices:
            raise ConfigError(f"-device id={name}: there is one of that name; give another")
        options = {key.replace("-", "_"): value for key, value in given.items() if key not in _OWN}
        for key in options:
            if not key.isidentifier():
                raise ConfigError(f"-device {text}: {key or 'an empty member'} is no name")
        devices[name] = PythonDeviceConfig(given["file"], given.get("class", ""), name, options)
    return tuple(devices.values())
