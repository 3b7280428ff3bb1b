"""The rules of plugging: which backends there are, which device is in which slot. No I/O.

A backend is registered under an id, then a device with a driver of its kind is plugged into a
slot of that kind; unplugging the device removes both. Each step either happens whole or leaves
everything as it was: what does the work is called in the middle, and refuses by an exception. It
may wait for the guest (steps.py); meanwhile other steps are taken, but none with the same device.
Texts are StratoVirt's, whose clients look at them. One thread at a time.
"""

from __future__ import annotations

from ..errors import QmpError
from .slots import disk_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Protocol

    from .steps import Steps

    class Resource(Protocol):
        """What a backend holds open on the host: an image, a tap."""

        def close(self) -> None:
            """Close and unlock it; no device uses it any more."""


BLOCK, NET = "blk", "net"
SLOTS = {BLOCK: 6, NET: 2}
ON_DEMAND = {BLOCK: 64, NET: 64}  # at most; `addr` is no more than a name then
_WITHDRAWN_MAX = 64
_CHARDEVS_MAX = 64
_WORDS = {BLOCK: "block", NET: "net"}


class Backend:
    """A registered backend; owns `resource` until it is removed."""

    __slots__ = ("chardev", "device", "id", "kind", "resource")

    def __init__(
        self,
        kind: str,
        id: str,  # noqa: A002
        resource: Resource,
        chardev: str = "",
    ) -> None:
        """`chardev` is the id of the one that it has to itself."""
        self.kind = kind
        self.chardev = chardev
        self.id = id
        self.resource = resource
        self.device: Device | None = None


class Device:
    """A device in its slot. `mac`, `serial` and `iothread` are "" where the slot's own stay.

    `shape` is what its queues and blocks are to be like, where slots come on demand.
    """

    __slots__ = ("backend", "id", "iothread", "is_busy", "mac", "serial", "shape", "slot")

    def __init__(
        self,
        id: str,  # noqa: A002
        backend: Backend,
        slot: int,
        *,
        mac: str = "",
        serial: str = "",
        iothread: str = "",
        shape: Mapping[str, int] | None = None,
    ) -> None:
        """`slot` counts the slots of the backend's kind: 0 is vda or eth0."""
        self.id = id
        self.backend = backend
        self.slot = slot
        self.mac = mac
        self.serial = serial
        self.iothread = iothread
        self.shape = shape or {}
        self.is_busy = False  # it is being plugged or unplugged

    @property
    def number(self) -> int:
        """Return the slot among all: the disks' come first."""
        return self.slot if self.backend.kind == BLOCK else SLOTS[BLOCK] + self.slot

    @property
    def place(self) -> str:
        """Return what the guest calls it: vda, or eth0."""
        disk = self.backend.kind == BLOCK
        return disk_name(self.slot) if disk else f"eth{self.slot}"


def parse_address(device: str, addr: str | None, lun: int | None, kind: str) -> int | None:
    """Return the slot that `addr` (decimal, or hexadecimal after 0x) or `lun` stands for.

    lun N is slot N + 1, and of disks only; None where neither is given.
    """
    if lun is not None:
        if addr is not None:
            raise QmpError(f"`addr` and `lun` are both given for device {device}; give one")
        if kind != BLOCK:
            raise QmpError(f"`lun` is given for device {device}, which is no disk; give `addr`")
        return lun + 1
    if addr is None:
        return None
    base, digits = (16, addr[2:]) if addr[:2] in {"0x", "0X"} else (10, addr)
    # int() alone would take signs, spaces and underscores as well.
    if not (digits.isascii() and digits.isalnum() and len(digits) < 10):
        raise QmpError(f"Invalid addr for device {device}")
    try:
        return int(digits, base)
    except ValueError:
        raise QmpError(f"Invalid addr for device {device}") from None


def kind_of(driver: str) -> str:
    """Return BLOCK or NET; as with StratoVirt, the driver's name only has to contain it."""
    for kind in (NET, BLOCK):
        if kind in driver:
            return kind
    raise QmpError("Unsupported replaceable device type.")


class Inventory:
    """Backends and devices of one machine; owns the backends' resources until `close`."""

    __slots__ = ("_backends", "_chardevs", "_devices", "_mend", "_slots", "_withdrawn")

    def __init__(self, slots: Mapping[str, int] = SLOTS) -> None:
        """`slots` are how many devices of each kind there can be."""
        self._slots = slots
        # In the words of StratoVirt, which has prepared slots and says no more.
        self._mend = " Send device_del for one." if slots is ON_DEMAND else ""
        self._backends: dict[str, Backend] = {}
        self._devices: dict[str, Device] = {}
        self._chardevs: dict[str, str] = {}  # ids and paths of sockets that others listen on
        # Kinds and ids of the backends that went with their devices last. QEMU's clients remove
        # those next, which then has been done, once.
        self._withdrawn: dict[tuple[str, str], None] = {}

    def add_chardev(self, id: str, path: str) -> None:  # noqa: A002
        """Register a socket that a back end listens on; nobody connects yet."""
        if id in self._chardevs:
            raise QmpError(f"Chardev {id} is there already; send chardev-remove first")
        if len(self._chardevs) >= _CHARDEVS_MAX:
            raise QmpError(f"there are {_CHARDEVS_MAX} chardevs, the most; remove one first")
        self._chardevs[id] = path

    def remove_chardev(self, id: str) -> None:  # noqa: A002
        """Forget a socket that no device has."""
        self._free_chardev(id, "send {} for that first")
        del self._chardevs[id]

    def _free_chardev(self, id: str, mend: str) -> str:  # noqa: A002
        if id not in self._chardevs:
            raise QmpError(f"Chardev {id} not found; make it with chardev-add")
        user = next((one for one in self._backends.values() if one.chardev == id), None)
        if user is not None:
            what, rid = ("device", "device_del") if user.device else ("netdev", "netdev_del")
            raise QmpError(f"Chardev {id} is in use by {what} {user.id}; {mend.format(rid)}")
        return self._chardevs[id]

    def user_of(self, chardev: str) -> str:
        """Return the id of the backend that has a chardev, "" for none."""
        users = (one.id for one in self._backends.values() if one.chardev == chardev)
        return next(users, "")

    def chardevs(self) -> dict[str, str]:
        """Return the paths of the sockets, by id."""
        return dict(self._chardevs)

    def add(
        self,
        kind: str,
        id: str,  # noqa: A002
        open_it: Callable[[], Resource],
        *,
        chardev: str = "",
    ) -> Backend:
        """Register a backend; `open_it` opens what it stands for, once nothing else is wrong.

        It may have a chardev to itself, which stays when it goes.
        """
        if id in self._backends:
            raise QmpError(f"{id} is already registered.")
        most = sum(self._slots.values())
        if len(self._backends) >= most:
            raise QmpError(f"A maximum of {most} replaceable devices are supported." + self._mend)
        if chardev:
            self._free_chardev(chardev, "give each device its own")
        backend = Backend(kind, id, open_it(), chardev)
        self._backends[id] = backend
        for each in self._slots:
            self._withdrawn.pop((each, id), None)
        return backend

    def adopt(self, kind: str, id: str, slot: int, resource: Resource) -> None:  # noqa: A002
        """Enter a device that the machine has from its start."""
        backend = self._backends[id] = Backend(kind, id, resource)
        backend.device = self._devices[id] = Device(id, backend, slot)

    def remove(self, kind: str, id: str) -> None:  # noqa: A002
        """Remove a backend that no device uses, and close it; one may have gone with its device."""
        backend = self._backends.get(id)
        if backend is None and (kind, id) in self._withdrawn:
            del self._withdrawn[kind, id]
            return
        if backend is None or backend.kind != kind:
            raise QmpError(f"{_WORDS[kind].capitalize()} backend {id} not found")
        if backend.device is not None:
            raise QmpError(
                f"{id} is in use by device {backend.device.id}; send device_del for that first"
            )
        del self._backends[id]
        backend.resource.close()

    def plug(
        self,
        id: str,  # noqa: A002
        driver: str,
        attach: Callable[[Device], Steps[None]],
        *,
        backend_id: str | None = None,
        addr: str | None = None,
        lun: int | None = None,
        mac: str = "",
        serial: str = "",
        iothread: str = "",
        shape: Mapping[str, int] | None = None,
    ) -> Steps[Device]:
        """Plug a device; `attach` gives the backend to the slot when all else is right.

        The backend is that of `backend_id`, or of `id` itself. Without `addr` and `lun` the first
        free slot is taken.
        """
        backend = self._backends.get(id if backend_id is None else backend_id)
        if backend is None:
            raise QmpError("Failed to find device configuration.")
        kind = kind_of(driver)
        if kind != backend.kind:
            raise QmpError(
                f"The device type is {kind}, but the target config is not for this type."
            )
        if id in self._devices:
            raise QmpError(f"Device {id} is plugged already; send device_del first")
        if backend.device is not None:
            raise QmpError(f"{backend.id} is in use by device {backend.device.id} already")
        slot = self._slot(kind, parse_address(id, addr, lun, kind))
        device = Device(id, backend, slot, mac=mac, serial=serial, iothread=iothread, shape=shape)
        backend.device = self._devices[id] = device
        device.is_busy = True
        try:
            yield from attach(device)
        except BaseException:
            backend.device = None
            del self._devices[id]
            raise
        device.is_busy = False
        return device

    def _slot(self, kind: str, wanted: int | None) -> int:
        count = self._slots[kind]
        taken = {device.slot for device in self.devices(kind)}
        if wanted is None:
            wanted = next((slot for slot in range(count) if slot not in taken), count)
        if wanted >= count:
            raise QmpError(
                f"A maximum of {count} {_WORDS[kind]} replaceable devices are supported."
                + self._mend
            )
        if wanted in taken:
            number = wanted if kind == BLOCK else SLOTS[BLOCK] + wanted
            raise QmpError(f"The slot {number} is occupied already.")
        return wanted

    def unplug(self, id: str, detach: Callable[[Device], Steps[None]]) -> Steps[None]:  # noqa: A002
        """Unplug a device and remove its backend.

        `detach` returns when the slot has let go of the backend, which is then closed.
        """
        device = self._devices.get(id)
        if device is None:
            raise QmpError(f"Device {id} not found")
        if device.is_busy:
            raise QmpError(
                f"Device {id} is being plugged or unplugged; wait for the answer to that"
            )
        device.is_busy = True
        try:
            yield from detach(device)
        finally:
            device.is_busy = False
        backend = device.backend
        del self._devices[id]
        del self._backends[backend.id]
        self._withdrawn[backend.kind, backend.id] = None
        if len(self._withdrawn) > _WITHDRAWN_MAX:
            del self._withdrawn[next(iter(self._withdrawn))]
        backend.device = None  # they would keep each other alive
        backend.resource.close()

    def devices(self, kind: str) -> Iterator[Device]:
        """Yield the devices of a kind, in the order in which they were plugged."""
        return (device for device in self._devices.values() if device.backend.kind == kind)

    def find(self, name: str) -> Device | None:
        """Return the device of this id, else the one that the guest calls so."""
        places = {device.place: device for device in self._devices.values()}
        return self._devices.get(name) or places.get(name)

    def backends(self, kind: str) -> Iterator[Backend]:
        """Yield the backends of a kind, plugged or not."""
        return (backend for backend in self._backends.values() if backend.kind == kind)

    def close(self) -> None:
        """Close every backend; the machine and its devices are gone."""
        self._devices.clear()
        while self._backends:
            _, backend = self._backends.popitem()
            backend.device = None
            backend.resource.close()
