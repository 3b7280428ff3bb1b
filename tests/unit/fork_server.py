"""Fork servers and templates for tests, and how streams of their monitors are read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.harness.parent import dying_with_parent
from pyvirt.harness.vm.fork_server import ForkServer

PATIENCE = 30.0
PYVIRT = str(Path(sys.executable).with_name("pyvirt"))


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


@contextmanager
def held(source: str, *words: str, seconds: float) -> Iterator[str]:
    """Run `pyvirt template`, which ends within some seconds; yield the path of its socket."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        process = subprocess.Popen(
            # Also if this is killed, or its time is over.
            [*dying_with_parent("TERM"), PYVIRT, "template", *words, source, path],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready: pyvirt fork {path}\n"
            yield path
        finally:
            process.terminate()
            assert process.wait(seconds) == 0
            process.communicate()
        assert os.listdir(folder) == []


def read_all(stream: socket.socket) -> str:
    """Return what comes up to the stream's end."""
    stream.settimeout(PATIENCE)
    data = b""
    while chunk := stream.recv(65536):
        data += chunk
    return data.decode()
