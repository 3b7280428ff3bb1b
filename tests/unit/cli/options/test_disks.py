"""Disks on the command line of `pyvirt run`: every form, and what is refused in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options.objects import KINDS
from pyvirt.cli.options.parse import parse
from pyvirt.devices.virtio.block import BlockConfig

from ...refusal import attempt, refusal

DRIVE = "id=root,file=/a.img"
DEVICE = "virtio-blk-device,drive=root"


def fields(config: BlockConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in BlockConfig.__slots__ if name != "option"}


def disks(*argv: str) -> list[dict[str, object]]:
    return [fields(config) for config in parse(list(argv)).disks]


def wanted(name: str, path: str, **changed: object) -> dict[str, object]:
    """Return the fields of a disk that differs from the default in `changed`."""
    default = {
        "id": name,
        "path": path,
        "readonly": False,
        "direct": None,
        "engine": "auto",
        "iops": 0,
        "unmap": False,
        "detect_zeroes": "off",
        "serial": "",
        "queues": 1,
        "queue_size": 256,
        "iothread": None,
        "logical_block": 512,
        "physical_block": 0,
        "raw": False,
        "overlay": "",
        "layers": (),
    }
    return default | changed


def test_no_disk_by_default() -> None:
    assert parse([]).disks == ()


def test_drive_and_device_are_one_disk() -> None:
    root = wanted("root", "/a.img")
    assert disks("-drive", DRIVE, "-device", DEVICE) == [root]
    assert disks("-device", DEVICE, "-drive", DRIVE) == [root]
    assert disks("-device", f"{DEVICE},id=blk0", f"--drive={DRIVE}") == [root]


def test_a_drive_that_no_device_names_is_a_disk() -> None:
    old = "id=root,file=/a.img,readonly=off,direct=true,serial=S1"
    assert disks("-drive", old) == [wanted("root", "/a.img", direct=True, serial="S1")]


def test_disks_stand_in_the_order_of_their_options() -> None:
    argv = [
        *("-drive", "id=b,file=/b", "-disk", "/first", "-device", "virtio-blk-device,drive=a"),
        *("-drive", "id=lone,file=/lone", "-drive", "id=a,file=/a"),
        *("-device", "virtio-blk-device,drive=b"),
    ]
    assert [disk["path"] for disk in disks(*argv)] == ["/first", "/a", "/lone", "/b"]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("readonly=on", "readonly", True),
        ("readonly=no", "readonly", False),
        ("direct=on", "direct", True),
        ("direct=off", "direct", False),
        ("aio=io_uring", "engine", "io_uring"),
        ("aio=native", "engine", "io_uring"),
        ("aio=threads", "engine", "threads"),
        ("aio=off", "engine", "threads"),
        ("throttling.iops-total=0", "iops", 0),
        ("throttling.iops-total=1000000", "iops", 1000000),
        ("discard=unmap", "unmap", True),
        ("discard=ignore", "unmap", False),
        ("detect-zeroes=on", "detect_zeroes", "on"),
        ("format=raw", "raw", True),
        ("overlay=memory", "overlay", "memory"),
        ("overlay=/var/tmp", "overlay", "/var/tmp"),
        ("serial=äöü", "serial", "äöü"),
        ("serial=12345678901234567890", "serial", "12345678901234567890"),
    ],
)
def test_each_member_of_an_image(text: str, field: str, value: object) -> None:
    changed = {field: value}
    assert disks("-drive", f"{DRIVE},{text}") == [wanted("root", "/a.img", **changed)]
    assert disks("-disk", f"/a.img,{text}") == [wanted("disk0", "/a.img", **changed)]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("serial=x", "serial", "x"),
        ("num-queues=1", "queues", 1),
        ("num-queues=64", "queues", 64),
        ("queue-size=2", "queue_size", 2),
        ("queue-size=1024", "queue_size", 1024),
        ("logical_block_size=512", "logical_block", 512),
        ("logical_block_size=4096", "logical_block", 4096),
        ("physical_block_size=65536", "physical_block", 65536),
    ],
)
def test_each_member_of_a_device(text: str, field: str, value: object) -> None:
    changed = {field: value}
    assert disks("-drive", f"{DRIVE},if=none", "-device", f"{DEVICE},{text}") == [
        wanted("root", "/a.img", **changed)
    ]
    assert disks("-disk", f"file=/a.img,id=root,{text}") == [wanted("root", "/a.img", **changed)]


def test_an_image_is_called_as_the_user_wrote_it() -> None:
    argv = ["-disk", "/a,,b", "-drive", "id=c,file=/c", "-device", "virtio-blk-device,drive=d"]
    options = parse([*argv, "-drive", "file=/d,id=d"])
    assert [disk.option for disk in options.disks] == [
        "-disk /a,b",
        "-drive file=/c",
        "-drive file=/d",
    ]


@pytest.mark.parametrize("size", ["0", "256", "1000", "8192", "-512", "4k", ""])
def test_block_sizes_that_no_guest_takes(size: str) -> None:
    message = refusal(lambda: parse(["-disk", f"/a,logical_block_size={size}"]))
    assert message == (f"-disk logical_block_size {size}: not one of 512, 1024, 2048, 4096")


def test_physical_blocks_are_no_smaller_than_logical_ones() -> None:
    sizes = "logical_block_size=4096,physical_block_size=512"
    message = refusal(lambda: parse(["-disk", f"/a,{sizes}"]))
    assert message == (
        "-disk physical_block_size=512: smaller than logical_block_size=4096; give that much at "
        "least"
    )
    argv = ["-drive", DRIVE, "-device", f"{DEVICE},{sizes}"]
    assert refusal(lambda: parse(argv)).startswith("-device physical_block_size=512: smaller")


def test_disks_that_share_a_thread() -> None:
    argv = ["-disk", "/a,iothread=io1", "-drive", "id=b,file=/b", "-object", "iothread,id=io1"]
    argv += ["-device", "virtio-blk-device,drive=b,iothread=io1", "-object", "iothread,id=io2"]
    argv += ["-disk", "/c,iothread=io2", "-disk", "/d"]
    threads = [config.iothread for config in parse(argv).disks]
    assert [thread and thread.id for thread in threads] == ["io1", "io1", "io2", None]
    assert threads[0] is threads[1]


def test_a_thread_without_a_disk_is_none() -> None:
    assert parse(["-object", "iothread,id=io1"]).disks == ()


def test_two_commas_stand_for_one() -> None:
    assert disks("-disk", "/a,,b,,,readonly=on") == [wanted("disk0", "/a,b,", readonly=True)]


@pytest.mark.parametrize(
    "argv",
    [
        ["-disk", "/a,b.img"],
        ["-drive", "id=a,file=/a,b.img"],
        ["-qmp", "unix:/a,b.sock,server,nowait"],
        ["-chardev", "socket,id=a,path=/a,b.sock,server,nowait"],
        ["-netdev", "stream,id=a,path=/a,b.sock"],
    ],
)
def test_half_a_path_is_told_how_to_be_whole(argv: list[str]) -> None:
    message = refusal(lambda: parse(argv))
    assert message.endswith("(a comma within a value is written twice)")


def test_names_are_found_for_the_nameless() -> None:
    argv = ("-disk", "/a", "-disk", "/b,id=disk2", "-disk", "/c", "-disk", "/d")
    names = [disk["id"] for disk in disks(*argv)]
    assert len(set(names)) == 4
    assert names[1] == "disk2"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-drive", "file=/a"], "has no id"),
        (["-drive", "id=a"], "has no file"),
        (["-drive", "id=,file=/a"], "0 characters"),
        (["-drive", f"id={'x' * 256},file=/a"], "256 characters"),
        (["-drive", "id=a,file="], "empty file name"),
        (["-drive", "id=a,file=/a,id=b"], "id is given twice"),
        (["-drive", f"{DRIVE},format=qcow2"], "-drive format qcow2: the only format is raw"),
        (["-drive", f"{DRIVE},if=virtio"], "not one of none"),
        (["-drive", f"{DRIVE},if=none"], "no -device names it"),
        (["-drive", f"{DRIVE},aio=posix"], "-drive aio posix: not one of io_uring"),
        (["-drive", f"{DRIVE},direct=maybe"], "-drive direct maybe: not one of on"),
        (["-drive", f"{DRIVE},cache=none"], "-drive cache: not understood here"),
        (["-drive", f"{DRIVE},"], "an empty member"),
        (["-drive", f"{DRIVE},throttling.iops-total=1000001"], "from 0 to 1000000"),
        (["-drive", f"{DRIVE},throttling.iops-total=-1"], "from 0 to 1000000"),
        (["-drive", f"{DRIVE},throttling.iops-total=٣"], "from 0 to 1000000"),
        (["-drive", f"{DRIVE},detect-zeroes=unmap"], "goes with discard=unmap"),
        (["-drive", f"{DRIVE},serial={'ä' * 11}"], "22 bytes, 20 is the most"),
        (["-drive", DRIVE, "-drive", DRIVE], "-drive id=root: there is one of that name"),
        (["-drive", DRIVE, "-disk", "/b,id=root"], "-disk id=root: there is one of that name"),
        (["-device", DEVICE], "-device drive=root: there is no such -drive"),
        (["-device", "virtio-blk-device"], "names no drive"),
        (["-device", "virtio-blk-pci,drive=root"], "-device virtio-blk-pci: no such device"),
        (["-drive", DRIVE, "-device", DEVICE, "-device", DEVICE], "has a device already"),
        (["-disk", "/a,id=root", "-device", DEVICE], "-device drive=root: has a device already"),
        (["-disk", "/a,detect-zeroes=unmap"], "-disk /a: detect-zeroes=unmap goes with discard"),
        (["-drive", DRIVE, "-device", f"{DEVICE},num-queues=0"], "from 1 to 64"),
        (["-drive", DRIVE, "-device", f"{DEVICE},num-queues=65"], "from 1 to 64"),
        (["-drive", DRIVE, "-device", f"{DEVICE},queue-size=1"], "from 2 to 1024"),
        (["-drive", DRIVE, "-device", f"{DEVICE},queue-size=2048"], "from 2 to 1024"),
        (["-drive", DRIVE, "-device", f"{DEVICE},queue-size=48"], "not a power of two"),
        (["-drive", f"{DRIVE},serial=a", "-device", f"{DEVICE},serial=b"], "give it once"),
        (["-disk", "/a,iothread=io1"], "-disk iothread=io1: there is no such thread; add -object"),
        (["-drive", DRIVE, "-device", f"{DEVICE},iothread=x"], "-device iothread=x: there is no"),
        (["-drive", f"{DRIVE},iothread=io1"], "-drive iothread: not understood here"),
        (["-object", "iothread"], "-object iothread: has no id; give iothread,id=NAME"),
        (["-object", "iothread,id="], "0 characters"),
        (["-object", "iothread,id=a", "-object", "iothread,id=a"], "there is one of that name"),
        (["-object", "iothread,id=a,poll=1"], "-object poll: not understood here"),
        (
            ["-object", "rng-none,id=a"],
            f"-object rng-none: no such object; there is {', '.join(KINDS)}",
        ),
        (
            ["-drive", f"{DRIVE},overlay="],
            "-drive overlay: an empty name; give memory, or a folder",
        ),
        (
            ["-disk", "/a,overlay=memory,readonly=on"],
            "-disk /a,overlay=memory: nothing is written to a disk with readonly=on; leave one",
        ),
        (["-disk", ""], "empty file name"),
        (["-disk", "readonly=on"], "names no file"),
        (["-disk", "/a,/b"], "-disk /b: not understood here"),
    ],
)
def test_refused(argv: list[str], words: str) -> None:
    assert words in refusal(lambda: parse(argv))


def test_a_thread_has_one_way_to_wait() -> None:
    argv = ["-object", "iothread,id=io", "-disk", "/a,iothread=io,aio=threads"]
    message = refusal(lambda: parse([*argv, "-disk", "/b,iothread=io"]))
    assert message.startswith("iothread=io: not for aio=threads and io_uring at once")
    assert len(parse([*argv, "-disk", "/b,iothread=io,aio=off", "-disk", "/c"]).disks) == 3


def test_two_devices_of_one_name_are_refused() -> None:
    argv = ["-drive", "id=a,file=/a", "-drive", "id=b,file=/b"]
    argv += ["-device", "virtio-blk-device,drive=a,id=x"]
    argv += ["-device", "virtio-blk-device,drive=b,id=x"]
    assert "-device id=x: there is one of that name" in refusal(lambda: parse(argv))


WORDS = st.sampled_from(
    ["id=a", "file=/x", "drive=a", "virtio-blk-device", "readonly=on", "=", "", "a,,b", "serial=ß"]
)


@given(st.lists(st.tuples(st.sampled_from(["drive", "device", "disk"]), st.lists(WORDS))))
def test_any_words_are_taken_or_refused_in_one_line(options: list[tuple[str, list[str]]]) -> None:
    argv = [f"-{name}={','.join(words)}" for name, words in options]
    attempt(lambda: parse(argv))
