"""The options that make devices and monitors, read together when all of them are known.

Imported only when one of them is given; so is each kind's reader.
"""

from __future__ import annotations

from ...errors import ConfigError
from .members import at_place, placed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...devices.chardev import ChardevConfig
    from ...devices.iothread import IoThread
    from ...devices.nic import NicConfig
    from ...devices.virtio.block import BlockConfig
    from ...devices.virtio.device import DeviceConfig
    from ...qmp.listener import ListenerConfig
    from .chardevs import Chardevs
    from .objects import Objects

    Given = Sequence[tuple[str, str]]  # name and value, as written

_OF_DISKS, _OF_NICS = ("disk", "drive"), ("net", "netdev")
_DISK, _NIC = "virtio-blk-device", "virtio-net-device"
_OF_MONITORS = ("qmp", "api-channel", "mon")
_TEST_DRIVERS = ("pc-testdev", "isa-debug-exit")
_WATCHDOGS = ("acpi-watchdog", "ib700")
# The other devices: the module of this folder whose `read` makes configurations of the values of
# -device with one of its drivers. They take slots in this order.
_READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ports", ("virtio-serial-device", "virtserialport", "virtconsole")),
    ("rng", ("virtio-rng-device",)),
    ("vsock", ("vsock-device", "vhost-vsock-device", "vsock")),
    ("balloon", ("virtio-balloon-device",)),
    ("python_devices", ("python",)),
    ("vhost_user", ("vhost-user-fs-device", "vhost-user-blk-device")),
)
_OLDER = ("balloon", "iothread", "rng")  # of StratoVirt's first versions
# What names a place of this host, which a guest in the lab reaches in another way.
FORWARDED = (*_OF_MONITORS, "chardev")


class Parts:
    """What devices and monitors are made of, each taken by its id."""

    __slots__ = ("chardevs", "objects")

    def __init__(self, chardevs: Chardevs, objects: Objects) -> None:
        self.chardevs = chardevs
        self.objects = objects


class Gathered:
    """What they ask for."""

    __slots__ = (
        "chardevs",
        "devices",
        "disks",
        "iothreads",
        "monitors",
        "nics",
        "parts",
        "serial",
        "shares",
        "terminal",
        "testdev",
        "watchdog",
    )

    def __init__(self, given: Given) -> None:
        """Read all that is given; ConfigError."""
        self.chardevs: tuple[ChardevConfig, ...] = ()
        self.devices: tuple[DeviceConfig, ...] = ()
        self.disks: tuple[BlockConfig, ...] = ()
        self.iothreads: tuple[IoThread, ...] = ()
        self.monitors: tuple[ListenerConfig, ...] = ()
        self.nics: tuple[NicConfig, ...] = ()
        self.serial: ChardevConfig | None = None
        self.terminal: ChardevConfig | None = None
        self.shares: tuple[str, ...] = ()  # the tags
        self.testdev = False
        self.watchdog = ""
        if any(name in _OLDER for name, _ in given):
            from .older import expand

            given = list(expand(given))
        _check_drivers(given)
        self.parts = parts = _parts(given)
        self._read_threads(parts)
        self._read_disks(given)
        self._read_nics(given, parts)
        self._read_serial(given, parts)
        self._read_others(given, parts)
        self._read_root(given)
        self._read_shares(given)
        self._check_ids()
        self._read_testdev(given)
        self._read_watchdog(given)
        self.chardevs = parts.chardevs.taken()
        self._read_terminal()
        self._read_monitors(given, parts)
        parts.chardevs.end()

    def _read_threads(self, parts: Parts) -> None:
        found = parts.objects.of("iothread")
        if found:
            from ...devices.iothread import IoThread

            self.iothreads = tuple(IoThread(fields["id"]) for fields in found)

    def _read_disks(self, given: Given) -> None:
        words = _words(given, _OF_DISKS, _DISK)
        if words:
            from .disks import Drives

            drives = Drives(self.iothreads)
            for name, text in words:
                placed(text, drives.add, name)
            self.disks = drives.disks()

    def _read_nics(self, given: Given, parts: Parts) -> None:
        words = _words(given, _OF_NICS, _NIC)
        if any(pair[0] == "netdev" and pair[1].startswith("vhost-user") for pair in words):
            from .vhost_user_nics import split

            words, found = split(words, parts.chardevs)
            self.devices += found
        if words:
            from .nics import Nics

            cards = Nics(self.iothreads)
            for name, text in words:
                placed(text, cards.add, name)
            self.nics = cards.nics()

    def _read_serial(self, given: Given, parts: Parts) -> None:
        for name, text in given:
            if name == "serial":
                placed(text, self._take_serial, parts)

    def _take_serial(self, parts: Parts, text: str) -> None:
        from .chardevs import serial

        self.serial = serial(text, parts.chardevs)

    def _read_terminal(self) -> None:
        from .chardevs import terminal

        self.terminal = terminal(self.serial, self.chardevs)

    def _read_others(self, given: Given, parts: Parts) -> None:
        for module, drivers in _READERS:
            texts = _devices_of(given, drivers)
            if texts or (module == "ports" and parts.chardevs.consoles()):
                # importlib would cost a module more.
                reader = __import__(f"{__package__}.{module}", fromlist=["read"])
                try:
                    self.devices += tuple(reader.read(texts, parts))
                except ConfigError as error:
                    about = [text for text in texts if text in str(error)]
                    raise at_place(error, *about, *texts) from None

    def _read_root(self, given: Given) -> None:
        for name, text in given:
            if name == "root":
                placed(text, self._take_root)

    def _take_root(self, text: str) -> None:
        from .root import read

        self.devices += (read(text),)

    def _read_shares(self, given: Given) -> None:
        texts = [text for name, text in given if name == "share"]
        if texts:
            from .shares import read

            taken = {device.tag for device in self.devices if hasattr(device, "tag")}
            shares = read(texts, taken)
            self.devices += shares
            self.shares = tuple(one.id for one in shares)

    def _check_ids(self) -> None:
        """Refuse an id that two devices share: requests name them by it."""
        seen = {disk.id: "disk" for disk in self.disks}
        for nic in self.nics:
            if nic.id in seen:
                raise ConfigError(f"-netdev id={nic.id}: a disk has that id; give another")
            seen[nic.id] = "NIC"
        for device in self.devices:
            if device.id in seen:
                who = seen[device.id]
                raise ConfigError(f"-device id={device.id}: a {who} has that id; give another")
            seen[device.id] = "device"

    def _read_testdev(self, given: Given) -> None:
        devices = _devices_of(given, _TEST_DRIVERS)
        if devices:
            from .testdev import parse

            self.testdev = parse(devices)

    def _read_watchdog(self, given: Given) -> None:
        devices = _devices_of(given, _WATCHDOGS)
        if devices:
            from .timed import watchdog

            self.watchdog = watchdog(devices)

    def _read_monitors(self, given: Given, parts: Parts) -> None:
        words = [(name, text) for name, text in given if name in _OF_MONITORS]
        if words:
            from .monitors import Monitors

            monitors = Monitors()
            for name, text in words:
                placed(text, monitors.add, name)
            self.monitors = monitors.listeners(parts.chardevs)


def _parts(given: Given) -> Parts:
    from .chardevs import Chardevs
    from .objects import Objects

    chardevs, objects = Chardevs(), Objects()
    for name, text in given:
        if name == "chardev":
            placed(text, chardevs.add)
        elif name == "object":
            placed(text, objects.add)
    return Parts(chardevs, objects)


def _check_drivers(given: Given) -> None:
    others = [driver for _, drivers in _READERS for driver in drivers]
    known = (_DISK, _NIC, *others, *_WATCHDOGS, *_TEST_DRIVERS)
    for name, text in given:
        driver = text.partition(",")[0]
        if name == "device" and driver not in known:
            error = ConfigError(f"-device {driver}: no such device; there are {', '.join(known)}")
            raise at_place(error, text)


def _words(given: Given, options: tuple[str, ...], driver: str) -> list[tuple[str, str]]:
    """Return those options, and -device with the driver, as they were given."""
    return [
        (name, text)
        for name, text in given
        if name in options or (name == "device" and text.partition(",")[0] == driver)
    ]


def _devices_of(given: Given, drivers: tuple[str, ...]) -> list[str]:
    """Return the values of -device that name one of the drivers."""
    return [text for name, text in given if name == "device" and text.partition(",")[0] in drivers]
