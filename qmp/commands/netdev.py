"""Taps: netdev_add and netdev_del (vmm/hotplug.py has the rules)."""

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


def _netdev_add(session: Session, given: Arguments) -> object:
    host, descriptors = session.monitor.host, session.descriptors
    if given.type == "vhost-user" or given.chardev:
        raise QmpError(
            "a vhost-user NIC cannot be plugged into a running machine; start it with -netdev "
            "vhost-user, or plug a tap"
        )
    names = _names(given, "fd", "fds")
    vhost_names = _names(given, "vhostfd", "vhostfds")
    if given.ifname and names:
        raise QmpError("the tap is given by `ifname` and by `fd`; give one of them")
    if not (given.ifname or names):
        raise QmpError("no tap is given; name one by `ifname`, or send one with getfd for `fd`")
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


_TAP = Only("make the tap before, and give it by `ifname` or `fd`")
_NO_SCRIPT = Only("nothing is run on the host; give `no`", "no", "")

COMMANDS = (
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
            Field(
                "type",
                Choice("tap", "vhost-user"),
                "the kind of backend; `vhost-user` is refused, as its NICs are for the command "
                "line",
                optional=True,
            ),
            Field("chardev", Text(), "of `vhost-user`", optional=True),
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
            Departure("arguments.type", "only `tap`: what else there is, is for the command line"),
        ),
        example=('{"id": "net-0", "ifname": "tap0"}', "{}"),
    ),
    Command(
        "netdev_del",
        "Closes a tap that no device has; see blockdev-del for one that a device has had.",
        _netdev_del,
        Struct(Field("id", Text(), "the backend's name")),
        example=('{"id": "net-0"}', "{}"),
    ),
)
