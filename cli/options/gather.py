"""The options that make devices and monitors, read together when all of them are known.

Imported only when one of them is given; so is each kind's reader.
"""

from __future__ import annotations

from ...errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...devices.iothread import IoThread
    from ...devices.nic import NicConfig
    from ...devices.virtio.block import BlockConfig
    from ...devices.virtio.console import ConsoleConfig
    from ...qmp.listener import ListenerConfig
    from .python_devices import PythonDeviceConfig

    Given = Sequence[tuple[str, str]]  # name and value, as written

_OF_DISKS, _OF_NICS = ("disk", "drive", "object"), ("net", "netdev")
_NIC_DRIVER = "virtio-net-device"
_PORT_DRIVERS = ("virtio-serial-device", "virtserialport")
_PYTHON_DRIVER = "python"
_TEST_DRIVERS = ("pc-testdev", "isa-debug-exit")
_NO_DISKS = (*_PORT_DRIVERS, *_TEST_DRIVERS)
MONITOR_OPTIONS = ("qmp", "api-channel", "chardev", "mon")


class Gathered:
    """What they ask for."""

    __slots__ = ("console", "disks", "iothreads", "monitors", "nics", "python_devices", "testdev")

    def __init__(self, given: Given) -> None:
        """Read all that is given; ConfigError."""
        self.console: ConsoleConfig | None = None
        self.disks: tuple[BlockConfig, ...] = ()
        self.iothreads: tuple[IoThread, ...] = ()
        self.monitors: tuple[ListenerConfig, ...] = ()
        self.nics: tuple[NicConfig, ...] = ()
        self.python_devices: tuple[PythonDeviceConfig, ...] = ()
        self.testdev = False
        self._read_devices(given)
        self._read_testdev(given)
        self._read_chardevs(given)

    def _read_devices(self, given: Given) -> None:
        disks, nics, pythons = [], [], []
        for name, text in given:
            driver = text.partition(",")[0] if name == "device" else ""
            if driver == _PYTHON_DRIVER:
                pythons.append(text)
            elif driver == _NIC_DRIVER or name in _OF_NICS:
                nics.append((name, text))
            elif (name == "device" and driver not in _NO_DISKS) or name in _OF_DISKS:
                disks.append((name, text))
        if disks:
            from .disks import Drives

            drives = Drives()
            for name, text in disks:
                drives.add(name, text)
            self.disks = drives.disks()
            self.iothreads = drives.iothreads()
        if nics:
            from .nics import Nics

            cards = Nics()
            for name, text in nics:
                cards.add(name, text)
            self.nics = cards.nics({thread.id for thread in self.iothreads})
        self._check_ids()
        if pythons:
            from .python_devices import parse

            self.python_devices = parse(pythons)

    def _check_ids(self) -> None:
        """Refuse an id that a disk and a NIC share: requests name either by it."""
        disks = {disk.id for disk in self.disks}
        for nic in self.nics:
            if nic.id in disks:
                raise ConfigError(f"-netdev id={nic.id}: a disk has that id; give another")

    def _read_testdev(self, given: Given) -> None:
        devices = _devices_of(given, _TEST_DRIVERS)
        if devices:
            from .testdev import parse

            self.testdev = parse(devices)

    def _read_chardevs(self, given: Given) -> None:
        """Make ports and monitors, which share the chardevs."""
        words = [(name, text) for name, text in given if name in MONITOR_OPTIONS]
        devices = _devices_of(given, _PORT_DRIVERS)
        if not words and not devices:
            return
        from .monitors import Monitors

        monitors = Monitors()
        for name, text in words:
            monitors.add(name, text)
        if devices:
            from .ports import Ports

            ports = Ports()
            for text in devices:
                ports.add(text)
            self.console = ports.console(monitors)
        self.monitors = monitors.listeners()


def _devices_of(given: Given, drivers: tuple[str, ...]) -> list[str]:
    """Return the values of -device that name one of the drivers."""
    return [text for name, text in given if name == "device" and text.partition(",")[0] in drivers]
