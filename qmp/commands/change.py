"""What changes about disks and NICs that are plugged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import QmpError
from ...vmm.hotplug import BLOCK, NET
from ..schema import Arguments, Boolean, Command, Field, Integer, Struct, Text

if TYPE_CHECKING:
    from ..session import Session

_SIZE_MAX = (1 << 63) - 1


def _block_resize(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    if (given.device is None) == (given.node_name is None):
        raise QmpError("the disk is given by `device` or by `node-name`; give one of them")
    if given.device is not None:
        device = host.inventory.find(given.device)
    else:
        by_backend = {one.backend.id: one for one in host.inventory.devices(BLOCK)}
        device = by_backend.get(given.node_name)
    if device is None or device.backend.kind != BLOCK:
        name = given.device or given.node_name
        raise QmpError(f"Cannot find device='{name}' nor node-name='{name}'; query-block lists all")
    host.resize(device, given.size)
    return {}


def _set_link(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    device = host.inventory.find(given.name)
    if device is None or device.backend.kind != NET:
        raise QmpError(f"Device '{given.name}' not found; give a NIC's id")
    host.set_link(device, up=given.up)
    return {}


COMMANDS = (
    Command(
        "block_resize",
        "Gives a disk another size, with its image, which grows or is cut off. Requests in flight "
        "are completed before; the guest sees the new capacity. A block device of the host has to "
        "have the new size already.",
        _block_resize,
        Struct(
            Field("device", Text(), "the disk's id, or vda and so on", optional=True),
            Field("node-name", Text(), "or its backend's name", optional=True),
            Field("size", Integer(0, _SIZE_MAX), "bytes, a multiple of 512 and of the image's own"),
        ),
        since="pyvirt",
        example=('{"device": "drive-0", "size": 67108864}', "{}"),
    ),
    Command(
        "set_link",
        "Takes a NIC's link down, or up again. While it is down, packets are dropped.",
        _set_link,
        Struct(
            Field("name", Text(), "the NIC's id, or eth0 and so on"),
            Field("up", Boolean(), "whether there is a link"),
        ),
        since="pyvirt",
        example=('{"name": "net-0", "up": false}', "{}"),
    ),
)
