"""The options that describe NICs of other processes: `-netdev vhost-user` with `-device`.

Imported only when there is one.
"""

from __future__ import annotations

from ...devices import mac
from ...devices.vhost_user.net import NetConfig
from ...devices.vhost_user.socket import SocketBackEnd
from ...devices.virtio import net
from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .chardevs import Chardevs

    Words = list[tuple[str, str]]

KIND = "vhost-user"


_NETDEV: tuple[members.Member, ...] = (
    ("id", "id", members.name),
    ("chardev", "chardev", members.name),
    ("queues", "pairs", members.number(1, net.QUEUE_PAIRS_MAX)),
    ("vhostforce", "", members.switch),
)
_MTU = members.number(net.MTU_MIN, net.MTU_MAX)
_DEVICE: tuple[members.Member, ...] = (
    ("netdev", "", members.name),
    ("id", "", members.name),
    ("mac", "mac", mac.parse),
    ("mtu", "mtu", _MTU),
    ("host_mtu", "mtu", _MTU),
    ("mq", "mq", members.switch),
    (
        "queue-size",
        "queue_size",
        members.queue_size(net.QUEUE_SIZE_MIN, net.QUEUE_SIZE_MAX),
    ),
)


def split(
    all_words: Iterable[tuple[str, str]], chardevs: Chardevs
) -> tuple[Words, tuple[NetConfig, ...]]:
    """Return the options that are of other NICs, and the NICs that the rest makes; ConfigError.

    A netdev that no device names is a NIC by itself.
    """
    rest: Words = []
    netdevs: dict[str, dict[str, Any]] = {}
    for option, text in all_words:
        kind, _, given = text.partition(",")
        if option != "netdev" or kind != KIND:
            rest.append((option, text))
            continue
        fields = members.read("-netdev", pairs("-netdev", given, "") if given else [], _NETDEV)
        for name in ("id", "chardev"):
            if name not in fields:
                raise ConfigError(f"-netdev {text}: has no {name}; give {name}=ID")
        if fields["id"] in netdevs:
            raise ConfigError(f"-netdev id={fields['id']}: two have it; give each its own")
        netdevs[fields["id"]] = fields
    devices: dict[str, dict[str, Any]] = {}
    for option, text in list(rest):
        words = pairs("-device", text, "driver") if option == "device" else []
        name = dict(words).get("netdev", "")
        if name not in netdevs:
            continue
        if name in devices:
            raise ConfigError(f"-device netdev={name}: two devices have it; give each its own")
        rest.remove((option, text))
        devices[name] = members.read("-device", words[1:], _DEVICE)
    return rest, tuple(_nic(one, devices.get(name, {}), chardevs) for name, one in netdevs.items())


def _nic(netdev: dict[str, Any], device: dict[str, Any], chardevs: Chardevs) -> NetConfig:
    name, chardev, pairs = netdev["id"], netdev["chardev"], netdev.get("pairs", 1)
    if device.pop("mq", True) is False and pairs > 1:
        raise ConfigError(
            f"-device netdev={name},mq=off: the netdev has {pairs} queues; leave mq or queues out"
        )
    found = chardevs.take_client(f"-netdev {KIND},chardev={chardev}", chardev)
    address = device.pop("mac", b"") or mac.made("", name, found.path)
    where = SocketBackEnd(f"-chardev id={chardev}", found.path)
    return NetConfig(name, where, address, pairs=pairs, **device)
