"""Character devices: what is kept of what a guest said."""

from __future__ import annotations

import base64
import binascii
import os
from typing import TYPE_CHECKING

from ...errors import QmpError
from ...files import SOCKET_PATH_MAX
from ..schema import (
    Arguments,
    Boolean,
    Choice,
    Command,
    Data,
    Departure,
    Field,
    FileName,
    Integer,
    Only,
    Scalar,
    Struct,
    Text,
)

if TYPE_CHECKING:
    from ..session import Session

_UTF8, _BASE64 = "utf8", "base64"
_READ_MAX = 1 << 20  # bytes in one answer
_WRITE_MAX = 64 << 10  # characters in one request
_FORMAT = Field(
    "format", Choice(_UTF8, _BASE64), "how `data` stands for bytes", optional=True, default=_UTF8
)
_DEVICE = Field("device", Text(), "the id of a `-chardev ringbuf`")


def _list(session: Session, _: Arguments) -> object:
    host = session.monitor.host
    return [
        {"frontend-open": one.is_open, "filename": one.filename, "label": one.label}
        for one in host.chardevs()
    ] + [
        {
            "frontend-open": bool(host.inventory.user_of(name)),
            "filename": f"unix:{path}",
            "label": name,
        }
        for name, path in host.inventory.chardevs().items()
    ]


def _add(session: Session, given: Arguments) -> object:
    host, path = session.monitor.host, given.backend.data.addr.data.path
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise QmpError(
            f"`backend.data.addr.data.path` has {len(os.fsencode(path))} bytes, a socket's has "
            f"{SOCKET_PATH_MAX} at most; give a shorter one"
        )
    if any(one.label == given.id for one in host.chardevs()):
        raise QmpError(f"Chardev {given.id} is there from the start; give another id")
    host.inventory.add_chardev(given.id, path)
    return {}


def _remove(session: Session, given: Arguments) -> object:
    host = session.monitor.host
    if any(one.label == given.id for one in host.chardevs()):
        raise QmpError(f"Chardev {given.id} is there from the start, and stays")
    host.inventory.remove_chardev(given.id)
    return {}


_UNIX = Struct(
    Field("path", FileName(), "its name"),
    Field("abstract", Only("the socket is a file; give false", False), "no file", optional=True),
    Field("tight", Scalar(), "has no effect: of abstract ones", optional=True),
)
_ADDRESS = Struct(
    Field("type", Choice("unix"), "a socket of this host"),
    Field("data", _UNIX, "where it is"),
)
_SOCKET = Struct(
    Field("addr", _ADDRESS, "the socket"),
    Field("server", Only("the back end listens; give false", False), "who listens"),
    Field("wait", Boolean(), "has no effect: nobody is waited for", optional=True),
    Field("nodelay", Boolean(), "has no effect: of TCP", optional=True),
    Field("reconnect", Scalar(), "has no effect: another back end may come", optional=True),
    *(
        Field(name, Only("what is said is vhost-user; give false", False), what, optional=True)
        for name, what in (
            ("telnet", "in telnet's form"),
            ("tn3270", "in tn3270's form"),
            ("websocket", "in WebSocket's form"),
        )
    ),
    Field("tls-creds", Only("both are on this host; leave it out"), "encrypted", optional=True),
    Field("tls-authz", Only("both are on this host; leave it out"), "encrypted", optional=True),
    Field("logfile", Only("nothing is logged; leave it out"), "a log", optional=True),
    Field("logappend", Scalar(), "has no effect: of logs", optional=True),
)
_BACKEND = Struct(
    Field("type", Choice("socket"), "the kind"),
    Field("data", _SOCKET, "what it is"),
)


def _read(session: Session, given: Arguments) -> object:
    data = session.monitor.host.read_ringbuf(given.device, given.size)
    if given.format == _BASE64:
        return base64.b64encode(data).decode()
    return data.decode(errors="replace")


def _write(session: Session, given: Arguments) -> object:
    data = given.data.encode()
    if given.format == _BASE64:
        try:
            data = base64.b64decode(given.data, validate=True)
        except binascii.Error as error:
            raise QmpError(f"`data` is not in base64: {error}") from None
    session.monitor.host.write_ringbuf(given.device, data)
    return {}


COMMANDS = (
    Command("query-chardev", "Returns the character devices.", _list, since="v2"),
    Command(
        "chardev-add",
        "Names the Unix socket of a back end of vhost-user, for a device_add. That connects; here "
        "nobody does.",
        _add,
        Struct(Field("id", Text(), "its name"), Field("backend", _BACKEND, "what it is")),
        since="pyvirt",
        departures=(
            Departure("arguments.backend.type", "only `socket`: others are for the command line"),
            Departure("arguments.backend.data.addr.type", "only `unix`: memory is shared there"),
            Departure("arguments.backend.data.server", "to be given, as false"),
        ),
        example=(
            (
                '{"id": "c", "backend": {"type": "socket", "data": {"addr": {"type": "unix", '
                '"data": {"path": "/path/to/socket"}}, "server": false}}}'
            ),
            "{}",
        ),
    ),
    Command(
        "chardev-remove",
        "Forgets a chardev of chardev-add that no device has.",
        _remove,
        Struct(Field("id", Text(), "its name")),
        since="pyvirt",
        example=('{"id": "c"}', "{}"),
    ),
    Command(
        "ringbuf-read",
        "Takes the oldest bytes out of a ring buffer and returns them; what is not UTF-8 is "
        "replaced.",
        _read,
        Struct(
            _DEVICE,
            Field("size", Integer(1, _READ_MAX), "how many bytes at most"),
            _FORMAT,
        ),
        since="pyvirt",
        example=('{"device": "log", "size": 1000}', '"Linux version 6.1\\n"'),
    ),
    Command(
        "ringbuf-write",
        "Appends bytes to a ring buffer, as if the guest had written them.",
        _write,
        Struct(_DEVICE, Field("data", Data(_WRITE_MAX), "the bytes"), _FORMAT),
        since="pyvirt",
        example=('{"device": "log", "data": "now the test begins\\n"}', "{}"),
    ),
)
