"""Tiny guests beside the fork server, on the channels that the harness gives its VMs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.harness.vm import config
from pyvirt.harness.vm.fork_server import ForkServer, Process

from ..unit.fork_server import read_all, telling_of_imports
from .support import PATIENCE

pytestmark = pytest.mark.any_kvm
Kernel = Callable[[str], Path]


@pytest.fixture
def server() -> Iterator[ForkServer]:
    with telling_of_imports() as server:
        yield server


def run(server: ForkServer, kernel: Path, *words: str) -> Process:
    options = ["-m", "128", "-kernel", str(kernel), *words]
    return Process(server.path, [*options, *config.CHANNELS], config.STREAMS)


def test_guest_on_all_channels(server: ForkServer, kernel: Kernel, tmp_path: Path) -> None:
    """And nothing is imported for it: a monitor tells of each module, as it is asked to."""
    (tmp_path / "disk").write_bytes(bytes(4096))
    monitor = run(server, kernel("console"), "-disk", str(tmp_path / "disk"))
    try:
        monitor.streams["events"].sendall(b'{"execute": "qmp_capabilities"}\n')
        assert "hello from a tiny guest\n" in read_all(monitor.streams["console"])
        messages = [json.loads(line) for line in read_all(monitor.streams["events"]).splitlines()]
        assert "QMP" in messages[0]
        assert read_all(monitor.streams["messages"]) == ""
        assert monitor.wait(PATIENCE)
        assert monitor.status == 42
    finally:
        monitor.close()


def test_guest_ends_with_its_control_connection(server: ForkServer, kernel: Kernel) -> None:
    monitor = run(server, kernel("spin"))
    try:
        qmp = monitor.streams["qmp"]
        qmp.settimeout(PATIENCE)
        qmp.sendall(b'{"execute": "query-status"}\n')
        said = b""
        while b'"running"' not in said:
            data = qmp.recv(4096)
            assert data
            said += data
        monitor.kill()
        assert monitor.wait(PATIENCE)
        assert monitor.status == -9
    finally:
        monitor.close()
