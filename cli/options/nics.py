"""The options that describe NICs: `-netdev` with `-device`, or either in one: `-net`.

Imported only when one of them is given.
"""

from __future__ import annotations

import os

from ...devices import mac
from ...devices.nic import NicConfig
from ...devices.passt import PasstConfig
from ...devices.stream import StreamConfig
from ...devices.tap import NAME_BYTES, TapConfig
from ...devices.virtio import net
from ...errors import ConfigError
from ...files import SOCKET_PATH_MAX
from . import members
from .members import pairs
from .pairing import Pairing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from ...devices.iothread import IoThread
    from ...devices.nic import Netdev

_MTU_MIN, _MTU_MAX = 68, 65535
_RATE_MAX = 1 << 40
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_FD_DIGITS = 9


def _ifname(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if not 1 <= size <= NAME_BYTES:
        raise ConfigError(f"{option} {text}: {size} bytes, a tap's name has 1 to {NAME_BYTES}")
    return text


def _fds(option: str, text: str) -> tuple[int, ...]:
    words = text.split(":")
    if not all(w.isascii() and w.isdigit() and len(w) <= _FD_DIGITS for w in words):
        raise ConfigError(f"{option} {text}: not numbers of open files, as in 3 or 3:4")
    numbers = tuple(map(int, words))
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"{option} {text}: one of them is given twice; give each once")
    return numbers


def _fd(option: str, text: str) -> tuple[int, ...]:
    numbers = _fds(option, text)
    if len(numbers) > 1:
        raise ConfigError(f"{option} {text}: one number, or give {option}s")
    return numbers


def _socket_path(option: str, text: str) -> str:
    size = len(os.fsencode(text))
    if not 1 <= size <= SOCKET_PATH_MAX:
        raise ConfigError(
            f"{option} {text}: {size} bytes, a socket's path has 1 to {SOCKET_PATH_MAX}"
        )
    return text


def _rate(option: str, text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if unit > 1 else text
    is_number = number.isascii() and number.isdigit() and len(number) < 14
    if not is_number or int(number) * unit > _RATE_MAX:
        raise ConfigError(
            f"{option} {text}: not a rate; give a number a second, up to 1024G, as 1000 or 100M"
        )
    return int(number) * unit


_NAME = ("id", "id", members.name)
_MAC = ("mac", "mac", mac.parse)
_MTU = ("mtu", "mtu", members.number(_MTU_MIN, _MTU_MAX))
_QUEUE_SIZE = (
    "queue-size",
    "queue_size",
    members.queue_size(net.QUEUE_SIZE_MIN, net.QUEUE_SIZE_MAX),
)
_IOTHREAD = ("iothread", "iothread", members.name)
_LIMITS: tuple[members.Member, ...] = (
    ("throttling.rx-bytes", "rx_bytes", _rate),
    ("throttling.rx-packets", "rx_packets", _rate),
    ("throttling.tx-bytes", "tx_bytes", _rate),
    ("throttling.tx-packets", "tx_packets", _rate),
)
_VHOST: tuple[members.Member, ...] = (
    ("vhost", "vhost", members.switch),
    ("vhostfd", "vhost_fds", _fd),
    ("vhostfds", "vhost_fds", _fds),
)
_TAP: tuple[members.Member, ...] = (
    ("ifname", "ifname", _ifname),
    ("fd", "fds", _fd),
    ("fds", "fds", _fds),
    ("queues", "queues", members.number(1, net.QUEUE_PAIRS_MAX)),
    *_VHOST,
    # There are no scripts; others are told so by these.
    ("script", "", members.only("no", "")),
    ("downscript", "", members.only("no", "")),
)
_STREAM: tuple[members.Member, ...] = (
    ("path", "path", _socket_path),
    ("addr.path", "path", _socket_path),
    ("addr.type", "", members.only("unix")),
    ("server", "", members.only("off")),
)
# By the first word of -netdev; "" is how StratoVirt 20.09 gave a tap, its address included.
_NETDEVS: dict[str, tuple[members.Member, ...]] = {
    "tap": (_NAME, *_TAP, *_LIMITS),
    "user": (_NAME, *_LIMITS),
    "stream": (_NAME, *_STREAM, *_LIMITS),
    "": (_NAME, ("netdev", "ifname", _ifname), *_TAP[1:3], *_VHOST, _MAC, _IOTHREAD, *_LIMITS),
}
_DEVICE: tuple[members.Member, ...] = (
    ("netdev", "netdev", members.name),
    ("id", "device", members.name),
    _MAC,
    _MTU,
    ("host_mtu", *_MTU[1:]),
    ("mq", "mq", members.switch),
    _QUEUE_SIZE,
    _IOTHREAD,
)
_NET = (_NAME, *_TAP, _MAC, _MTU, _QUEUE_SIZE, _IOTHREAD, *_LIMITS)
_NET_USER = (_NAME, _MAC, _MTU, _QUEUE_SIZE, _IOTHREAD, *_LIMITS)
_OF_NIC = {field for _, field, _ in (_MAC, _MTU, _QUEUE_SIZE, *_LIMITS)} | {"is_whole"}


class Nics:
    """What the options say so far, in their order."""

    __slots__ = ("_iothreads", "_pairing")

    def __init__(self, iothreads: Iterable[IoThread]) -> None:
        """`iothreads` are those that a NIC may name."""
        self._iothreads = {thread.id: thread for thread in iothreads}
        self._pairing = Pairing("netdev", "net")

    def add(self, option: str, text: str) -> None:
        """Take the value of one option: `netdev`, `device` or `net`."""
        if option == "netdev":
            self._add_netdev(text)
        elif option == "device":
            self._add_device(text)
        else:
            self._add_net(text)

    def _add_netdev(self, text: str) -> None:
        kind, _, rest = text.partition(",")
        if "=" in kind:
            kind, rest = "", text
        elif kind not in _NETDEVS or not kind:
            raise ConfigError(
                f"-netdev {kind}: no such kind; there are tap, user, stream and vhost-user"
            )
        fields = members.read("-netdev", pairs("-netdev", rest, "") if rest else [], _NETDEVS[kind])
        if "id" not in fields:
            raise ConfigError(f"-netdev {text}: has no id; give id=NAME")
        fields["backend"] = _backend("-netdev", kind or "tap", fields)
        self._pairing.add_backend(fields)

    def _add_net(self, text: str) -> None:
        given = pairs("-net", text, "ifname")
        kind = "user" if given[0] == ("ifname", "user") else "tap"
        if kind == "user":
            fields = members.read("-net", given[1:], _NET_USER)
        else:
            fields = members.read("-net", given, _NET)
        fields["backend"] = _backend("-net", kind, fields)
        fields["is_whole"] = True
        self._pairing.add_whole("-net", fields)

    def _add_device(self, text: str) -> None:
        _, _, rest = text.partition(",")
        fields = members.read("-device", pairs("-device", rest, "") if rest else [], _DEVICE)
        self._pairing.add_device(text, fields)

    def nics(self) -> tuple[NicConfig, ...]:
        """Return the NICs in the order of their options; ConfigError when they do not match.

        A netdev that no device names is a NIC by itself, in its own place.
        """
        nics = tuple(
            _nic(given, netdev, self._iothreads) for given, netdev in self._pairing.devices()
        )
        _check_unique(nics)
        return nics


def _nic(
    given: dict[str, Any], netdev: dict[str, Any], iothreads: Mapping[str, IoThread]
) -> NicConfig:
    if "mac" in given and "mac" in netdev:
        raise ConfigError(
            f"-device netdev={given['netdev']}: the MAC address is given with the "
            "-netdev too; give it once"
        )
    if netdev and given.get("mq") is False and netdev["backend"].queues > 1:
        raise ConfigError(
            f"-device netdev={given['netdev']},mq=off: the netdev has "
            f"{netdev['backend'].queues} queues; leave mq or queues out"
        )
    fields = netdev | given
    name = fields.get("iothread")
    words = {key: value for key, value in fields.items() if key in _OF_NIC}
    if name is not None:
        if name not in iothreads:
            raise ConfigError(
                f"iothread={name}: there is no such thread; add -object iothread,id={name}"
            )
        if getattr(fields["backend"], "vhost", False):
            raise ConfigError(
                f"iothread={name}: not with vhost=on, by which the kernel moves the packets; "
                "give vhost=off or leave iothread out"
            )
        words["iothread"] = iothreads[name]
    return NicConfig(fields["id"], fields["backend"], **words)


def _backend(option: str, kind: str, fields: dict[str, Any]) -> Netdev:
    """Return what the members of one option say of the host's side."""
    if kind == "user":
        return PasstConfig()
    if kind == "stream":
        if "path" not in fields:
            raise ConfigError(f"{option} stream: names no socket; give path=SOCKET")
        return StreamConfig(fields["path"])
    fds = fields.get("fds", ())
    if ("ifname" in fields) == bool(fds):
        raise ConfigError(
            f"{option} tap: name one tap, by ifname=NAME or, when it is open already, by fd=NUMBER"
        )
    queues = fields.get("queues", len(fds) or 1)
    if fds and queues != len(fds):
        raise ConfigError(f"{option} queues={queues}: there are {len(fds)} fds; give one for each")
    vhost_fds = fields.get("vhost_fds", ())
    vhost = fields.get("vhost", bool(vhost_fds))
    if vhost_fds and (not vhost or len(vhost_fds) != queues):
        raise ConfigError(
            f"{option} vhostfds={':'.join(map(str, vhost_fds))}: goes with vhost=on, "
            f"one for each of {queues} queues"
        )
    return TapConfig(
        fields.get("ifname", ""), fds=fds, queues=queues, vhost=vhost, vhost_fds=vhost_fds
    )


def _check_unique(nics: tuple[NicConfig, ...]) -> None:
    """Raise ConfigError for an address, a tap or a file that two NICs have."""
    seen: set[str] = set()
    for nic in nics:
        things = [f"mac={mac.show(nic.mac)}"] if nic.mac else []
        if isinstance(nic.netdev, TapConfig):
            things += [f"ifname={nic.netdev.ifname}"] if nic.netdev.ifname else []
            things += [f"fd={fd}" for fd in (*nic.netdev.fds, *nic.netdev.vhost_fds)]
        for thing in things:
            if thing in seen:
                message = f"-netdev {thing}: two NICs have it; give each its own"
                raise ConfigError(nic.as_given(message))
            seen.add(thing)
