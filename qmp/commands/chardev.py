"""Character devices: what is kept of what a guest said."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from ...errors import QmpError
from ..schema import Arguments, Choice, Command, Data, Field, Integer, Struct, Text

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
    return [
        {"frontend-open": one.is_open, "filename": one.filename, "label": one.label}
        for one in session.monitor.host.chardevs()
    ]


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
