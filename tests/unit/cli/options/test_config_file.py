"""Configuration files: what they stand for, where an error is told to be, and what is shown."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.options import positions
from pyvirt.cli.options.config_print import show
from pyvirt.cli.options.parse import parse
from pyvirt.cli.options.table import BY_NAME

from ...refusal import attempt, refusal
from .test_table import fields, words

TOML = """\
# A machine.
kernel = "/boot/vmlinuz"
append = "root=/dev/vda quiet"
smp = 2
m = "512M"
S = true
daemonize = false
qmp = ["unix:/a,server,nowait", "tcp::4444,server,nowait"]

[machine]
discovery = "acpi"
mem-share = true

[[drive]]
id = "root"
file = "a,b.img"
readonly = true

[[device]]
drive = "root"
driver = "virtio-blk-device"
queue-size = 64

[[device]]
driver = "virtio-serial-device"

[[chardev]]
backend = "socket"
id = "c"
path = "/c"
server = true
nowait = true

[[device]]
driver = "virtserialport"
chardev = "c"

[[netdev]]
type = "tap"
id = "n"
fds = [7, 8]
queues = 2
"""
SAME = [
    *("-kernel", "/boot/vmlinuz", "-append", "root=/dev/vda quiet", "-smp", "2", "-m", "512M"),
    *("-S", "-qmp", "unix:/a,server,nowait", "-qmp", "tcp::4444,server,nowait"),
    *("-machine", "discovery=acpi,mem-share=on"),
    *("-drive", "id=root,file=a,,b.img,readonly=on"),
    *("-device", "virtio-blk-device,drive=root,queue-size=64"),
    *("-device", "virtio-serial-device", "-chardev", "socket,id=c,path=/c,server,nowait"),
    *("-device", "virtserialport,chardev=c", "-netdev", "tap,id=n,fds=7:8,queues=2"),
]
OLD = {
    "boot-source": {
        "kernel_image_path": "/boot/vmlinux.bin",
        "boot_args": "console=ttyS0 root=/dev/vda",
        "initrd_fs_path": "/boot/initrd",
    },
    "machine-config": {
        "name": "vm",
        "vcpu_count": 4,
        "mem_size": 805306368,
        "omit_vm_memory": True,
        "type": "MicroVm",
        "dump_guest_core": False,
        "mem-share": False,
    },
    "drive": [
        {
            "drive_id": "root",
            "path_on_host": "/root,1",
            "read_only": True,
            "direct": False,
            "serial_num": "11111111",
            "iothread": "io1",
            "iops": 1000,
        }
    ],
    "net": [
        {
            "iface_id": "net0",
            "host_dev_name": "tap0",
            "mac": "0e:90:df:9f:a8:88",
            "vhost_type": "vhost-kernel",
        },
        {"iface_id": "net1", "host_dev_name": "tap1"},
    ],
    "iothread": [{"id": "io1"}],
    "serial": {"stdio": True},
}
OLD_SAME = [
    *("-kernel", "/boot/vmlinux.bin", "-append", "console=ttyS0 root=/dev/vda"),
    *("-initrd", "/boot/initrd", "-name", "vm", "-smp", "4", "-m", "768M"),
    *("-machine", "type=MicroVm,dump-guest-core=off,mem-share=off"),
    "-disk",
    "file=/root,,1,id=root,readonly=on,direct=off,serial=11111111,iothread=io1,throttling.iops-total=1000",
    *("-netdev", "id=net0,netdev=tap0,mac=0e:90:df:9f:a8:88,vhost=on"),
    *("-netdev", "id=net1,netdev=tap1,vhost=off"),
    *("-object", "iothread,id=io1", "-serial", "stdio"),
]


def without_names(value: object) -> object:
    """Return a value without what tells how it was written."""
    if isinstance(value, dict):
        return {k: without_names(v) for k, v in value.items() if k != "option"}
    return [without_names(v) for v in value] if isinstance(value, list) else value


def meant(*argv: str) -> object:
    return without_names(fields(parse(list(argv))))


def file(folder: Path, text: str, name: str = "machine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def told(folder: Path, text: str, name: str = "m.toml", *argv: str) -> str:
    """Return the error of a file, with its place from the file's name on."""
    path = file(folder, text, name)
    message = refusal(lambda: parse(["-config", path, *argv]))
    assert message.startswith(f"{folder}/")
    return message.removeprefix(f"{folder}/")


def test_toml(tmp_path: Path) -> None:
    assert meant("-config", file(tmp_path, TOML)) == meant(*SAME)


def test_json_by_the_same_names(tmp_path: Path) -> None:
    shown = show(parse(SAME).given, BY_NAME, "json")
    assert meant("-config", file(tmp_path, shown, "m.json")) == meant(*SAME)


def test_stratovirts(tmp_path: Path) -> None:
    path = file(tmp_path, json.dumps(OLD), "old.json")
    assert meant("-config", path) == meant(*OLD_SAME)


def test_stratovirts_sections_may_be_one_or_several(tmp_path: Path) -> None:
    one = OLD | {"net": {"iface_id": "net1", "host_dev_name": "tap1"}}
    path = file(tmp_path, json.dumps(one), "old.json")
    assert [nic.id for nic in parse(["-config", path]).nics] == ["net1"]


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    options = parse(["-smp", "8", "-config", file(tmp_path, TOML), "-disk", "other"])
    assert options.smp == 8
    assert options.memory == 512 << 20
    assert [disk.path for disk in options.disks] == ["a,b.img", "other"]


def test_only_one_file(tmp_path: Path) -> None:
    path = file(tmp_path, "smp = 1\n")
    assert refusal(lambda: parse(["-config", path, "-config", path])) == (
        "-config: given twice; give it once"
    )


REFUSED = [
    ("kernl = 1\n", "m.toml:1:1: kernl: no such option; pyvirt run -help lists them"),
    ("smp = 1\n config = 'x'", "m.toml:2:2: config: no such option; pyvirt run -help lists them"),
    ("\nsmp = 0", "m.toml:2:1: -smp 0: the vCPU count is a number from 1 to 254"),
    ("smp = [1, 2]", "m.toml:1:1: smp: given twice; give it once"),
    ("smp = true", "m.toml:1:1: smp: needs a value, [cpus=]N"),
    ("S = 1", "m.toml:1:1: S: takes no value; give true"),
    ("smp = 1.5", "m.toml:1:1: smp: not text, a number, true or false; give one of these"),
    ('name = "\\u0000"', "m.toml:1:1: name: a NUL character; leave it out"),
    ("[[drive]]\nid = 'a'\nfile = 'f'\n[[drive]]\nfile = 'f'\nid = 'a'\n",
     "m.toml:6:1: -drive id=a: there is one of that name; give another"),
    ("[[drive]]\nid = 'a'\n[[drive]]\n",
     "m.toml:2:1: -drive id=a: has no file; give id=NAME,file=FILE"),
    ("[[disk]]\nfile = 'f'\n  redonly = true\n", "m.toml:3:3: -disk redonly: not understood here;"),
    ("[[disk]]\nfile = 'f'\n[[disk]]\nfile = 'g'\nreadonly = 7\n",
     "m.toml:5:1: -disk readonly 7: not one of on, yes, true, off, no, false"),
    ("[[disk]]\nfile = {a = 1}\n", "m.toml:2:1: file: not text, a number, true or false;"),
    ("[[device]]\ndriver = 'virtio-x'\n", "m.toml:1:1: -device virtio-x: no such device;"),
    ("[[device]]\ndriver = 'python'\n", "m.toml:1:1: -device python: names no file;"),
    ("[[chardev]]\nbackend = 'x'\nid = 'a'\n", "m.toml:3:1: -chardev x,id=a: "),
    ("[[object]]\nqom-type = 'iothread'\nidd = 'a'\n", "m.toml:3:1: -object idd: not understood"),
    ("[[netdev]]\ntype = 'tap'\n", "m.toml:1:1: -netdev tap: has no id; give id=NAME"),
    ("a = ", "m.toml:1:5: no TOML: "),
    ("a = 1\nb = [", "m.toml:2:6: no TOML: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    assert told(tmp_path, text).startswith(message)


def changed(section: str, index: int | None, **members: object) -> str:
    """Return the old file with members of a section changed, a line each; None takes one away."""
    content = json.loads(json.dumps(OLD))
    target = content.setdefault(section, {})
    target = target if index is None else target[index]
    for name, value in members.items():
        target.pop(name, None)
        if value is not None:
            target[name] = value
    return json.dumps(content, indent=1)


OLD_REFUSED = [
    (changed("drive", 0, drive_id=None), "drive: has no drive_id; give it"),
    (changed("drive", 0, colour="red"), "colour: not understood here; accepted are path_on_host,"),
    (changed("drive", 0, read_only="yes"), "read_only: not true or false; give that"),
    (changed("drive", 0, iops=True), "iops: not a number; give that"),
    (changed("machine-config", None, vcpu_count="4"), "vcpu_count: not a number; give that"),
    (changed("machine-config", None, vcpu_count=0), "-smp 0: the vCPU count is"),
    (changed("machine-config", None, mem_size=805306369), "mem_size: 805306369 is not a multiple"),
    (changed("machine-config", None, mem_size=1 << 20), "-m 1M: not between 128M and 512G;"),
    (changed("net", 0, vhost_type="vhost-user"), "-netdev vhost vhost-user: not one of on,"),
    (changed("boot-source", None, kernel_image_path=None), "boot-source: has no kernel_image_path"),
    (changed("floppy", None), "floppy: not understood; there are drive, net, console, vsock,"),
]


@pytest.mark.parametrize(("text", "message"), OLD_REFUSED)
def test_stratovirts_refused(tmp_path: Path, text: str, message: str) -> None:
    place, _, what = told(tmp_path, text, "m.json").partition(": ")
    assert what.startswith(message)
    name, line, column = place.split(":")
    assert name == "m.json"
    # The member that is meant, or its section, begins there.
    word = text.split("\n")[int(line) - 1][int(column) - 1 :]
    old = {"-smp": "vcpu_count", "-m": "mem_size", "-netdev": "vhost_type"}
    wanted = message.partition(":")[0].split()[0]
    assert word.startswith((f'"{old.get(wanted, wanted)}"', "{"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "m.json:1:3: no JSON: expecting ',' delimiter"),
        ("[]", "m.json:1:1: not an object; give one with options by their names"),
        ("", "m.json:1:1: no JSON: expecting value"),
        ('{"smp": 1,\n "smp2": 1}', "m.json:2:2: smp2: no such option;"),
        ("[" * 100000, "m.json: "),
        ('{"m": ' + "1" * 5000 + "}", "m.json: "),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert told(tmp_path, text, "m.json").startswith(message)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    (tmp_path / "binary").write_bytes(b"\xff")
    for path, what in (
        (tmp_path / "none", "No such file or directory; name a file of options"),
        (tmp_path, "Is a directory; name a file of options"),
        (Path("/dev/zero"), "Not a regular file; name a file of options"),
        (tmp_path / "large", "Larger than 1 MiB; name a file of options"),
        (tmp_path / "binary", "not UTF-8; name a file of options"),
    ):
        message = refusal(partial(parse, ["-config", str(path)]))
        assert message == f"-config {path}: {what}"


def test_positions_of_json() -> None:
    text = '{"a": [1,\n  {"b": "x\\"}"}], "c": {}}'
    assert positions.of_json(text) == {
        (): (1, 1), ("a",): (1, 2), ("a", 0): (1, 8), ("a", 1): (2, 3), ("a", 1, "b"): (2, 4),
        ("c",): (2, 19),
    }  # fmt: skip


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(json_values, st.sampled_from([None, 1]))
def test_every_member_of_json_has_a_place(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    lines = text.split("\n")
    for path, (line, column) in positions.of_json(text).items():
        assert lines[line - 1][column - 1 :]
        if path and isinstance(path[-1], str):
            assert lines[line - 1][column - 1] == '"'


@given(st.lists(words, max_size=8), st.sampled_from(["toml", "json"]))
def test_what_is_shown_means_the_same(
    tmp_path_factory: pytest.TempPathFactory, argv: list[str], form: str
) -> None:
    parsed = attempt(lambda: parse(argv))
    if parsed is None:
        return
    shown = attempt(lambda: show(parsed.given, BY_NAME, form))
    if shown is None:
        return
    path = file(tmp_path_factory.getbasetemp(), shown, f"shown.{form}")
    again = fields(parse(["-config", path]))
    wanted = fields(parsed) | {"help": False, "print_config": None}
    assert without_names(again) == without_names(wanted)


def test_form_that_is_not_known() -> None:
    message = refusal(lambda: show([], BY_NAME, "yaml"))
    assert message == "-print-config yaml: not one of toml, json"


def test_names_that_are_not_utf8() -> None:
    message = refusal(lambda: show([("kernel", "\udcff")], BY_NAME, ""))
    assert message == "-print-config: a value is not UTF-8; rename that file"
