"""What a back end says in a device's life, from its first answer to the end of its rings.

For each of its answers a byte: with which the honest one goes on, or is changed as the bytes after
that have it. What is left of the input comes behind them.
"""

from __future__ import annotations

import contextlib
import os
import socket

from pyvirt.devices.vhost_user import protocol as p
from pyvirt.errors import BackendError

from ..unit.devices.vhost_user.test_session import HONEST, live, say
from .input import Input

_SECONDS = 5


def answers(stream: socket.socket, source: Input) -> None:
    """Say it all at once, and end."""
    for known, honest, files in HONEST:
        request, flags, payload, count = known, 5, honest, files
        choice = source.take(1)
        if choice & 1:
            request = source.take(choice >> 7 or 1) if choice & 2 else known
            flags = source.take(1) if choice & 4 else flags
            payload = source.data(source.take(1)) if choice & 8 else honest
            count = source.take(1) % 10 if choice & 16 else files
        length = source.take(4) if choice & 1 and choice & 32 else len(payload)
        say(stream, p.HEADER.pack(request, flags, length) + payload, count)
    say(stream, source.rest())
    stream.shutdown(socket.SHUT_WR)


def fuzz(data: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    answers(theirs, Input(data))
    with contextlib.suppress(BackendError):
        live(ours, _SECONDS)
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before
