"""Disks and NICs of other processes by QMP: chardevs, plugging, and what is refused how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.errors import BackendError

from .fake_machine import Bench, add_disk

if TYPE_CHECKING:
    from pathlib import Path

DRIVERS = ("vhost-user-blk-mmio", "vhost-user-blk-device")


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "s"
    path.touch()
    return str(path)


def backend(path: str, **more: Any) -> dict[str, Any]:
    data = {"addr": {"type": "unix", "data": {"path": path}}, "server": False, **more}
    return {"type": "socket", "data": data}


def add(bench: Bench, path: str, name: str = "c") -> None:
    bench.do("chardev-add", id=name, backend=backend(path))


def labels(bench: Bench) -> dict[str, tuple[bool, str]]:
    found = bench.do("query-chardev")
    return {one["label"]: (one["frontend-open"], one["filename"]) for one in found}


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_disk_comes_and_goes(bench: Bench, path: str, driver: str) -> None:
    add(bench, path)
    assert labels(bench)["c"] == (False, f"unix:{path}")
    assert bench.host.exports == []
    for _ in range(2):
        bench.do("device_add", id="d", driver=driver, chardev="c", addr="0x2")
        assert bench.host.plugged() == {"blk": {2: "d"}, "net": {}}
        assert bench.host.exports == [path]
        assert labels(bench)["c"][0]
        (disk,) = bench.do("query-block")
        assert disk["inserted"]["file"] == path
        bench.do("device_del", id="d")
        assert bench.events.pop() == ("DEVICE_DELETED", {"device": "d", "path": "d"})
        assert bench.host.exports == []
        assert not labels(bench)["c"][0]
    bench.do("chardev-remove", id="c")
    assert "c" not in labels(bench)


def test_what_is_not_needed_has_no_effect(bench: Bench, path: str) -> None:
    bench.do("chardev-add", id="c", backend=backend(path, wait=False, nodelay=False, reconnect=1))
    bench.do("device_add", id="d", driver=DRIVERS[0], chardev="c", lun=0, num_queues=1, bus="b")
    assert bench.host.plugged()["blk"] == {1: "d"}


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"type": "file"}, "unknown variant `file`, expected `socket` for `backend.type`"),
        ({"data": {"server": False}}, "missing field `backend.data.addr`"),
        (
            {"data": {"addr": {"type": "unix", "data": {"path": "/s"}}}},
            "missing field `backend.data.server`",
        ),
        (
            backend("/s", server=True),
            "`backend.data.server` true is not offered: the back end listens; give false",
        ),
        (backend("/s", tls=1), "unknown field `tls`, expected one of"),
        (backend(""), "`backend.data.addr.data.path` is no file name"),
        (backend("/s\0"), "`backend.data.addr.data.path` is no file name"),
        (
            backend("/" + "é" * 54),
            "`backend.data.addr.data.path` has 109 bytes, a socket's has 107 at most; give a",
        ),
        (
            {"data": {"addr": {"type": "inet", "data": {"path": "/s"}}, "server": False}},
            "unknown variant `inet`, expected `unix` for `backend.data.addr.type`",
        ),
    ],
)
def test_chardevs_that_cannot_be(bench: Bench, members: dict[str, Any], text: str) -> None:
    before = labels(bench)
    assert text in bench.refused("chardev-add", id="c", backend={"type": "socket", **members})[1]
    assert labels(bench) == before


def test_ids_of_chardevs(bench: Bench, path: str) -> None:
    add(bench, path)
    for name, text in (
        ("c", "Chardev c is there already; send chardev-remove first"),
        ("serial0", "Chardev serial0 is there from the start; give another id"),
    ):
        assert bench.refused("chardev-add", id=name, backend=backend(path))[1] == text
    for name, text in (
        ("x", "Chardev x not found; make it with chardev-add"),
        ("serial0", "Chardev serial0 is there from the start, and stays"),
    ):
        assert bench.refused("chardev-remove", id=name)[1] == text
    bench.do("device_add", id="d", driver=DRIVERS[0], chardev="c")
    text = "Chardev c is in use by device d; send device_del for that first"
    assert bench.refused("chardev-remove", id="c")[1] == text


def test_there_is_a_most_of_chardevs(bench: Bench, path: str) -> None:
    for number in range(64):
        add(bench, path, f"c{number}")
    text = "there are 64 chardevs, the most; remove one first"
    assert bench.refused("chardev-add", id="c", backend=backend(path))[1] == text


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"chardev": None}, "driver vhost-user-blk-mmio needs `chardev`; give the id of one of"),
        ({"chardev": "x"}, "Chardev x not found; make it with chardev-add"),
        ({"chardev": "used"}, "Chardev used is in use by device other; give each device its own"),
        ({"chardev": "gone"}, "nobody listens"),
        ({"id": "other"}, "other is already registered."),
        ({"id": "image"}, "image is already registered."),
        ({"addr": "1"}, "The slot 1 is occupied already."),
        ({"addr": "6"}, "A maximum of 6 block replaceable devices are supported."),
        ({"addr": "x"}, "Invalid addr for device d"),
        ({"drive": "image"}, "`drive` is not for driver vhost-user-blk-mmio; leave it out"),
        ({"serial": "s"}, "`serial` is not for driver vhost-user-blk-mmio; leave it out"),
        ({"iothread": "io0"}, "`iothread` is not for driver vhost-user-blk-mmio; leave it out"),
        ({"driver": "vhost-user-net-mmio"}, "is not for slots; send netdev_add with `type` vhost"),
        ({"driver": "vhost-user-fs-device"}, "Unsupported replaceable device type."),
        ({"driver": "virtio-blk-mmio"}, "`chardev` is not for driver virtio-blk-mmio; leave it"),
    ],
)
def test_what_cannot_be_plugged(
    bench: Bench, image: str, path: str, members: dict[str, Any], text: str
) -> None:
    """Nothing stays behind, and the chardev can be used."""
    for name in ("c", "used"):
        add(bench, path, name)
    add(bench, "/nowhere/s", "gone")
    bench.do("device_add", id="other", driver=DRIVERS[0], chardev="used", addr="1")
    add_disk(bench, image, "image")
    before = bench.state()
    words = {"id": "d", "driver": DRIVERS[0], "chardev": "c", **members}
    given = {name: value for name, value in words.items() if value is not None}
    assert text in bench.refused("device_add", **given)[1]
    assert bench.state() == before
    assert bench.host.exports == [path]
    bench.do("device_add", id="d", driver=DRIVERS[0], chardev="c")
    assert bench.host.exports == [path, path]


def test_a_slot_that_refuses(bench: Bench, path: str) -> None:
    add(bench, path)
    bench.host.refusal = BackendError("does not fit")
    assert bench.refused("device_add", id="d", driver=DRIVERS[0], chardev="c")[1] == "does not fit"
    assert bench.host.exports == []
    bench.host.refusal = None
    bench.do("device_add", id="d", driver=DRIVERS[0], chardev="c")
    bench.host.refusal = BackendError("is busy")
    assert bench.refused("device_del", id="d")[1] == "is busy"
    assert bench.host.exports == [path]
    bench.host.refusal = None
    bench.do("device_del", id="d")
    assert bench.host.exports == []


NETDEV = {"id": "n", "type": "vhost-user", "chardev": "c"}
NIC = "virtio-net-mmio"


def test_a_nic_comes_and_goes(bench: Bench, path: str) -> None:
    add(bench, path)
    for _ in range(2):
        bench.do("netdev_add", **NETDEV, queues=1, vhostforce=True)
        assert bench.host.exports == [path]
        assert labels(bench)["c"][0]
        bench.do("device_add", id="n", driver=NIC, addr="0x1", mac="52:54:00:12:34:56")
        assert bench.host.plugged() == {"blk": {}, "net": {1: "n"}}
        bench.do("device_del", id="n")
        assert bench.events.pop() == ("DEVICE_DELETED", {"device": "n", "path": "n"})
        assert bench.host.exports == []
        assert not labels(bench)["c"][0]
    bench.do("netdev_add", **NETDEV)
    bench.do("netdev_del", id="n")
    assert bench.host.exports == []
    bench.do("chardev-remove", id="c")


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"chardev": None}, "`type` vhost-user needs `chardev`; give the id of one of chardev-add"),
        ({"chardev": "x"}, "Chardev x not found; make it with chardev-add"),
        ({"chardev": "used"}, "Chardev used is in use by netdev other; give each device its own"),
        ({"chardev": "gone"}, "nobody listens"),
        ({"id": "other"}, "other is already registered."),
        ({"queues": 2}, "`queues` is 2, and slots have one pair; leave it out"),
        ({"ifname": "tap0"}, "`ifname` is not for `type` vhost-user; leave it out"),
        ({"fd": "f"}, "`fd` is not for `type` vhost-user; leave it out"),
        ({"vhost": True}, "`vhost` is not for `type` vhost-user; leave it out"),
        ({"type": None}, "`chardev` is of `type` vhost-user; give that too, or leave it out"),
        ({"type": "tap"}, "`chardev` is of `type` vhost-user; give that too, or leave it out"),
    ],
)
def test_netdevs_that_cannot_be(
    bench: Bench, path: str, members: dict[str, Any], text: str
) -> None:
    """Nothing stays behind, and the chardev can be used."""
    for name in ("c", "used"):
        add(bench, path, name)
    add(bench, "/nowhere/s", "gone")
    bench.do("netdev_add", id="other", type="vhost-user", chardev="used")
    before = bench.state()
    given = {name: value for name, value in {**NETDEV, **members}.items() if value is not None}
    assert text in bench.refused("netdev_add", **given)[1]
    assert bench.state() == before
    assert bench.host.exports == [path]
    bench.do("netdev_add", **NETDEV)
    text = "Chardev c is in use by netdev n; send netdev_del for that first"
    assert bench.refused("chardev-remove", id="c")[1] == text


def test_a_slot_that_refuses_a_nic(bench: Bench, path: str) -> None:
    """As of a tap, its backend stays until netdev_del, or for another try."""
    add(bench, path)
    bench.do("netdev_add", **NETDEV)
    bench.host.refusal = BackendError("does not fit")
    assert bench.refused("device_add", id="n", driver=NIC)[1] == "does not fit"
    assert bench.host.exports == [path]
    bench.host.refusal = None
    bench.do("device_add", id="n", driver=NIC)
    bench.do("device_del", id="n")
    assert bench.host.exports == []
