"""`pyvirt guest`: what it prints, and what it refuses."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from pyvirt.cli import guest
from pyvirt.errors import PyvirtError
from pyvirt.harness.agent.image import agent

from ..harness.guest.test_cpio import read
from ..refusal import refusal

ELF = b"\x7fELF" + bytes(500)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("PYVIRT_CACHE", str(place))
    return place


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a bzImage beside its modules."""
    payload = gzip.compress(ELF, mtime=0)
    head = bytearray(1024)
    head[0x1F1] = 1
    struct.pack_into("<4sH", head, 0x202, b"HdrS", 0x20F)
    struct.pack_into("<H", head, 0x20E, 0x100)
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    head[0x300:0x306] = b"6.1.0 "
    path = tmp_path / "bzImage"
    path.write_bytes(bytes(head) + payload)
    modules = tmp_path / "lib/modules/6.1.0"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("one.ko:\n")
    (modules / "one.ko").write_bytes(b"module")
    return path


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> Path:
    assert guest.main(list(argv)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    return Path(out.removesuffix("\n"))


def test_kernel_prints_one_path(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "kernel", str(image)) == image
    modules = printed(capsys, "kernel", str(image), "--print", "modules")
    assert modules == image.parent / "lib/modules/6.1.0"
    assert printed(capsys, "kernel", str(image), "--print", "vmlinux").read_bytes() == ELF


def test_initramfs(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "script").write_text("echo a=b")
    argv = ["initramfs", "--kernel", str(image), "--module", "one"]
    argv += ["--script", str(tmp_path / "script"), "--file", f"/etc/x={tmp_path}/script"]
    made = printed(capsys, *argv)
    members = read(made.read_bytes())
    assert members["lib/modules/load"].data == b"/lib/modules/6.1.0/one.ko\n"
    assert members["script"].data == b"#!/bin/sh\necho a=b"
    assert members["etc/x"].data == b"echo a=b"
    output = tmp_path / "out.cpio"
    output.write_text("older")
    assert printed(capsys, *argv, "-o", str(output)) == output
    assert output.read_bytes() == made.read_bytes()


def test_an_initramfs_with_the_agent(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["virtio_mmio", "virtio_console"]
    for more in ([], ["vmw_vsock_virtio_transport"]):
        names += more
        add_modules(image, *names)
        made = printed(capsys, "initramfs", "--kernel", str(image), "--agent")
        members = read(made.read_bytes())
        assert members["init"].data == agent().read_bytes()
        assert all(members[f"sbin/{name}"].mode & 0o111 for name in ("poweroff", "reboot"))
        loaded = members["lib/modules/load"].data.decode().splitlines()
        assert loaded == [f"/lib/modules/6.1.0/{name}.ko" for name in names]


def add_modules(image: Path, *names: str) -> None:
    folder = image.parent / "lib/modules/6.1.0"
    for name in names:
        (folder / f"{name}.ko").write_bytes(b"module")
    (folder / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in names))


def test_output_that_cannot_be_written(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    for place in (target, tmp_path / "no/such/file"):
        with pytest.raises(PyvirtError, match=rf"^-o {place}: "):
            guest.main(["initramfs", "--kernel", str(image), "-o", str(place)])
    assert not list(tmp_path.glob(".*"))


def test_kernel_without_modules(image: Path) -> None:
    (image.parent / "lib/modules/6.1.0/modules.dep").unlink()
    with pytest.raises(PyvirtError, match=r"lib/modules/6\.1\.0 is neither beside it nor in /$"):
        guest.main(["kernel", str(image), "--print", "modules"])


@pytest.mark.parametrize("pair", ["x", "/x", "/x=", "x=y", "=y"])
def test_bad_file_pairs(image: Path, pair: str) -> None:
    with pytest.raises(PyvirtError, match=rf"^--file {pair}: give the path in the guest"):
        guest.main(["initramfs", "--kernel", str(image), "--file", pair])


def test_file_given_twice(image: Path) -> None:
    argv = ["initramfs", "--kernel", str(image), "--file", "/a=/x", "--file", "/a=/y"]
    with pytest.raises(PyvirtError, match=r"^--file /a=/y: /a is given twice$"):
        guest.main(argv)


@pytest.mark.parametrize("argv", [[], ["kernel"], ["nothing"], ["kernel", "x", "--print", "y"]])
def test_wrong_usage(argv: list[str]) -> None:
    assert "pyvirt guest" in refusal(lambda: guest.main(argv))
