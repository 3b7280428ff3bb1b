"""The options that describe ports: `-device virtserialport` on `-device virtio-serial-device`.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices.chardev import SOCKET
from ...devices.virtio.console import NAME_BYTES, PORTS_MAX, ConsoleConfig, PortConfig
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ...devices.chardev import ChardevConfig
    from .gather import Parts

SERIAL, PORT = "virtio-serial-device", "virtserialport"
_ID = "serial0"


def _port_name(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if not 1 <= size <= NAME_BYTES:
        raise ConfigError(f"{option}: {size} bytes, a port's name has 1 to {NAME_BYTES}")
    return text


_SERIAL: tuple[members.Member, ...] = (
    ("id", "id", members.name),
    ("max_ports", "ports_max", members.number(2, PORTS_MAX)),
)
_PORT: tuple[members.Member, ...] = (
    ("chardev", "chardev", members.name),
    ("id", "id", members.name),
    ("name", "name", _port_name),
    ("nr", "number", members.number(1, PORTS_MAX - 1)),
    ("bus", "bus", members.name),
)


class Ports:
    """What the options say so far, in their order."""

    __slots__ = ("_ports", "_serial")

    def __init__(self) -> None:
        self._serial: dict[str, Any] | None = None
        self._ports: list[dict[str, Any]] = []

    def add(self, text: str) -> None:
        """Take the value of a `-device` that is one of these two."""
        driver, _, rest = text.partition(",")
        given = pairs("-device", rest, "") if rest else []
        if driver == PORT:
            self._add_port(text, members.read("-device", given, _PORT))
            return
        if self._serial is not None:
            raise ConfigError(f"-device {text}: there is one already; put all ports on that")
        self._serial = members.read("-device", given, _SERIAL)

    def _add_port(self, text: str, fields: dict[str, Any]) -> None:
        if "chardev" not in fields:
            raise ConfigError(f"-device {text}: names no chardev; give chardev=ID")
        for key, word in (("id", "id"), ("name", "name"), ("number", "nr")):
            if key in fields and any(fields[key] == port.get(key) for port in self._ports):
                raise ConfigError(
                    f"-device {PORT},{word}={fields[key]}: two ports have it; give each its own"
                )
        self._ports.append(fields)

    def console(self, parts: Parts) -> ConsoleConfig:
        """Return the device; ConfigError when the options do not match.

        The ports' chardevs are taken from `parts`. A port without a number gets the lowest that
        is free.
        """
        if self._serial is None:
            raise ConfigError(f"-device {PORT}: has no device to be on; add -device {SERIAL}")
        name = self._serial.get("id", _ID)
        most = self._serial.get("ports_max", PORTS_MAX)
        taken = {port["number"] for port in self._ports if "number" in port}
        free = [number for number in range(1, most) if number not in taken]
        if len(self._ports) > most - 1 or max(taken, default=0) >= most:
            raise ConfigError(
                f"-device {SERIAL},max_ports={most}: the ports' numbers are 1 to {most - 1}, for "
                f"0 is a console's; raise it up to {PORTS_MAX} or drop a port"
            )
        ports: list[PortConfig] = []
        for fields in self._ports:
            if fields.get("bus", f"{name}.0") != f"{name}.0":
                raise ConfigError(
                    f"-device {PORT},bus={fields['bus']}: there is only {name}.0; leave it out"
                )
            number = fields.get("number") or free.pop(0)
            chardev = _chardev(parts, fields["chardev"])
            if chardev.fd >= 0 and any(chardev.fd == port.chardev.fd for port in ports):
                raise ConfigError(
                    f"-chardev id={chardev.id},fd={chardev.fd}: two ports have it; "
                    "give each its own"
                )
            ports.append(PortConfig(number, chardev, fields.get("name", "")))
        count = max((port.number for port in ports), default=1) + 1
        return ConsoleConfig(name, tuple(ports), self._serial.get("ports_max", count))


def _chardev(parts: Parts, name: str) -> ChardevConfig:
    user = f"-device {PORT},chardev={name}"
    config = parts.chardevs.take(user, name)
    if config.kind != SOCKET:
        raise ConfigError(f"{user}: {name} is of kind {config.kind}; give a socket")
    return config


def read(texts: Iterable[str], parts: Parts) -> tuple[ConsoleConfig, ...]:
    """Return the one device that the values of `-device` make; ConfigError."""
    ports = Ports()
    for text in texts:
        ports.add(text)
    return (ports.console(parts),)
