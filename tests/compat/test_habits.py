"""How other clients read and write, by what their sources do: each would fail where we differ."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING, Any

import pytest

from ..unit.qmp.fake_machine import TIMEOUT, Running, running
from .govmm import Govmm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def govmm(server: Running) -> Iterator[Govmm]:
    client = Govmm(server.connect().socket)
    yield client
    client.close()


def blockdev(image: Path, driver: str = "host_device", **more: Any) -> dict[str, Any]:
    file = {"driver": driver, "filename": str(image), "aio": "", "discard": "unmap"}
    return {"driver": "raw", "read_only": False, "file": file, "node_name": "d"} | more


def test_kata_plugs_disks(govmm: Govmm, server: Running, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    cache = {"direct": True, "no-flush": False}
    device = {"id": "virtio-d", "drive": "d", "romfile": "", "share_rw": "on"}
    for backend, plug in (
        (blockdev(image), {"driver": "virtio-blk-mmio", "addr": "1", "num_queues": "2"}),
        (blockdev(image, "file", cache=cache), {"driver": "virtio-blk-pci", "bus": "pci.0"}),
        (blockdev(image, cache=cache), {"driver": "virtio-blk", "disable_modern": True}),
    ):
        govmm.do("blockdev-add", **backend)
        govmm.do("device_add", **device, **plug)
        assert list(server.host.plugged()["blk"].values()) == ["virtio-d"]
        govmm.do("device_del", id="virtio-d")
        govmm.do("blockdev-del", node_name="d")
    assert govmm.refused("blockdev-del", node_name="d").endswith("Block backend d not found")


def test_kata_plugs_nics(govmm: Govmm, server: Running) -> None:
    driver = {"driver": "virtio-net-pci", "romfile": "", "mac": "02:00:00:00:00:01", "addr": "0"}
    named = {"ifname": "tap0", "downscript": "no", "script": "no"}
    with open("/dev/null", "rb") as tap, open("/dev/null", "rb") as vhost:
        govmm.do("getfd", tap.fileno(), fdname="fd0")
        govmm.do("getfd", vhost.fileno(), fdname="vhost0")
    by_fds = {"fds": "fd0", "vhost": True, "vhostfds": "vhost0"}
    for backend in (named, named | {"script": "", "downscript": ""}, by_fds):
        govmm.do("netdev_add", type="tap", id="n", **backend)
        govmm.do("device_add", id="nic", netdev="n", mq="on", vectors=6, **driver)
        assert server.host.plugged()["net"] == {0: "nic"}
        govmm.do("device_del", id="nic")
        govmm.do("netdev_del", id="n")


def test_kata_asks(govmm: Govmm) -> None:
    for command in ("stop", "stop", "cont", "cont", "query-cpus", "query-cpus-fast",
                    "query-hotpluggable-cpus", "query-migrate", "query-qmp-schema"):  # fmt: skip
        govmm.do(command)
    assert govmm.do("query-memory-devices") == []
    assert govmm.do("query-status")["status"] == "running"
    dump = {"protocol": "file:/dev/shm/x", "paging": False, "format": "kdump-zlib"}
    assert govmm.refused("dump-guest-memory", **dump) == (
        "GenericError: `format` kdump-zlib is not offered: give `elf`"
    )
    off = {"capability": "ignore-shared", "state": False}
    govmm.do("migrate-set-capabilities", capabilities=[off])


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("device_add", {"driver": "vfio-pci", "id": "v", "host": "0:1.0", "romfile": ""},
         "GenericError: Unsupported replaceable device type."),
        ("device_add", {"driver": "host-x86_64-cpu", "id": "c", "core_id": "1"},
         "GenericError: Unsupported replaceable device type."),
        ("device_add", {"driver": "pc-dimm", "id": "dimm0", "memdev": "mem0"},
         "GenericError: Unsupported replaceable device type."),
        ("object-add", {"qom_type": "memory-backend-ram", "id": "mem0", "size": 1 << 27},
         "GenericError: objects are made at the start; give -object"),
        ("object-del", {"id": "mem0"}, "GenericError: objects stay to the end of the machine"),
        ("chardev-add", {"id": "c", "backend": {"type": "socket", "data": {"server": True}}},
         "GenericError: missing field `backend.data.addr`"),
        ("chardev-remove", {"id": "c"},
         "GenericError: Chardev c not found; make it with chardev-add"),
        ("balloon", {"value": 1 << 27},
         "DeviceNotActive: No balloon device has been activated"),
        ("migrate", {"uri": "exec:cat"}, "GenericError: MicroVM does not support migration"),
        ("migrate-incoming", {"uri": "exec:cat"},
         "GenericError: MicroVM does not support migration"),
        ("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]},
         ("GenericError: `capabilities.state` true is not offered: there is no migration; "
         "give false")),
        ("qom-set", {"path": "/machine", "property": "x", "value": 1},
         ("GenericError: there is no property to set but a balloon's "
         "guest-stats-polling-interval; see device_add and block_resize")),
    ],
)  # fmt: skip
def test_kata_is_told_what_there_is_not(
    govmm: Govmm, command: str, arguments: dict[str, Any], text: str
) -> None:
    assert govmm.refused(command, **arguments) == text


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
