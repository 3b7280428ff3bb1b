"""Faults, sizes and links by QMP: what is understood, and what is refused in which words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.devices.virtio.fault import KINDS, OPERATIONS

from .fake_machine import GENERIC, Bench, add_disk

if TYPE_CHECKING:
    from collections.abc import Iterable


@pytest.fixture
def bench(bench: Bench, image: str) -> Bench:
    """A machine with a disk in slot 1 and a NIC in slot 0."""
    add_disk(bench, image, "drive")
    bench.do("device_add", id="disk", driver="virtio-blk-mmio", drive="drive", addr="1")
    bench.do("netdev_add", id="nic", ifname="tap0")
    bench.do("device_add", id="nic", driver="virtio-net-mmio")
    return bench


def test_a_fault_with_everything(bench: Bench) -> None:
    answer = bench.do(
        "x-fault-add",
        device="disk",
        kind="fail",
        ops=["read", "write"],
        errno="ENOSPC",
        after=100,
        every=2,
        count=3,
        sectors={"first": 8, "last": 15},
    )
    assert answer == {"id": 1}
    ((device, state),) = bench.host.asked
    fault = state.fault
    assert (device, fault.kind, fault.ops, fault.errno) == ("disk", "fail", ("read", "write"), 28)
    assert (fault.after, fault.every, fault.count, fault.sectors) == (100, 2, 3, (8, 15))


def test_a_fault_with_nothing(bench: Bench) -> None:
    bench.do("x-fault-add", device="disk", kind="fail")
    fault = bench.host.asked[0][1].fault
    assert (fault.ops, fault.errno, fault.after, fault.every, fault.count) == ((), 5, 0, 1, 0)
    assert fault.sectors is None


def test_what_is_shown(bench: Bench) -> None:
    bench.do("x-fault-add", device="disk", kind="delay", ops=["flush"], delay=5000, count=1)
    bench.do(
        "x-fault-add", device="disk", kind="corrupt", offset=7, sectors={"first": 1, "last": 2}
    )
    bench.do("x-fault-add", device="nic", kind="drop", every=10)
    bench.host.asked[0][1].hits = bench.host.asked[0][1].seen = 1
    common = {"after": 0, "every": 1, "seen": 0, "hits": 0, "spent": False, "ops": []}
    shown = [
        common
        | {"device": "disk", "id": 1, "kind": "delay", "ops": ["flush"], "count": 1, "delay": 5000}
        | {"seen": 1, "hits": 1, "spent": True},
        common
        | {"device": "disk", "id": 2, "kind": "corrupt", "offset": 7}
        | {"sectors": {"first": 1, "last": 2}},
        common | {"device": "nic", "id": 3, "kind": "drop", "every": 10},
    ]
    assert bench.do("query-x-faults") == shown
    assert bench.do("query-x-faults", device="nic") == shown[2:]


def _among(words: Iterable[str]) -> str:
    return " or ".join(f"`{word}`" for word in words)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "burn"},
     f"unknown variant `burn`, expected {_among(KINDS)} for `kind`"),
    ({"kind": "delay"}, "missing field `delay`: how long, in microseconds"),
    ({"kind": "delay", "delay": -1},
     "invalid value: integer `-1`, expected a number from 1 to 3600000000 for `delay`"),
    ({"kind": "delay", "delay": 1.5},
     "invalid type: floating point `1.5`, expected a number from 1 to 3600000000 for `delay`"),
    ({"kind": "fail", "delay": 5}, "`delay` is not for kind fail; leave it out"),
    ({"kind": "drop", "errno": "EIO"}, "`errno` is not for kind drop; leave it out"),
    ({"kind": "fail", "offset": 0}, "`offset` is not for kind fail; leave it out"),
    ({"kind": "fail", "errno": "EFOO"},
     "`errno` EFOO is no error; give one of errno(3), such as EIO or ENOSPC"),
    ({"kind": "fail", "errno": "errorcode"},
     "`errno` errorcode is no error; give one of errno(3), such as EIO or ENOSPC"),
    ({"kind": "fail", "after": -1},
     "invalid value: integer `-1`, expected a number from 0 to 9007199254740991 for `after`"),
    ({"kind": "fail", "every": 0},
     "invalid value: integer `0`, expected a number from 1 to 9007199254740991 for `every`"),
    ({"kind": "fail", "count": 0},
     "invalid value: integer `0`, expected a number from 1 to 9007199254740991 for `count`"),
    ({"kind": "fail", "ops": ["eat"]},
     f"unknown variant `eat`, expected {_among(OPERATIONS)} for `ops`"),
    ({"kind": "fail", "ops": "read"}, 'invalid type: string "read", expected a sequence for `ops`'),
    ({"kind": "fail", "ops": []}, "`ops` is empty; name some, or leave it out"),
    ({"kind": "fail", "sectors": {"first": 2, "last": 1}},
     "`sectors.first` 2 is behind `sectors.last` 1"),
    ({"kind": "fail", "sectors": {"first": 2}}, "missing field `sectors.last`"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_refused(bench: Bench, arguments: dict[str, Any], text: str) -> None:
    before = bench.state()
    assert bench.refused("x-fault-add", device="disk", **arguments) == (GENERIC, text)
    assert bench.state() == before
    assert bench.host.asked == []


def test_clearing(bench: Bench) -> None:
    bench.do("x-fault-clear")
    bench.do("x-fault-clear", device="disk")
    bench.do("x-fault-clear", device="disk", id=3)
    assert bench.host.calls == ["clear None None", "clear disk None", "clear disk 3"]
    assert bench.refused("x-fault-clear", id=3) == (
        GENERIC,
        "`id` 3 is one of which device's? Give `device` too",
    )


def test_breaking(bench: Bench) -> None:
    bench.do("x-fault-break", device="nic")
    assert bench.host.calls == ["break nic"]


def test_resizing(bench: Bench) -> None:
    bench.do("block_resize", device="disk", size=4096)
    bench.do("block_resize", device="vdb", size=512)
    bench.do("block_resize", node_name="drive", size=8192)
    assert bench.host.calls == ["resize disk 4096", "resize disk 512", "resize disk 8192"]
    for given in ({}, {"device": "disk", "node_name": "drive"}):
        assert bench.refused("block_resize", size=512, **given) == (
            GENERIC,
            "the disk is given by `device` or by `node-name`; give one of them",
        )
    for name in ("nic", "vda", "drive"):
        assert bench.refused("block_resize", device=name, size=512) == (
            GENERIC,
            f"Cannot find device='{name}' nor node-name='{name}'; query-block lists all",
        )
    assert bench.refused("block_resize", device="disk", size=-512)[1].startswith("invalid value")


def test_links(bench: Bench) -> None:
    bench.do("set_link", name="nic", up=False)
    bench.do("set_link", name="eth0", up=True)
    assert bench.host.calls == ["set_link nic False", "set_link nic True"]
    for name in ("disk", "eth1", "vdb"):
        assert bench.refused("set_link", name=name, up=True) == (
            GENERIC,
            f"Device '{name}' not found; give a NIC's id",
        )


def test_an_id_goes_before_a_place(bench: Bench) -> None:
    """A disk may be called vdb and be in another slot."""
    find = bench.host.inventory.find
    assert [getattr(find(name), "id", None) for name in ("disk", "vdb", "eth0", "vda")] == [
        "disk", "disk", "nic", None
    ]  # fmt: skip
    bench.do("netdev_add", id="vdb", ifname="tap1")
    bench.do("device_add", id="vdb", driver="virtio-net-mmio")
    found = find("vdb")
    assert found is not None
    assert found.place == "eth1"
