"""A device that a monitor's client plugs, as `-device` reads it from the command line."""

from __future__ import annotations

from ...errors import ConfigError
from .gather import Gathered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ...devices.virtio.device import DeviceConfig

    Given = list[tuple[str, str]]


_PORTS, _PORTS_DEVICE = ("virtserialport", "virtconsole"), "virtio-serial-device"


def maker(
    given: Given,
) -> Callable[[str, Mapping[str, str], Mapping[str, str]], DeviceConfig]:
    """Return what makes a configuration of a driver, its members, and the chardevs that there are.

    `given` are the options of the command line, of which the objects can be named. Chardevs are the
    paths of sockets by their ids. ConfigError, with `device_add` in place of the option.
    """
    objects = [text for name, text in given if name == "object"]

    def make(driver: str, members: Mapping[str, str], chardevs: Mapping[str, str]) -> DeviceConfig:
        named = set(members.values())
        words: Given = [("object", text) for text in objects if named & set(_ids(text))]
        words += [
            ("chardev", f"socket,id={_value(id_)},path={_value(path)}")
            for id_, path in chardevs.items()
            if id_ in named
        ]
        if driver in _PORTS:
            # It comes on a device of its own, to which no port can be added later.
            words.append(("device", f"{_PORTS_DEVICE},id={_value(members['id'])}"))
        text = ",".join([driver, *(f"{name}={_value(value)}" for name, value in members.items())])
        try:
            (config,) = Gathered([*words, ("device", text)]).devices
        except ConfigError as error:
            raise ConfigError(str(error).replace("-device ", "device_add ")) from None
        return config

    return make


def _ids(text: str) -> list[str]:
    return [word.removeprefix("id=") for word in text.split(",") if word.startswith("id=")]


def _value(text: str) -> str:
    """Return a value as it stands within an option: two commas are one."""
    return text.replace(",", ",,")
