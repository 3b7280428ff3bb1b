"""Plugging by QMP: what is understood, and what is refused in which words, changing nothing."""

from __future__ import annotations

import fcntl
import gc
import os
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.errors import BackendError
from pyvirt.qmp.host import DiskRequest

from ..refusal import unprivileged
from .fake_machine import GENERIC, Bench, File, add_disk, file

if TYPE_CHECKING:
    from pathlib import Path


def is_free(path: str) -> bool:
    """Return whether nobody holds a lock on the image."""
    with open(path, "r+b") as opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


# As operators send them.


def test_disk_as_operators_plug_it(bench: Bench, image: str) -> None:
    request: dict[str, Any] = {
        "execute": "blockdev-add",
        "arguments": {
            "node-name": "drive-0",
            "file": {"driver": "file", "filename": image},
            "cache": {"direct": False},
            "read-only": False,
        },
    }
    assert bench.monitor.execute(bench.session, request).message == {"return": {}}
    assert not is_free(image)
    arguments = {"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}
    request = {"execute": "device_add", "arguments": arguments}
    assert bench.monitor.execute(bench.session, request).message == {"return": {}}
    assert bench.host.plugged() == {"blk": {1: "drive-0"}, "net": {}}
    request = {"execute": "device_del", "arguments": {"id": "drive-0"}}
    assert bench.monitor.execute(bench.session, request).message == {"return": {}}
    assert bench.events == [("DEVICE_DELETED", {"device": "drive-0", "path": "drive-0"})]
    assert bench.host.plugged() == {"blk": {}, "net": {}}
    assert is_free(image)


def test_an_image_of_another_format_needs_a_word_more(bench: Bench, image: str) -> None:
    with open(image, "r+b") as opened:
        opened.write(b"QFI\xfb")
    _, message = bench.refused("blockdev-add", node_name="d", file=file(image))
    assert message == (
        f"Failed to add drive {image}: a qcow2 image, and disks are raw; convert it: qemu-img "
        f"convert -O raw {image} {image}.raw; or give `driver` raw and the guest sees it as it is"
    )
    add_disk(bench, image, driver="raw")


def test_nic_as_operators_plug_it(bench: Bench) -> None:
    bench.do("netdev_add", id="net-0", ifname="tap0")
    bench.do("device_add", id="net-0", driver="virtio-net-mmio", addr="0x0")
    assert bench.host.plugged() == {"blk": {}, "net": {0: "net-0"}}
    assert bench.host.taps == {"tap0"}
    bench.do("device_del", id="net-0")
    assert bench.host.plugged() == {"blk": {}, "net": {}}
    assert bench.host.taps == set()


def test_backend_that_went_with_its_device_may_be_removed_once(bench: Bench, image: str) -> None:
    """QEMU's clients remove the backend next."""
    add_disk(bench, image)
    bench.do("device_add", id="vdb", driver="blk", drive="drive-0")
    bench.do("netdev_add", id="net-0", ifname="tap0")
    bench.do("device_add", id="net-0", driver="net")
    bench.do("device_del", id="vdb")
    bench.do("device_del", id="net-0")
    assert bench.do("blockdev-del", node_name="drive-0") == {}
    assert bench.do("netdev_del", id="net-0") == {}
    not_found = "Block backend drive-0 not found"
    assert bench.refused("blockdev-del", node_name="drive-0")[1] == not_found


def test_what_went_is_forgotten_when_it_comes_again(bench: Bench, image: str) -> None:
    for _ in range(2):
        add_disk(bench, image)
        bench.do("device_add", id="drive-0", driver="blk")
        bench.do("device_del", id="drive-0")
    add_disk(bench, image)
    bench.do("blockdev-del", node_name="drive-0")
    assert bench.refused("blockdev-del", node_name="drive-0")[0] == GENERIC


def test_what_went_is_not_kept_for_ever(bench: Bench, image: str) -> None:
    for number in range(65):
        add_disk(bench, image, f"d{number}")
        bench.do("device_add", id=f"d{number}", driver="blk")
        bench.do("device_del", id=f"d{number}")
    assert bench.refused("blockdev-del", node_name="d0")[0] == GENERIC
    assert bench.do("blockdev-del", node_name="d1") == {}


def request_of(bench: Bench) -> DiskRequest:
    (backend,) = bench.host.inventory.backends("blk")
    assert isinstance(backend.resource, File)
    return backend.resource.request


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ({}, {}, {}),
        ({"driver": "host_device"}, {}, {}),
        ({"aio": ""}, {"aio": ""}, {}),
        ({"aio": "native"}, {"aio": ""}, {"engine": "io_uring"}),
        ({"aio": "native"}, {"aio": "threads"}, {"engine": "threads"}),
        ({"overlay": "memory"}, {}, {"overlay": "memory"}),
        ({"discard": "unmap"}, {}, {"unmap": True}),
        ({"discard": "unmap"}, {"discard": "ignore"}, {}),
        ({"discard": "unmap", "detect-zeroes": "unmap"}, {},
         {"unmap": True, "detect_zeroes": "unmap"}),
        ({"read-only": True}, {}, {"readonly": True}),
        ({"cache": {"direct": False}}, {}, {"direct": False}),
        # What the file system cannot do is done without: `query-block` tells.
        ({}, {"cache": {"direct": True, "no-flush": True}}, {}),
        ({}, {"cache": {"no-flush": False}}, {}),
        ({"locking": "auto", "auto-read-only": True, "force-share": False, "node-name": "file",
          "aio-max-batch": 4, "drop-cache": True, "x-check-cache-dropped": False},
         {"auto-read-only": True, "force-share": False}, {}),
    ],
)  # fmt: skip
def test_what_clients_send_for_an_image(
    bench: Bench, image: str, inner: Any, outer: Any, expected: dict[str, Any]
) -> None:
    add_disk(bench, image, file=file(image) | inner, **outer)
    assert request_of(bench) == DiskRequest("drive-0", image, **expected)


WITHOUT_EFFECT: dict[str, Any] = {
    "bus": "pcie.0", "multifunction": False, "romfile": "", "share-rw": "on", "bootindex": "1",
    "queue-size": 128, "logical_block_size": 512, "physical_block_size": 4096, "discard": "on",
    "vhostfd": "3", "disable-modern": True, "vectors": 10, "config-wce": "off", "host": "00:1f.0",
    "sysfsdev": "/sys/x", "mq": "on", "num-queues": "4",
}  # fmt: skip


def test_every_member_of_stratovirt_is_taken(bench: Bench, image: str) -> None:
    add_disk(bench, image)
    bench.do("netdev_add", id="net-0", ifname="tap0")
    disk = {"drive": "drive-0", "serial": "S", "iothread": "io0", "addr": "1"}
    nic = {"chardev": "net-0", "mac": "52:54:00:00:00:01", "addr": "0", "iothread": "io0"}
    for arguments in (BLK | disk | {"id": "d"}, NIC | nic | {"id": "n"}):
        request = {"execute": "device_add", "arguments": arguments | WITHOUT_EFFECT}
        assert bench.monitor.execute(bench.session, request).message == {"return": {}}
    assert bench.host.plugged() == {"blk": {1: "d"}, "net": {0: "n"}}
    assert bench.host.slots["blk", 1].iothread == "io0"


def test_later_dialect_names_the_backend(bench: Bench, image: str) -> None:
    add_disk(bench, image, "node")
    bench.do("device_add", id="disk", driver="virtio-blk-device", drive="node", serial="S1")
    bench.do("netdev_add", id="tap", ifname="tap0")
    bench.do(
        "device_add", id="nic", driver="virtio-net-device", netdev="tap", mac="52:54:00:00:00:01"
    )
    assert bench.host.plugged() == {"blk": {0: "disk"}, "net": {0: "nic"}}
    assert bench.host.slots["blk", 0].serial == "S1"
    assert bench.host.slots["net", 0].mac == "52:54:00:00:00:01"
    bench.do("device_del", id="disk")
    assert bench.events[-1] == ("DEVICE_DELETED", {"device": "disk", "path": "disk"})
    add_disk(bench, image, "node")


@pytest.mark.parametrize(
    ("given", "slot"),
    [
        ({"addr": "0x0"}, 0),
        ({"addr": "0X5"}, 5),
        ({"addr": "3"}, 3),
        ({"addr": "05"}, 5),
        ({"lun": 0}, 1),
        ({"lun": 4}, 5),
        ({}, 0),
    ],
)
def test_slot_of_a_disk(bench: Bench, image: str, given: dict[str, Any], slot: int) -> None:
    add_disk(bench, image)
    bench.do("device_add", id="drive-0", driver="virtio-blk-mmio", **given)
    assert bench.host.plugged()["blk"] == {slot: "drive-0"}


def test_first_free_slot_is_taken(bench: Bench, tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / f"{number}"
        path.write_bytes(bytes(512))
        add_disk(bench, str(path), f"d{number}")
    bench.do("device_add", id="d0", driver="blk", addr="0x1")
    for number in range(1, 6):
        bench.do("device_add", id=f"d{number}", driver="blk")
    assert bench.host.plugged()["blk"] == dict(enumerate(["d1", "d0", "d2", "d3", "d4", "d5"]))
    bench.do("device_del", id="d2")
    add_disk(bench, str(tmp_path / "2"), "again")
    bench.do("device_add", id="again", driver="blk")
    assert bench.host.plugged()["blk"][2] == "again"


# What is refused. Each case: what has happened before, the request, class and text.

Ask = tuple[str, dict[str, Any]]
BLK = {"driver": "virtio-blk-mmio"}
NIC = {"driver": "virtio-net-mmio"}
PLUG: Ask = ("device_add", {"id": "drive-0", "addr": "0x1"} | BLK)
TAP: Ask = ("netdev_add", {"id": "net-0", "ifname": "tap0"})
PLUG_NIC: Ask = ("device_add", {"id": "net-0", "addr": "0x0"} | NIC)


def blockdev(path: str = "IMAGE", *, name: str = "drive-0", **more: Any) -> Ask:
    return "blockdev-add", {"node-name": name, "file": file(path)} | more


ADD = blockdev()
IOPS: dict[str, Any] = {"throttling.iops-total": -1}
REFUSED: list[tuple[str, list[Ask], Ask, str]] = [
    # blockdev-add
    ("duplicate-id", [ADD], blockdev("OTHER"), "drive-0 is already registered."),
    ("duplicate-id-of-tap", [TAP], blockdev(name="net-0"), "net-0 is already registered."),
    ("same-file-twice", [ADD], blockdev(name="x"), ("Failed to add drive IMAGE, file can only be "
     "shared with read_only. Is it used more than once or another process using the same file?")),
    ("missing-file", [], blockdev("FOLDER/none"),
     "Failed to get metadata of file FOLDER/none: No such file or directory (os error 2)"),
    ("directory", [], blockdev("FOLDER"), "FOLDER is not a regular file or block device."),
    ("character-device", [], blockdev("/dev/null"),
     "/dev/null is not a regular file or block device."),
    ("empty-file-name", [], blockdev(""), "`file.filename` is no file name: ''; name a file"),
    ("nul-in-file-name", [], blockdev("/x\0y"),
     "`file.filename` is no file name: '/x\\\\x00y'; name a file"),
    ("surrogate-in-file-name", [], blockdev("/\ud800"),
     "`file.filename` is no file name: '/\\\\ud800'; name a file"),
    ("long-file-name", [], blockdev("/" + "x" * 300), "Failed to get metadata of file /"
     + "x" * 300 + ": File name too long (os error 36)"),
    ("empty-file", [], blockdev("EMPTY"),
     "Failed to add drive EMPTY: empty; give it a size, as by: truncate -s 1G EMPTY"),
    ("odd-size", [], blockdev("ODD"), ("Failed to add drive ODD: 513 bytes, a disk has a multiple "
     "of 512; run: truncate -s %512 ODD")),
    ("file-driver", [], ("blockdev-add", {"node-name": "d", "file": {"driver": "nbd",
     "filename": "x"}}),
     "unknown variant `nbd`, expected `file` or `host_device` for `file.driver`"),
    ("format", [], blockdev(driver="qcow2"),
     "unknown variant `qcow2`, expected `raw` for `driver`"),
    ("no-file", [], ("blockdev-add", {"node-name": "d"}), "missing field `file`"),
    ("no-file-name", [], ("blockdev-add", {"node-name": "d", "file": {"driver": "file"}}),
     "missing field `file.filename`"),
    ("file-is-no-map", [], ("blockdev-add", {"node-name": "d", "file": "x"}),
     'invalid type: string "x", expected a map for `file`'),
    ("unknown-member-of-file", [], ("blockdev-add", {"node-name": "d", "file": {"driver": "file",
     "filename": "x", "size": 1}}),
     ("unknown field `size`, expected one of `driver`, `filename`, `aio`, `discard`, `locking`, "
      "`pr-manager`, `read-only`, `detect-zeroes`, `cache`, `overlay`, `node-name`, "
      "`auto-read-only`, `force-share`, `aio-max-batch`, `drop-cache`, `x-check-cache-dropped`")),
    ("read-only-is-a-word", [], blockdev(**{"read-only": "yes"}),
     'invalid type: string "yes", expected a boolean for `read-only`'),
    ("overlay-of-what-is-read", [], ("blockdev-add", {"node-name": "d", "read-only": True, "file":
        {"driver": "file", "filename": "IMAGE", "overlay": "memory"}}),
     "`overlay`: nothing is written with `read-only` true; leave one of them out"),
    ("unmap-without-discard", [], blockdev(**{"detect-zeroes": "unmap"}),
     "`detect-zeroes` unmap goes with `discard` unmap; give both"),
    ("iops", [], blockdev(**IOPS), ("invalid value: integer `-1`, "
     "expected a number from 0 to 1000000 for `throttling.iops-total`")),
    ("long-id", [], blockdev(name="x" * 256),
     "`node-name` has 256 characters, 1 to 255 are accepted"),
    ("empty-id", [], blockdev(name=""), "`node-name` has 0 characters, 1 to 255 are accepted"),
    ("line-feed-in-id", [], blockdev(name="a\nb"),
     "`node-name` has a character that cannot be printed: a\\nb"),
    # blockdev-del, netdev_del
    ("delete-unknown", [], ("blockdev-del", {"node-name": "x"}), "Block backend x not found"),
    ("delete-tap-as-disk", [TAP], ("blockdev-del", {"node-name": "net-0"}),
     "Block backend net-0 not found"),
    ("delete-used", [ADD, PLUG], ("blockdev-del", {"node-name": "drive-0"}),
     "drive-0 is in use by device drive-0; send device_del for that first"),
    ("delete-unknown-tap", [], ("netdev_del", {"id": "x"}), "Net backend x not found"),
    ("delete-used-tap", [TAP, PLUG_NIC], ("netdev_del", {"id": "net-0"}),
     "net-0 is in use by device net-0; send device_del for that first"),
    # netdev_add
    ("unknown-tap", [], ("netdev_add", {"id": "n", "ifname": "eth7"}),
     "ifname eth7: no such tap; make it first"),
    ("tap-in-use", [TAP], ("netdev_add", {"id": "n", "ifname": "tap0"}),
     "Tap device already in use"),
    ("duplicate-net-id", [TAP], ("netdev_add", {"id": "net-0", "ifname": "tap1"}),
     "net-0 is already registered."),
    ("no-tap", [], ("netdev_add", {"id": "n"}),
     "no tap is given; name one by `ifname`, or send one with getfd for `fd`"),
    ("two-taps", [], ("netdev_add", {"id": "n", "ifname": "tap0", "fd": "x"}),
     "the tap is given by `ifname` and by `fd`; give one of them"),
    ("long-ifname", [], ("netdev_add", {"id": "n", "ifname": "t" * 16}),
     "`ifname` has 16 characters, 1 to 15 are accepted"),
    ("fd-and-fds", [], ("netdev_add", {"id": "n", "fd": "a", "fds": "b"}),
     "`fd` and `fds` are both given; give one"),
    ("unknown-fd", [], ("netdev_add", {"id": "n", "fds": "a:b"}),
     "File descriptor named 'a' not found; send it with getfd first"),
    ("number-as-fd", [], ("netdev_add", {"id": "n", "fd": "3"}),
     "File descriptor named '3' not found; send it with getfd first"),
    ("queues", [], ("netdev_add", {"id": "n", "fds": "a:b", "queues": 3}),
     "`queues` is 3, but there are 2 in `fds`"),
    # device_add
    ("no-backend", [], PLUG, "Failed to find device configuration."),
    ("no-such-drive", [ADD], ("device_add", {"id": "drive-0", "drive": "x"} | BLK),
     "Failed to find device configuration."),
    ("wrong-driver-for-disk", [ADD], ("device_add", {"id": "drive-0"} | NIC),
     "The device type is net, but the target config is not for this type."),
    ("wrong-driver-for-nic", [TAP], ("device_add", {"id": "net-0"} | BLK),
     "The device type is blk, but the target config is not for this type."),
    ("unknown-driver", [ADD], ("device_add", {"id": "drive-0", "driver": "e1000"}),
     "Unsupported replaceable device type."),
    ("addr-out-of-range", [ADD], ("device_add", {"id": "drive-0", "addr": "0x6"} | BLK),
     "A maximum of 6 block replaceable devices are supported."),
    ("addr-huge", [ADD], ("device_add", {"id": "drive-0", "addr": "0xfffffff"} | BLK),
     "A maximum of 6 block replaceable devices are supported."),
    ("nic-addr-out-of-range", [TAP], ("device_add", {"id": "net-0", "addr": "2"} | NIC),
     "A maximum of 2 net replaceable devices are supported."),
    ("lun-out-of-range", [ADD], ("device_add", {"id": "drive-0", "lun": 5} | BLK),
     "A maximum of 6 block replaceable devices are supported."),
    ("addr-taken", [ADD, PLUG, blockdev("OTHER", name="o")],
     ("device_add", {"id": "o", "addr": "0x1"} | BLK), "The slot 1 is occupied already."),
    ("lun-taken", [ADD, PLUG, blockdev("OTHER", name="o")],
     ("device_add", {"id": "o", "lun": 0} | BLK), "The slot 1 is occupied already."),
    ("nic-addr-taken", [TAP, PLUG_NIC, ("netdev_add", {"id": "n", "ifname": "tap1"})],
     ("device_add", {"id": "n", "addr": "0"} | NIC), "The slot 6 is occupied already."),
    ("lun-with-addr", [ADD], ("device_add", {"id": "drive-0", "lun": 1, "addr": "0x1"} | BLK),
     "`addr` and `lun` are both given for device drive-0; give one"),
    ("lun-of-nic", [TAP], ("device_add", {"id": "net-0", "lun": 0} | NIC),
     "`lun` is given for device net-0, which is no disk; give `addr`"),
    *[(f"addr-{text!r}", [ADD], ("device_add", {"id": "drive-0", "addr": text} | BLK),
       "Invalid addr for device drive-0")
      for text in ("x", "0x", "-1", "+1", " 1", "1_0", "0xg", "²", "1" * 10, "1.0")],
    ("addr-is-a-number", [ADD], ("device_add", {"id": "drive-0", "addr": 1} | BLK),
     "invalid type: integer `1`, expected a string for `addr`"),
    ("lun-is-a-string", [ADD], ("device_add", {"id": "drive-0", "lun": "1"} | BLK),
     'invalid type: string "1", expected a number from 0 to 255 for `lun`'),
    ("lun-is-true", [ADD], ("device_add", {"id": "drive-0", "lun": True} | BLK),
     "invalid type: boolean `true`, expected a number from 0 to 255 for `lun`"),
    ("lun-is-no-whole-number", [ADD], ("device_add", {"id": "drive-0", "lun": 1.5} | BLK),
     "invalid type: floating point `1.5`, expected a number from 0 to 255 for `lun`"),
    ("lun-negative", [ADD], ("device_add", {"id": "drive-0", "lun": -1} | BLK),
     "invalid value: integer `-1`, expected a number from 0 to 255 for `lun`"),
    ("no-driver", [ADD], ("device_add", {"id": "drive-0"}), "missing field `driver`"),
    ("unknown-member", [ADD], ("device_add", {"id": "drive-0", "slot": 1} | BLK),
     ("unknown field `slot`, expected one of `id`, `driver`, `addr`, `lun`, `drive`, `netdev`, "
      "`serial`, `mac`, `chardev`, `iothread`, `num-queues`, `queue-size`, "
      "`logical_block_size`, `physical_block_size`, `host_mtu`, `mq`, `config-wce`, `bus`, "
      "`multifunction`, `romfile`, `vectors`, `disable-modern`, `host`, `sysfsdev`, "
      "`bootindex`, `discard`, `vhostfd`, `share-rw`")),
    ("plugged-twice", [ADD, PLUG], ("device_add", {"id": "drive-0", "addr": "0x2"} | BLK),
     "Device drive-0 is plugged already; send device_del first"),
    ("backend-used-twice", [ADD, PLUG], ("device_add", {"id": "d2", "drive": "drive-0"} | BLK),
     "drive-0 is in use by device drive-0 already"),
    ("netdev-of-disk", [ADD],
     ("device_add", {"id": "d", "drive": "drive-0", "netdev": "x"} | BLK),
     "`netdev` is not for driver virtio-blk-mmio; leave it out"),
    ("drive-of-nic", [TAP],
     ("device_add", {"id": "n", "drive": "net-0", "netdev": "net-0"} | NIC),
     "`drive` is not for driver virtio-net-mmio; leave it out"),
    ("netdev-and-chardev", [TAP],
     ("device_add", {"id": "n", "chardev": "x", "netdev": "net-0"} | NIC),
     "`netdev` and `chardev` are both given; give the first, the NIC's backend"),
    ("unknown-iothread", [ADD],
     ("device_add", {"id": "drive-0", "iothread": "io1"} | BLK),
     "`iothread` io1: there is no such I/O thread; there are io0"),
    ("driver-before-its-members", [],
     ("device_add", {"id": "dimm", "driver": "pc-dimm", "memdev": "m"}),
     "Unsupported replaceable device type."),
    ("member-without-effect-is-a-map", [ADD],
     ("device_add", {"id": "drive-0", "romfile": {}} | BLK),
     "invalid type: map, expected a string, a number or a boolean for `romfile`"),
    ("image-in-parts", [], blockdev(offset=512),
     "`offset` 512 is not offered: an image is a disk as a whole"),
    ("locking-off", [], ("blockdev-add", {"node-name": "d", "file": {"driver": "file",
     "filename": "IMAGE", "locking": "off"}}),
     "`file.locking` off is not offered: images are locked; give `auto`"),
    ("script", [], ("netdev_add", {"id": "n", "ifname": "tap0", "script": "/etc/up"}),
     "`script` /etc/up is not offered: nothing is run on the host; give `no`"),
    ("delete-backend-that-never-was", [], ("blockdev-del", {"node-name": "x"}),
     "Block backend x not found"),
    ("delete-tap-that-never-was", [], ("netdev_del", {"id": "x"}), "Net backend x not found"),
    ("delete-withdrawn-twice", [ADD, PLUG, ("device_del", {"id": "drive-0"}),
     ("blockdev-del", {"node-name": "drive-0"})],
     ("blockdev-del", {"node-name": "drive-0"}), "Block backend drive-0 not found"),
    ("delete-withdrawn-of-the-other-kind", [ADD, PLUG, ("device_del", {"id": "drive-0"})],
     ("netdev_del", {"id": "drive-0"}), "Net backend drive-0 not found"),
    ("mac-of-disk", [ADD], ("device_add", {"id": "drive-0", "mac": "52:54:00:00:00:01"} | BLK),
     "`mac` is not for driver virtio-blk-mmio; leave it out"),
    ("serial-of-nic", [TAP], ("device_add", {"id": "net-0", "serial": "x"} | NIC),
     "`serial` is not for driver virtio-net-mmio; leave it out"),
    ("mac", [TAP], ("device_add", {"id": "net-0", "mac": "52:54:00:00:00"} | NIC),
     "`mac` 52:54:00:00:00 is no address; give one such as 52:54:00:12:34:56"),
    ("mac-of-group", [TAP], ("device_add", {"id": "net-0", "mac": "01:00:5e:00:00:01"} | NIC),
     "`mac` 01:00:5e:00:00:01 is a group's address; give one whose first byte is even"),
    # device_del
    ("delete-unknown-device", [], ("device_del", {"id": "x"}), "Device x not found"),
    ("delete-unplugged", [ADD], ("device_del", {"id": "drive-0"}), "Device drive-0 not found"),
    ("delete-twice", [ADD, PLUG, ("device_del", {"id": "drive-0"})],
     ("device_del", {"id": "drive-0"}), "Device drive-0 not found"),
    # others
    ("memory-outside", [], ("query-mem-gpa", {"gpa": "ffffffffff"}),
     "`gpa` ffffffffff is not in the guest's memory"),
    ("memory-no-number", [], ("query-mem-gpa", {"gpa": "0xzz"}),
     "`gpa` 0xzz is no hexadecimal address"),
    ("memory-sign", [], ("query-mem-gpa", {"gpa": "-1"}), "`gpa` -1 is no hexadecimal address"),
    ("register-unknown", [], ("query-vcpu-reg", {"addr": "603000000013df1a", "vcpu": 0}),
     "`addr` 603000000013df1a is no register; give one such as rip or cr3"),
    ("register-of-nobody", [], ("query-vcpu-reg", {"addr": "rip", "vcpu": 2}),
     "`vcpu` 2: the machine has 2, counted from 0"),
    ("human", [], ("human-monitor-command", {"command-line": "device_add\x1b[2J"}),
     "`command-line` has a character that cannot be printed: device_add\\x1b[2J"),
    ("human-unknown", [], ("human-monitor-command", {"command-line": "savevm a"}),
     ("Unsupported command: savevm a; there are info block, info name, info registers, "
      "info registers -a, info snapshots, info status, info version")),
    ("capability", [], ("qmp_capabilities", {"enable": ["oob"]}),
     "Capability 'oob' is not offered; leave `enable` out"),
    ("no-descriptor", [], ("getfd", {"fdname": "x"}), "Invalid SCM message"),
    ("descriptor-name", [], ("getfd", {"fdname": "1x"}),
     "`fdname` 1x begins with a digit; give a name that does not"),
    ("closefd", [], ("closefd", {"fdname": "x"}),
     "File descriptor named 'x' not found; send it with getfd first"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "request_", "text"),
    [pytest.param(*case[1:], id=case[0]) for case in REFUSED],
)
def test_refused_and_nothing_changes(
    bench: Bench, tmp_path: Path, before: list[Ask], request_: Ask, text: str
) -> None:
    paths = {name: str(tmp_path / name.lower()) for name in ("IMAGE", "OTHER", "EMPTY", "ODD")}
    for name, size in (("IMAGE", 4096), ("OTHER", 4096), ("EMPTY", 0), ("ODD", 513)):
        with open(paths[name], "wb") as made:
            made.truncate(size)
    paths["FOLDER"] = str(tmp_path)

    def real(ask: Ask) -> dict[str, Any]:
        arguments = dict(ask[1])
        if isinstance(arguments.get("file"), dict):
            filename = arguments["file"].get("filename", "")
            for name, path in paths.items():
                filename = filename.replace(name, path)
            if filename:
                arguments["file"] = arguments["file"] | {"filename": filename}
        return {"execute": ask[0], "arguments": arguments}

    for ask in before:
        message = bench.monitor.execute(bench.session, real(ask)).message
        assert message == {"return": {}}, message
    was = bench.state()
    answer = bench.monitor.execute(bench.session, real(request_)).message
    for name, path in paths.items():
        text = text.replace(name, path)
    assert answer == {"error": {"class": GENERIC, "desc": text}}
    assert bench.state() == was


def test_file_without_permission(bench: Bench) -> None:
    # Not in pytest's folder, which only its owner can enter.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        image = f"{folder}/image"
        with open(image, "wb") as made:
            made.truncate(512)
        os.chmod(image, 0)
        was = bench.state()
        with unprivileged():
            answer = bench.refused("blockdev-add", node_name="d", file=file(image))
        assert answer == (
            GENERIC,
            (
                f"Failed to add drive {image}: Permission denied; "
                "give `read-only` true, or make it writable"
            ),
        )
        assert bench.state() == was


def test_folder_without_permission(bench: Bench, image: str) -> None:
    os.chmod(os.path.dirname(image), 0)
    was = bench.state()
    with unprivileged():
        answer = bench.refused("blockdev-add", node_name="d", file=file(image))
    os.chmod(os.path.dirname(image), 0o700)
    assert answer == (
        GENERIC,
        f"Failed to get metadata of file {image}: Permission denied (os error 13)",
    )
    assert bench.state() == was


def test_at_most_eight_backends(bench: Bench) -> None:
    for number in range(8):
        bench.do("netdev_add", id=f"n{number}", ifname=f"tap{number}")
    assert bench.refused("netdev_add", id="n8", ifname="tap8") == (
        GENERIC,
        "A maximum of 8 replaceable devices are supported.",
    )
    assert "tap8" not in bench.host.taps


def test_slots_run_out(bench: Bench) -> None:
    for number in range(3):
        bench.do("netdev_add", id=f"n{number}", ifname=f"tap{number}")
    bench.do("device_add", id="n0", driver="net")
    bench.do("device_add", id="n1", driver="net")
    assert bench.refused("device_add", id="n2", driver="net") == (
        GENERIC,
        "A maximum of 2 net replaceable devices are supported.",
    )


@pytest.mark.parametrize("what", ["attach", "detach"])
def test_slot_that_refuses(bench: Bench, image: str, what: str) -> None:
    add_disk(bench, image)
    if what == "detach":
        bench.do("device_add", id="drive-0", driver="blk")
    was = bench.state()
    bench.host.refusal = BackendError("disk drive-0: the guest's driver takes no read-only disk")
    asked = ("device_add", {"driver": "blk"}) if what == "attach" else ("device_del", {})
    assert bench.refused(asked[0], id="drive-0", **asked[1]) == (
        GENERIC,
        "disk drive-0: the guest's driver takes no read-only disk",
    )
    assert bench.state() == was
    bench.host.refusal = None
    bench.do(asked[0], id="drive-0", **asked[1])


def test_readers_share_an_image(bench: Bench, image: str) -> None:
    for name in ("a", "b"):
        add_disk(bench, image, name, read_only=True)
    assert bench.refused("blockdev-add", node_name="c", file=file(image))[0] == GENERIC


def test_backend_that_no_device_took_is_closed_by_name(bench: Bench, image: str) -> None:
    add_disk(bench, image)
    bench.do("blockdev-del", node_name="drive-0")
    assert is_free(image)
    bench.do("netdev_add", id="n", ifname="tap0")
    bench.do("netdev_del", id="n")
    assert bench.host.taps == set()


def test_an_unplugged_backend_is_freed_at_once(bench: Bench, image: str) -> None:
    add_disk(bench, image)
    bench.do("device_add", id="drive-0", driver="virtio-blk-mmio", addr="0x0")
    (backend,) = bench.host.inventory.backends("blk")
    resource = weakref.ref(backend.resource)
    del backend
    gc.disable()
    try:
        bench.do("device_del", id="drive-0")
        assert resource() is None
    finally:
        gc.enable()


# Slots on demand.

RNG = {"id": "r", "driver": "virtio-rng-device"}


def ask(bench: Bench, command: str, **arguments: Any) -> Any:
    request = {"execute": command, "arguments": arguments}
    message: Any = bench.monitor.execute(bench.session, request).message
    return message["return"] if "return" in message else message["error"]["desc"]


def test_another_device_takes_the_members_of_its_option(bench: Bench) -> None:
    bench.host.on_demand = True
    given = {"rng": "src", "max-bytes": 5, "flag": True, "other": False, "addr": "0x3"}
    assert ask(bench, "device_add", **RNG, **given) == {}
    members = {"rng": "src", "max-bytes": "5", "flag": "on", "other": "off"}
    assert bench.host.others == {"r": ("virtio-rng-device", members)}
    bench.host.is_bound = True
    assert "a driver of the guest has it; unbind" in ask(bench, "device_del", id="r")
    assert bench.host.others
    bench.host.is_bound = False
    assert ask(bench, "device_del", id="r") == {}
    names = [name for name, _ in bench.events]
    assert names == ["DEVICE_UNPLUG_GUEST_ERROR", "DEVICE_DELETED"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"driver": "virtio-rng-device"}, "missing field `id`"),
        (RNG | {"Odd": "x"}, "`Odd` is no member of driver virtio-rng-device; leave it out"),
        (RNG | {"a=b,c": "x"}, "is no member of driver"),
        (RNG | {"rng": "a\nb"}, "`rng` has a character that cannot be printed"),
        (RNG | {"rng": ["x"]}, "invalid type: sequence"),
        (RNG | {"rng": "x" * 5000}, "`rng` has 5000 characters, 1 to 4096 are accepted"),
    ],
)
def test_another_device_that_cannot_be(bench: Bench, given: dict[str, Any], text: str) -> None:
    bench.host.on_demand = True
    assert text in ask(bench, "device_add", **given)
    assert not bench.host.others


def test_another_device_without_slots_on_demand(bench: Bench) -> None:
    assert ask(bench, "device_add", **RNG) == "Unsupported replaceable device type."
