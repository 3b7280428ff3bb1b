"""What is behind NICs: netdev_add and netdev_del (vmm/hotplug.py has the rules)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import PyvirtError, QmpError
from ...vmm.hotplug import NET
from ..host import NicRequest
from ..schema import (
    Arguments,
    Boolean,
    Choice,
    Command,
    Departure,
    Field,
    Integer,
    Only,
    Scalar,
    Struct,
    Text,
)

if TYPE_CHECKING:
    from ...vmm.hotplug import Resource
    from ..session import Session

_IFNAME_MAX = 15
_VHOST_USER = "vhost-user"
# The command line's words for what is to be done, and ours.
_NET_MENDS = {
    "give the number of one that is inherited": "send one with getfd",
    "give the number of an open one": "send an open one with getfd",
}


def _names(given: Arguments, one: str, several: str) -> list[str]:
    """Return the descriptors' names in `fd` or `fds`."""
    single, plural = getattr(given, one), getattr(given, several)
    if single and plural:
        raise QmpError(f"`{one}` and `{several}` are both given; give one")
    return [single] if single else plural.split(":") if plural else []


def _tap_names(given: Arguments) -> list[str]:
    """Return the descriptors' names of the tap, none for one by its own name."""
    names = _names(given, "fd", "fds")
    if given.ifname and names:
        raise QmpError("the tap is given by `ifname` and by `fd`; give one of them")
    if not (given.ifname or names):
        raise QmpError("no tap is given; name one by `ifname`, or send one with getfd for `fd`")
    if names and given.queues not in {None, len(names)}:
        raise QmpError(f"`queues` is {given.queues}, but there are {len(names)} in `fds`")
    return names


def _add_uplink(session: Session, given: Arguments) -> object:
    """Connect to a switch, whose chardev was named before."""
    host = session.monitor.host
    for name in ("ifname", "fd", "fds", "vhost", "vhostfd", "vhostfds"):
        if getattr(given, name):
            raise QmpError(f"`{name}` is not for `type` {_VHOST_USER}; leave it out")
    if not given.chardev:
        raise QmpError(f"`type` {_VHOST_USER} needs `chardev`; give the id of one of chardev-add")
    if given.queues not in {None, 1}:
        raise QmpError(f"`queues` is {given.queues}, and slots have one pair; leave it out")
    inventory = host.inventory
    path = inventory.chardevs().get(given.chardev, "")
    inventory.add(
        NET,
        given.id,
        lambda: host.open_uplink(given.id, given.chardev, path),
        chardev=given.chardev,
    )
    return {}


def _netdev_add(session: Session, given: Arguments) -> object:
    if given.type == _VHOST_USER:
        return _add_uplink(session, given)
    if given.chardev:
        raise QmpError("`chardev` is of `type` vhost-user; give that too, or leave it out")
    host, descriptors = session.monitor.host, session.descriptors
    names = _tap_names(given)
    vhost_names = _names(given, "vhostfd", "vhostfds")
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


_TAP = Only("make the tap before, and give it by `ifname` or `fd`")
_NO_SCRIPT = Only("nothing is run on the host; give `no`", "no", "")

COMMANDS = (
    Command(
        "netdev_add",
        "Opens a tap for a device_add of the same id: by its name, or as descriptors that `getfd` "
        "has named; or connects to a switch that speaks vhost-user.",
        _netdev_add,
        Struct(
            Field("id", Text(), "the backend's name, and the id of its device"),
            Field("ifname", Text(_IFNAME_MAX), "the tap's name", optional=True),
            Field("fd", Text(), "an open tap", optional=True),
            Field(
                "fds", Text(), "open queues of a tap, names with colons between them", optional=True
            ),
            Field(
                "type",
                Choice("tap", _VHOST_USER),
                "the kind of backend",
                optional=True,
            ),
            Field(
                "chardev",
                Text(),
                "where the switch listens, of chardev-add, for `vhost-user`",
                optional=True,
            ),
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
            Field("script", _NO_SCRIPT, "nothing is run", optional=True),
            Field("downscript", _NO_SCRIPT, "nothing is run", optional=True),
            Field("br", _TAP, "QEMU's way to a tap", optional=True),
            Field("helper", _TAP, "as that", optional=True),
            Field("sndbuf", Scalar(), "has no effect: the tap's own", optional=True),
            Field(
                "vnet_hdr",
                Only("packets have headers; leave it out", True),
                "packets have a header that tells of offloads",
                optional=True,
            ),
            Field("vhostforce", Boolean(words=True), "has no effect: `vhost` asks", optional=True),
            Field("poll-us", Scalar(), "has no effect: nothing is polled", optional=True),
        ),
        departures=(
            Departure(
                "arguments.type",
                "`tap` and `vhost-user`: what else there is, is for the command line",
            ),
        ),
        example=('{"id": "net-0", "ifname": "tap0"}', "{}"),
    ),
    Command(
        "netdev_del",
        "Closes what no device has; see blockdev-del for one that a device has had.",
        _netdev_del,
        Struct(Field("id", Text(), "the backend's name")),
        example=('{"id": "net-0"}', "{}"),
    ),
)
