"""A fork server that tells of each import, and how streams of its monitors are read."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyvirt.harness.vm.fork_server import ForkServer

PATIENCE = 30.0


@contextmanager
def telling_of_imports() -> Iterator[ForkServer]:
    """Start one, and end it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPROFILEIMPORTTIME", "1")
        server = ForkServer()
    try:
        yield server
    finally:
        server.close()


def read_all(stream: socket.socket) -> str:
    """Return what comes up to the stream's end."""
    stream.settimeout(PATIENCE)
    data = b""
    while chunk := stream.recv(65536):
        data += chunk
    return data.decode()
