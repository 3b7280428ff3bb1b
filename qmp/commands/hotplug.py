"""Plugging disks and NICs: backends, then devices (vmm/hotplug.py has the rules)."""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from ...devices.disk import InUseError
from ...errors import PyvirtError, QmpError
from ...vmm.hotplug import BLOCK, NET, kind_of
from .. import events
from ..host import DiskRequest, NicRequest
from ..schema import Arguments, Boolean, Choice, Command, Field, FileName, Integer, Struct, Text

if TYPE_CHECKING:
    from ...vmm.hotplug import Resource
    from ..session import Session

_IFNAME_MAX = 15
_SERIAL_MAX = 20
# StratoVirt's sentence.
_IN_USE = (
    "Failed to add drive {}, file can only be shared with read_only. "
    "Is it used more than once or another process using the same file?"
)
# What the command line's words are here.
_MEMBERS = {
    "readonly=on": "`read-only` true",
    "direct=off": "`cache.direct` false",
    "format=raw": "`driver` raw",
}
_NET_MENDS = {
    "give the number of one that is inherited": "send one with getfd",
    "give the number of an open one": "send an open one with getfd",
}
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_ENGINES = {"io_uring": "io_uring", "native": "io_uring", "threads": "threads", "off": "threads"}


def _check_file(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise QmpError(
            f"Failed to get metadata of file {path}: {error.strerror} (os error {error.errno})"
        ) from None
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise QmpError(f"{path} is not a regular file or block device.")


def _blockdev_add(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    path = given.file.filename
    if given.detect_zeroes == "unmap" and given.discard != "unmap":
        raise QmpError("`detect-zeroes` unmap goes with `discard` unmap; give both")
    engine = given.aio or given.file.aio
    request = DiskRequest(
        given.node_name,
        path,
        readonly=given.read_only,
        direct=given.cache.direct if given.cache else None,
        engine=_ENGINES[engine] if engine else "auto",
        iops=given.throttling_iops_total,
        unmap=given.discard == "unmap",
        detect_zeroes=given.detect_zeroes,
        raw=given.driver == "raw",
    )

    def open_it() -> Resource:
        _check_file(path)
        try:
            return host.open_disk(request)
        except QmpError:
            raise
        except InUseError:
            raise QmpError(_IN_USE.format(path)) from None
        except PyvirtError as error:
            # The command line's words for the file and its members are of no use here.
            reason = str(error).partition(f"{path}")[2].partition(": ")[2] or str(error)
            for word, ours in _MEMBERS.items():
                reason = reason.replace(word, ours)
            raise QmpError(f"Failed to add drive {path}: {reason}") from None

    host.inventory.add(BLOCK, given.node_name, open_it)
    return {}


def _blockdev_del(session: Session, given: Arguments) -> object:
    session.monitor.host.inventory.remove(BLOCK, given.node_name)
    return {}


def _names(given: Arguments, one: str, several: str) -> list[str]:
    """Return the descriptors' names in `fd` or `fds`."""
    single, plural = getattr(given, one), getattr(given, several)
    if single and plural:
        raise QmpError(f"`{one}` and `{several}` are both given; give one")
    return [single] if single else plural.split(":") if plural else []


def _netdev_add(session: Session, given: Arguments) -> object:
    host, descriptors = session.monitor.host, session.descriptors
    names = _names(given, "fd", "fds")
    vhost_names = _names(given, "vhostfd", "vhostfds")
    if bool(given.ifname) == bool(names):
        raise QmpError("the tap is given by `ifname` or by `fd`, not by both; give one of them")
    if names and given.queues not in {None, len(names)}:
        raise QmpError(f"`queues` is {given.queues}, but there are {len(names)} in `fds`")
    request = NicRequest(
        given.id,
        given.ifname or "",
        tuple(descriptors.get(name) for name in names),
        vhost=given.vhost or bool(vhost_names),
        vhost_fds=tuple(descriptors.get(name) for name in vhost_names),
        queues=len(names) or given.queues or 1,
    )
    member = f"`ifname` {given.ifname}" if given.ifname else f"`fd` {':'.join(names)}"

    def open_it() -> Resource:
        try:
            return host.open_nic(request)
        except PyvirtError as error:
            # The command line's word for the tap, or our number of the client's descriptor.
            option, colon, reason = str(error).partition(": ")
            if not (colon and option.startswith("-netdev ")):
                raise
            for word, ours in _NET_MENDS.items():
                reason = reason.replace(word, ours)
            raise QmpError(f"{member}: {reason}") from None

    host.inventory.add(NET, given.id, open_it)
    for name in dict.fromkeys(names + vhost_names):
        descriptors.drop(name)
    return {}


def _netdev_del(session: Session, given: Arguments) -> object:
    session.monitor.host.inventory.remove(NET, given.id)
    return {}


def _check_mac(text: str) -> None:
    if not _MAC.fullmatch(text):
        raise QmpError(f"`mac` {text} is no address; give one such as 52:54:00:12:34:56")
    if int(text[:2], 16) & 1:
        raise QmpError(f"`mac` {text} is a group's address; give one whose first byte is even")


def _device_add(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    if given.drive and given.netdev:
        raise QmpError("`drive` and `netdev` are both given; give the one for the driver")
    kind = kind_of(given.driver)
    for name, value, owner in (("serial", given.serial, BLOCK), ("mac", given.mac, NET)):
        if value and kind != owner:
            raise QmpError(f"`{name}` is not for driver {given.driver}; leave it out")
    if given.mac:
        _check_mac(given.mac)
    host.inventory.plug(
        given.id,
        given.driver,
        host.attach,
        backend_id=given.drive or given.netdev,
        addr=given.addr,
        lun=given.lun,
        mac=given.mac or "",
        serial=given.serial or "",
    )
    return {}


def _device_del(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    host.inventory.unplug(given.id, host.detach)
    session.monitor.emit(events.DEVICE_DELETED, {"device": given.id, "path": given.id})
    return {}


_AIO = Choice(*_ENGINES)

COMMANDS = (
    Command(
        "blockdev-add",
        "Opens and locks a disk image for a device_add of the same id. The image is raw; one "
        "that begins like an image of another format is refused unless `driver` insists. An image "
        "that this or another machine has open, as that of the root file system, is refused unless "
        "both only read.",
        _blockdev_add,
        Struct(
            Field("node-name", Text(), "the backend's name, and the id of its device"),
            Field(
                "file",
                Struct(
                    Field("driver", Choice("file", "host_device"), "a file, or a block device"),
                    Field("filename", FileName(), "its name on the host"),
                    Field("aio", _AIO, "as `aio` below", optional=True),
                ),
                "the image",
            ),
            Field(
                "cache",
                Struct(
                    Field("direct", Boolean(), "past the host's page cache", optional=True),
                    Field("no-flush", Boolean(), "has no effect: flushes flush", optional=True),
                ),
                "without it direct I/O is used where the host can",
                optional=True,
            ),
            Field(
                "read-only", Boolean(), "whether the guest only reads", optional=True, default=False
            ),
            Field(
                "driver",
                Choice("raw"),
                "the format; insists on it whatever the image looks like",
                optional=True,
            ),
            Field("aio", _AIO, "how requests are made; io_uring where it works", optional=True),
            Field(
                "discard",
                Choice("ignore", "unmap"),
                "whether discarded sectors give their room back",
                optional=True,
                default="ignore",
            ),
            Field(
                "detect-zeroes",
                Choice("off", "on", "unmap"),
                "whether written zeroes become zeroed ranges",
                optional=True,
                default="off",
            ),
            Field(
                "throttling.iops-total",
                Integer(0, 1_000_000),
                "the most requests a second, 0 for no limit",
                optional=True,
                default=0,
            ),
        ),
        example=(
            (
                '{"node-name": "drive-0", "file": {"driver": "file", "filename": "/path/to/block"},'
                ' "cache": {"direct": true}, "read-only": false}'
            ),
            "{}",
        ),
    ),
    Command(
        "blockdev-del",
        "Closes an image that no device has. (device_del does it for one that a device has.)",
        _blockdev_del,
        Struct(Field("node-name", Text(), "the backend's name")),
        example=('{"node-name": "drive-0"}', "{}"),
    ),
    Command(
        "netdev_add",
        "Opens a tap for a device_add of the same id: by its name, or as descriptors that `getfd` "
        "has named.",
        _netdev_add,
        Struct(
            Field("id", Text(), "the backend's name, and the id of its device"),
            Field("ifname", Text(_IFNAME_MAX), "the tap's name", optional=True),
            Field("fd", Text(), "an open tap", optional=True),
            Field(
                "fds", Text(), "open queues of a tap, names with colons between them", optional=True
            ),
            Field("type", Choice("tap"), "the kind of backend", optional=True),
            Field(
                "vhost",
                Boolean(words=True),
                "whether the host's kernel moves the packets",
                optional=True,
                default=False,
            ),
            Field("vhostfd", Text(), "an open /dev/vhost-net", optional=True),
            Field("vhostfds", Text(), "several, names with colons between them", optional=True),
            Field("queues", Integer(1, 8), "queue pairs", optional=True),
            Field("script", Choice("no"), "nothing is run", optional=True),
            Field("downscript", Choice("no"), "nothing is run", optional=True),
        ),
        example=('{"id": "net-0", "ifname": "tap0"}', "{}"),
    ),
    Command(
        "netdev_del",
        "Closes a tap that no device has.",
        _netdev_del,
        Struct(Field("id", Text(), "the backend's name")),
        example=('{"id": "net-0"}', "{}"),
    ),
    Command(
        "device_add",
        "Plugs a disk or NIC into a slot of the running guest. Disks have the slots 0 (vda) to 5, "
        "NICs 0 (eth0) and 1; without `addr` and `lun` the first free one is taken. Disks and NICs "
        "of the command line have slots from 0 up.",
        _device_add,
        Struct(
            Field(
                "id", Text(), "the device's name, that of its backend unless the latter is given"
            ),
            Field("driver", Text(), "virtio-blk-mmio or virtio-net-mmio"),
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
            Field("mac", Text(17), "the NIC's address, as 52:54:00:12:34:56", optional=True),
            Field("share-rw", Choice("off"), "images are not shared", optional=True),
        ),
        example=('{"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}', "{}"),
    ),
    Command(
        "device_del",
        "Unplugs a device and closes its backend: requests in flight are completed, then the guest "
        "sees a disk of size 0 or a NIC without link, then the image or tap is closed and "
        "unlocked. DEVICE_DELETED comes before the answer; the slot can be used again at once. It "
        "is refused, and nothing changes, when the host's storage does not complete a disk's "
        "requests within 5 s.",
        _device_del,
        Struct(Field("id", Text(), "the device's name")),
        example=('{"id": "drive-0"}', "{}"),
    ),
)
