"""The options that describe vhost-user devices: `-device vhost-user-fs-device` and its like.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices.vhost_user import block, fs
from ...devices.vhost_user.socket import SocketBackEnd
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ...devices.virtio.device import DeviceConfig
    from .gather import Parts

FS, BLOCK = "vhost-user-fs-device", "vhost-user-blk-device"


def tag(option: str, text: str) -> bytes:
    """Read the name by which a guest mounts a file system."""
    name = os.fsencode(text)
    if not 1 <= len(name) <= fs.TAG_BYTES:
        raise ConfigError(f"{option} {text}: {len(name)} bytes, a tag has 1 to {fs.TAG_BYTES}")
    return name


_COMMON: tuple[members.Member, ...] = (
    ("chardev", "chardev", members.name),
    ("id", "id", members.name),
)
_FS: tuple[members.Member, ...] = (
    *_COMMON,
    ("tag", "tag", tag),
    ("num-request-queues", "queues", members.number(1, fs.QUEUES_MAX)),
    ("queue-size", "queue_size", members.queue_size(fs.QUEUE_SIZE_MIN, fs.QUEUE_SIZE_MAX)),
)
_BLOCK: tuple[members.Member, ...] = (
    *_COMMON,
    ("num-queues", "queues", members.number(1, block.QUEUES_MAX)),
    ("queue-size", "queue_size", members.queue_size(block.QUEUE_SIZE_MIN, block.QUEUE_SIZE_MAX)),
    ("config-wce", "config_wce", members.switch),
)


def read(texts: Iterable[str], parts: Parts) -> tuple[DeviceConfig, ...]:
    """Return the devices that the values of `-device` make; ConfigError."""
    found: list[DeviceConfig] = []
    tags: set[bytes] = set()
    for text in texts:
        driver, _, rest = text.partition(",")
        given = pairs("-device", rest, "") if rest else []
        fields = members.read("-device", given, _FS if driver == FS else _BLOCK)
        where = _back_end(text, driver, fields, parts)
        fields.setdefault("id", _free_id(driver, found))
        if driver == BLOCK:
            found.append(block.BlockConfig(back_end=where, **fields))
            continue
        if "tag" not in fields:
            raise ConfigError(f"-device {text}: has no tag; give tag=NAME")
        if fields["tag"] in tags:
            name = os.fsdecode(fields["tag"])
            raise ConfigError(f"-device {FS},tag={name}: two have it; give each its own")
        tags.add(fields["tag"])
        found.append(fs.FsConfig(back_end=where, **fields))
    return tuple(found)


def _back_end(text: str, driver: str, fields: dict[str, Any], parts: Parts) -> SocketBackEnd:
    if "chardev" not in fields:
        raise ConfigError(f"-device {text}: names no chardev; give chardev=ID")
    name = fields.pop("chardev")
    chardev = parts.chardevs.take_client(f"-device {driver},chardev={name}", name)
    return SocketBackEnd(f"-chardev id={name}", chardev.path)


def _free_id(driver: str, found: list[DeviceConfig]) -> str:
    """Return the first of fs0, fs1, ... (or blk0, ...) that no device before has."""
    base, taken = driver.split("-")[2], {device.id for device in found}
    number = 0
    while f"{base}{number}" in taken:
        number += 1
    return f"{base}{number}"
