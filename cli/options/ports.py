"""The options that describe ports: `-device virtserialport`, or virtconsole, on a serial device.

A chardev in the form of StratoVirt 20.09 stands for a console on one.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices.virtio.console import NAME_BYTES, PORTS_MAX, ConsoleConfig, PortConfig
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ...devices.chardev import ChardevConfig
    from ...devices.virtio.device import DeviceConfig
    from .gather import Parts

SERIAL, PORT, CONSOLE = "virtio-serial-device", "virtserialport", "virtconsole"
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
    ("nr", "number", members.number(0, PORTS_MAX - 1)),
    ("bus", "bus", members.name),
)


class _Port:
    """One port as it was written: `driver` and members; `user` is what has its chardev."""

    __slots__ = ("driver", "fields", "user")

    def __init__(self, driver: str, fields: dict[str, Any], user: str = "") -> None:
        self.driver = driver
        self.fields = fields
        self.user = user or f"-device {driver},chardev={fields.get('chardev', '')}"

    @property
    def first(self) -> int:
        """Return the lowest number that it may have."""
        return 0 if self.driver == CONSOLE else 1


class Ports:
    """What the options say so far, in their order."""

    __slots__ = ("_ports", "_serial")

    def __init__(self) -> None:
        self._serial: dict[str, Any] | None = None
        self._ports: list[_Port] = []

    def add(self, text: str) -> None:
        """Take the value of a `-device` that is one of these three."""
        driver, _, rest = text.partition(",")
        given = pairs("-device", rest, "") if rest else []
        if driver != SERIAL:
            self._add_port(text, _Port(driver, members.read("-device", given, _PORT)))
            return
        if self._serial is not None:
            raise ConfigError(f"-device {text}: there is one already; put all ports on that")
        self._serial = members.read("-device", given, _SERIAL)

    def add_consoles(self, chardevs: Iterable[str]) -> None:
        """Take the ids of chardevs that stand for a console each."""
        for name in chardevs:
            self._ports.append(_Port(CONSOLE, {"chardev": name}, f"-chardev id={name}"))
            self._serial = self._serial or {}

    def _add_port(self, text: str, port: _Port) -> None:
        fields = port.fields
        if "chardev" not in fields:
            raise ConfigError(f"-device {text}: names no chardev; give chardev=ID")
        if fields.get("number", port.first) < port.first:
            raise ConfigError(
                f"-device {text}: port 0 is a console's; give another number, or {CONSOLE}"
            )
        for key, word in (("id", "id"), ("name", "name"), ("number", "nr")):
            if key in fields and any(fields[key] == one.fields.get(key) for one in self._ports):
                raise ConfigError(
                    f"-device {port.driver},{word}={fields[key]}: two ports have it; "
                    "give each its own"
                )
        self._ports.append(port)

    def console(self, parts: Parts) -> ConsoleConfig:
        """Return the device; ConfigError when the options do not match.

        The ports' chardevs are taken from `parts`. A port without a number gets the lowest that
        is free.
        """
        if self._serial is None:
            raise ConfigError(
                f"-device {self._ports[0].driver}: has no device to be on; add -device {SERIAL}"
            )
        name = self._serial.get("id", _ID)
        ports: list[PortConfig] = []
        for one, number in zip(self._ports, self._numbers(), strict=True):
            bus = one.fields.get("bus", f"{name}.0")
            if bus != f"{name}.0":
                raise ConfigError(
                    f"-device {one.driver},bus={bus}: there is only {name}.0; leave it out"
                )
            chardev = parts.chardevs.take(one.user, one.fields["chardev"])
            if chardev.fd >= 0 and any(chardev.fd == port.chardev.fd for port in ports):
                raise ConfigError(
                    f"-chardev id={chardev.id},fd={chardev.fd}: two ports have it; "
                    "give each its own"
                )
            ports.append(
                PortConfig(
                    number,
                    chardev,
                    one.fields.get("name", ""),
                    is_console=one.driver == CONSOLE,
                )
            )
        # A device of number 0 alone is a console of the simple kind.
        count = max((port.number for port in ports), default=1) + 1
        return ConsoleConfig(name, tuple(ports), self._serial.get("ports_max", count))

    def _numbers(self) -> list[int]:
        """Return the number of each port; ConfigError when there are not enough."""
        assert self._serial is not None
        most = self._serial.get("ports_max", PORTS_MAX)
        taken = {port.fields["number"] for port in self._ports if "number" in port.fields}
        numbers: list[int] = []
        for port in self._ports:
            free = (number for number in range(port.first, most) if number not in taken)
            number = port.fields.get("number", next(free, most))
            if number >= most:
                raise ConfigError(
                    f"-device {SERIAL},max_ports={most}: the ports' numbers are 1 to {most - 1}, "
                    f"for 0 is a console's; raise it up to {PORTS_MAX} or drop a port"
                )
            taken.add(number)
            numbers.append(number)
        return numbers


def read(texts: Iterable[str], parts: Parts) -> tuple[ConsoleConfig, ...]:
    """Return the one device that the values of `-device` make; ConfigError."""
    ports = Ports()
    for text in texts:
        ports.add(text)
    ports.add_consoles(parts.chardevs.consoles())
    return (ports.console(parts),)


def kernel_console(devices: Iterable[DeviceConfig], chardev: ChardevConfig | None) -> str:
    """Return what Linux calls its console that is on `chardev`: hvc0 and on, else ttyS0."""
    for device in devices:
        if isinstance(device, ConsoleConfig):
            consoles = sorted(
                (port for port in device.ports if port.is_console), key=lambda port: port.number
            )
            for index, port in enumerate(consoles):
                if port.chardev is chardev:
                    return f"hvc{index}"
    return "ttyS0"
