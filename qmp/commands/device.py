"""Plugging and unplugging: device_add and device_del (vmm/hotplug.py has the rules)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...devices.disk import SECTOR
from ...devices.virtio import block, net
from ...errors import QmpError
from ...vmm.hotplug import BLOCK, NET, kind_of
from .. import events
from ..schema import (
    Arguments,
    Command,
    Departure,
    Field,
    Integer,
    Scalar,
    Struct,
    Text,
    shown,
)

if TYPE_CHECKING:
    from typing import Any

    from ...vmm.steps import Steps
    from ..session import Session

_SERIAL_MAX = 20
_VHOST_USER = "vhost-user"
# Drivers of devices that have no prepared slots.
_OTHERS = (
    "virtio-rng-device",
    "virtio-balloon-device",
    "vsock-device",
    "vhost-vsock-device",
    "vhost-user-fs-device",
    "python",
    "virtserialport",
    "virtconsole",
)
_MEMBER = re.compile(r"[a-z][a-z0-9_.-]*", re.ASCII)
_WORD_MAX = 4096  # characters
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_NO_PCI = "slots are no PCI devices"
_LEARNS = "the guest learns that when its driver starts"
# Members that StratoVirt takes as well and, for its slots, does not use.
_WITHOUT_EFFECT = (
    ("mq", "a NIC has as many pairs of queues as its backend"),
    ("config-wce", "there is no such cache"),
    ("bus", _NO_PCI),
    ("multifunction", _NO_PCI),
    ("romfile", _NO_PCI),
    ("vectors", _NO_PCI),
    ("disable-modern", _NO_PCI),
    ("host", _NO_PCI),
    ("sysfsdev", _NO_PCI),
    ("bootindex", "the kernel is not on a disk"),
    ("discard", "blockdev-add has it"),
    ("vhostfd", "netdev_add has it"),
    ("share-rw", "who writes an image has it alone"),
)
# What a device is to be like that gets a slot of its own: member, what of, the field of the
# device's configuration, and its range.
_SHAPE: tuple[tuple[str, str, str, int, int], ...] = (
    ("num-queues", BLOCK, "queues", 1, block.QUEUES_MAX),
    ("queue-size", BLOCK, "queue_size", block.QUEUE_SIZE_MIN, block.QUEUE_SIZE_MAX),
    ("queue-size", NET, "queue_size", net.QUEUE_SIZE_MIN, net.QUEUE_SIZE_MAX),
    ("logical_block_size", BLOCK, "logical_block", SECTOR, block.LOGICAL_MAX),
    ("physical_block_size", BLOCK, "physical_block", SECTOR, block.PHYSICAL_MAX),
    ("host_mtu", NET, "mtu", net.MTU_MIN, net.MTU_MAX),
)
_ANY_NUMBER = ("num-queues", "host_mtu")
_SHAPED = {
    "num-queues": "the disk's queues, 1 to 64",
    "queue-size": "the size of each queue, a power of two up to 1024",
    "logical_block_size": "bytes in a block of the disk, a power of two from 512 to 4096",
    "physical_block_size": "bytes that are best written at once, a power of two up to 65536",
    "host_mtu": "the NIC's MTU, of which the guest is advised",
}


def _shape(kind: str, given: Arguments) -> dict[str, int]:
    """Return the fields that members of device_add are for, checked."""
    found: dict[str, int] = {}
    for name, of, field, least, most in _SHAPE:
        value = getattr(given, name.replace("-", "_"))
        if value is None or of != kind:
            continue
        text = str(value)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else -1
        is_fit = name in _ANY_NUMBER or number & number - 1 == 0
        if isinstance(value, bool) or not least <= number <= most or not is_fit:
            what = "number" if name in _ANY_NUMBER else "power of two"
            raise QmpError(f"`{name}` {shown(text)}: give a {what} from {least} to {most}")
        found[field] = number
    return found


def _check_mac(text: str) -> None:
    if not _MAC.fullmatch(text):
        raise QmpError(f"`mac` {text} is no address; give one such as 52:54:00:12:34:56")
    if int(text[:2], 16) & 1:
        raise QmpError(f"`mac` {text} is a group's address; give one whose first byte is even")


class _DeviceMembers(Struct):
    """Members of device_add, once the driver is one that has such."""

    def read(self, value: Any, field: str) -> Arguments:
        """Return the members."""
        if isinstance(value, dict) and isinstance(value.get("driver"), str):
            if value["driver"] in _OTHERS:
                return _read_other(value)
            kind_of(value["driver"])
        return super().read(value, field)


def _read_other(value: dict[str, Any]) -> Arguments:
    """Return `id`, `driver`, and all others by name as words: they are the members of -device."""
    read = Arguments()
    if "id" not in value:
        raise QmpError("missing field `id`")
    read.id, read.driver = Text().read(value["id"], "id"), value["driver"]
    read.members = {}
    for name, given in value.items():
        if name in {"id", "driver", "addr"}:
            continue
        if not _MEMBER.fullmatch(name):
            raise QmpError(f"`{shown(name)}` is no member of driver {read.driver}; leave it out")
        if isinstance(given, bool):
            read.members[name] = "on" if given else "off"
        elif isinstance(given, int):
            read.members[name] = str(given)
        else:
            read.members[name] = Text(_WORD_MAX).read(given, name)
    return read


def _plug_export(session: Session, given: Arguments) -> Steps[None]:
    """Plug a disk of another process, whose chardev stands for its backend."""
    host, driver = session.monitor.host, given.driver
    if kind_of(driver) != BLOCK:
        raise QmpError(
            f"driver {driver} is not for slots; send netdev_add with `type` vhost-user, and give "
            "driver virtio-net-mmio"
        )
    for name in ("drive", "netdev", "serial", "mac", "iothread"):
        if getattr(given, name):
            raise QmpError(f"`{name}` is not for driver {driver}; leave it out")
    if not given.chardev:
        raise QmpError(f"driver {driver} needs `chardev`; give the id of one of chardev-add")
    inventory = host.inventory
    path = inventory.chardevs().get(given.chardev, "")
    inventory.add(
        BLOCK,
        given.id,
        lambda: host.open_export(given.id, given.chardev, path),
        chardev=given.chardev,
    )
    try:
        yield from inventory.plug(given.id, driver, host.attach, addr=given.addr, lun=given.lun)
    except BaseException:
        inventory.remove(BLOCK, given.id)
        raise


def _device_add(session: Session, given: Arguments) -> Steps[object]:
    host = session.monitor.host
    if given.driver in _OTHERS:
        yield from host.plug_other(given.id, given.driver, given.members)
        return {}
    if _VHOST_USER in given.driver:
        yield from _plug_export(session, given)
        return {}
    kind = kind_of(given.driver)
    for name, owner in (
        ("drive", BLOCK), ("serial", BLOCK), ("mac", NET), ("netdev", NET), ("chardev", NET)
    ):  # fmt: skip
        if getattr(given, name) and kind != owner:
            raise QmpError(f"`{name}` is not for driver {given.driver}; leave it out")
    if given.netdev and given.chardev not in {None, given.netdev}:
        raise QmpError("`netdev` and `chardev` are both given; give the first, the NIC's backend")
    threads = [name for name, _ in host.iothreads()]
    if given.iothread and given.iothread not in threads:
        raise QmpError(
            f"`iothread` {given.iothread}: there is no such I/O thread; "
            + (f"there are {', '.join(threads)}" if threads else "leave it out")
        )
    if given.mac:
        _check_mac(given.mac)
    shape = _shape(kind, given) if host.on_demand else None
    yield from host.inventory.plug(
        given.id,
        given.driver,
        host.attach,
        backend_id=given.drive or given.netdev or given.chardev,
        addr=given.addr,
        lun=given.lun,
        mac=given.mac or "",
        serial=given.serial or "",
        iothread=given.iothread or "",
        shape=shape,
    )
    return {}


def _device_del(session: Session, given: Arguments) -> Steps[object]:
    host = session.monitor.host
    is_gone = yield from host.unplug_other(given.id)
    if is_gone is None:
        yield from host.inventory.unplug(given.id, host.detach)
    elif not is_gone:
        data: dict[str, object] = {"device": given.id, "path": given.id}
        session.monitor.emit(events.DEVICE_UNPLUG_GUEST_ERROR, data)
        raise QmpError(
            f"Device {given.id}: a driver of the guest has it; unbind that there first "
            "(/sys/bus/platform/drivers/virtio-mmio/unbind)"
        )
    session.monitor.emit(events.DEVICE_DELETED, {"device": given.id, "path": given.id})
    return {}


COMMANDS = (
    Command(
        "device_add",
        "Plugs a disk or NIC into a slot of the running guest. Disks have the slots 0 (vda) to 5, "
        "NICs 0 (eth0) and 1; without `addr` and `lun` the first free one is taken. Disks and NICs "
        "of the command line have slots from 0 up. With `-machine slots=demand` a device gets a "
        "slot of its own, and `addr` is no more than its number among those of its kind, 0 to 63; "
        "the answer comes when the guest has taken the device, or an error after 5 s, and it has "
        "not got it; other clients do not wait meanwhile. A guest that is paused gets it when it "
        "runs. "
        f"The drivers {', '.join(_OTHERS)} are for such slots alone, and take the members of their "
        "-device.",
        _device_add,
        _DeviceMembers(
            Field(
                "id", Text(), "the device's name, that of its backend unless the latter is given"
            ),
            Field("driver", Text(), "virtio-blk-mmio, virtio-net-mmio or vhost-user-blk-device"),
            Field("addr", Text(), "the slot, decimal, or hexadecimal after 0x", optional=True),
            Field(
                "lun",
                Integer(0, 255),
                "for disks, in place of `addr`: the slot less one, so 0 is vdb",
                optional=True,
            ),
            Field("drive", Text(), "the disk's backend", optional=True),
            Field("netdev", Text(), "the NIC's backend", optional=True),
            Field("serial", Text(_SERIAL_MAX), "the disk's serial number", optional=True),
            Field(
                "mac",
                Text(17),
                "the NIC's address, as 52:54:00:12:34:56; another than the slot's is refused while "
                "a driver of the guest has the slot, as it asks only when it starts",
                optional=True,
            ),
            Field(
                "chardev",
                Text(),
                "the back end of a vhost-user disk, of chardev-add; else as `netdev`, the word of "
                "StratoVirt 2.5",
                optional=True,
            ),
            Field(
                "iothread",
                Text(),
                "the `-object iothread` for the disk's requests or the NIC's packets",
                optional=True,
            ),
            *(
                Field(
                    name,
                    Scalar(),
                    f"{what}; without effect in prepared slots, of which {_LEARNS}",
                    optional=True,
                )
                for name, what in _SHAPED.items()
            ),
            *(
                Field(name, Scalar(), f"has no effect: {why}", optional=True)
                for name, why in _WITHOUT_EFFECT
            ),
        ),
        departures=(
            Departure("arguments.id", "always needed: device_del has no other name for it"),
        ),
        example=('{"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}', "{}"),
    ),
    Command(
        "device_del",
        "Unplugs a device and closes its backend: requests in flight are completed, then the guest "
        "sees a disk of size 0 or a NIC without link, then the image or tap is closed and "
        "unlocked. DEVICE_DELETED comes before the answer; the slot can be used again at once. It "
        "is refused, and nothing changes, when the host's storage does not complete a disk's "
        "requests within 5 s, those from before a reset by its driver among them. With `-machine "
        "slots=demand` the guest is made to let go of the device first, which has 5 s; if it does "
        "not, a disk or NIC is unplugged all the same, and for what is neither DEVICE_UNPLUG_GUEST_"
        "ERROR comes, and the request is refused. Other clients' requests do not wait for it.",
        _device_del,
        Struct(Field("id", Text(), "the device's name")),
        example=('{"id": "drive-0"}', "{}"),
    ),
)
