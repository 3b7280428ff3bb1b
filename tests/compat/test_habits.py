"""How other clients read and write, by what their sources do: each would fail where we differ."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ..unit.qmp.fake_machine import TIMEOUT, Running, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as server:
        yield server


def test_kata(server: Running) -> None:
    """govmm: lines up to one with QMP.version.qemu, of major 5 or more; then a line at a time."""
    client = server.connect()
    lines = client.socket.makefile("rb")
    version = json.loads(next(lines))["QMP"]["version"]["qemu"]
    assert version["major"] >= 5

    def execute(command: str, **arguments: Any) -> None:
        client.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            line = next(lines)
            assert len(line) < 1 << 16
            message = json.loads(line)
            if "return" in message:
                return
            assert "event" in message

    execute("qmp_capabilities")
    execute("netdev_add", id="n", ifname="tap0")
    execute("device_add", id="n", driver="virtio-net-mmio", addr="1")
    execute("device_del", id="n")
    lines.close()


def test_libvirt(server: Running) -> None:
    """Splits on CR LF only, sends it, and takes no object that it does not know."""
    client = server.connect()
    buffer = b""

    def reply() -> dict[str, Any]:
        nonlocal buffer
        while True:
            line, end, rest = buffer.partition(b"\r\n")
            if not end:
                buffer += client.socket.recv(1024)
                continue
            buffer = rest
            message: dict[str, Any] = json.loads(line)
            assert message.keys() & {"QMP", "event", "return", "error"}
            if "event" not in message:
                return message

    assert "QMP" in reply()
    for number, name in enumerate(("qmp_capabilities", "query-version", "query-commands", "stop")):
        client.send(b'{"execute":"%b","id":"libvirt-%d"}\r\n' % (name.encode(), number))
        message = reply()
        assert message["id"] == f"libvirt-{number}"
        if name == "query-version":
            assert isinstance(message["return"]["package"], str)
            assert set(message["return"]["qemu"]) == {"major", "minor", "micro"}


def test_hydropper(server: Running) -> None:
    """StratoVirt's tests: no newline, one recv of 1024 bytes for an answer and its event."""
    client = server.connect()
    assert "QMP" in json.loads(client.socket.recv(1024))
    client.send(b'{"execute": "qmp_capabilities"}')
    assert json.loads(client.socket.recv(1024)) == {"return": {}}
    client.send(b'{"execute": "stop"}')
    lines = [line for line in client.socket.recv(1024).split(b"\n") if line]
    assert [set(json.loads(line)) for line in lines] == [{"event", "data", "timestamp"}, {"return"}]
    client.send(b'{"execute": "query-status"}')
    assert json.loads(client.socket.recv(1024))["return"]["status"] == "paused"


def test_kvm_unit_tests(server: Running) -> None:
    """Two objects in one piece, then the write side is closed; what comes is searched for words."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(server.path)
        client.sendall(b'{"execute": "qmp_capabilities"}{"execute": "query-status"}')
        client.shutdown(socket.SHUT_WR)
        said = b""
        while data := client.recv(4096):
            said += data
    assert said.count(b"return") == 2
    assert re.search(rb'"status":"running"', said)


def test_nixos(server: Running) -> None:
    """One non-blocking readline for each message, which must be whole."""
    client = server.connect()
    with client.socket.makefile("r") as lines:
        assert "QMP" in json.loads(lines.readline())
        client.send(b'{"execute": "qmp_capabilities"}\n')
        assert json.loads(lines.readline()) == {"return": {}}
        client.send(b'{"execute": "cont"}\n')
        assert json.loads(lines.readline()) == {"return": {}}
