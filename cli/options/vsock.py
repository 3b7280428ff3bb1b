"""The options that describe the socket device: `-device vsock-device` and its like.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices.virtio.vsock import CID_MAX, CID_MIN, PATH_BYTES, VhostVsockConfig, VsockConfig
from ...errors import ConfigError
from . import members
from .members import pairs
from .sockets import FD_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .gather import Parts

    Config = VsockConfig | VhostVsockConfig

_OWN_DRIVER = "vsock-device"  # the others are StratoVirt's, of old and of today
_ID = "vsock0"
_RESERVED = {
    0: "the hypervisor's",
    1: "a guest's own, for itself",
    2: "the host's",
    CID_MAX + 1: "anybody's",
}


def _cid(option: str, text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else -1
    if CID_MIN <= number <= CID_MAX:
        return number
    why = f"that address is {_RESERVED[number]}; give" if number in _RESERVED else "not"
    raise ConfigError(f"{option} {text}: {why} a number from {CID_MIN} to {CID_MAX}")


def _path(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if not 1 <= size <= PATH_BYTES:
        raise ConfigError(
            f"{option} {text}: {size} bytes, the path has 1 to {PATH_BYTES}, "
            "so that _PORT finds room behind it; shorten it"
        )
    return text


_OWN: tuple[members.Member, ...] = (
    ("guest-cid", "guest_cid", _cid),
    ("uds", "path", _path),
    ("id", "id", members.name),
)


_VHOST: tuple[members.Member, ...] = (
    ("guest-cid", "guest_cid", _cid),
    ("vhostfd", "fd", members.number(3, FD_MAX)),
    ("id", "id", members.name),
)


def read(texts: Sequence[str], _parts: Parts) -> tuple[Config, ...]:
    """Return the one device that a value of `-device` makes; ConfigError."""
    if len(texts) > 1:
        raise ConfigError(f"-device {texts[1]}: there is a socket device already; drop one")
    (text,) = texts
    driver, _, rest = text.partition(",")
    given = pairs("-device", rest, "") if rest else []
    fields = members.read("-device", given, _OWN if driver == _OWN_DRIVER else _VHOST)
    if "guest_cid" not in fields:
        raise ConfigError(f"-device {text}: has no guest-cid; give one, such as guest-cid=3")
    name, cid = fields.get("id", _ID), fields["guest_cid"]
    if driver != _OWN_DRIVER:
        return (VhostVsockConfig(name, cid, fields.get("fd", -1), driver=driver),)
    if "path" not in fields:
        raise ConfigError(f"-device {text}: names no socket of the host; give uds=PATH")
    return (VsockConfig(name, cid, fields["path"]),)
