"""What is in an initramfs, read back from the file."""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import os
import re
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from pyvirt.errors import ConfigError
from pyvirt.harness.agent import image as agent_image
from pyvirt.harness.guest import default, initramfs, packages
from pyvirt.harness.guest.kernel import Kernel

from .test_cpio import Member, read

RELEASE = "6.1.0-test"
MODULES = f"lib/modules/{RELEASE}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("PYVIRT_CACHE", str(place))
    return place


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    modules = tmp_path / "root" / MODULES
    (modules / "kernel").mkdir(parents=True)
    (modules / "kernel/plain.ko").write_bytes(b"plain module")
    (modules / "kernel/xz.ko.xz").write_bytes(lzma.compress(b"xz module"))
    (modules / "kernel/gz.ko.gz").write_bytes(gzip.compress(b"gz module"))
    packed = subprocess.run(
        ["zstd", "-qc"], input=b"zst module", capture_output=True, timeout=30, check=True
    )
    (modules / "kernel/zst.ko.zst").write_bytes(packed.stdout)
    (modules / "modules.dep").write_text(
        "kernel/xz.ko.xz: kernel/plain.ko\n"
        "kernel/plain.ko:\n"
        "kernel/gz.ko.gz:\n"
        "kernel/zst.ko.zst: kernel/gz.ko.gz\n"
    )
    (modules / "modules.softdep").write_text("softdep xz pre: gz\n")
    return Kernel("test", tmp_path / "image", RELEASE, modules, None)


def members(path: Path) -> dict[str, Member]:
    return read(path.read_bytes())


def test_init_busybox_and_console(kernel: Kernel) -> None:
    found = members(initramfs.build(kernel))
    assert found["init"].data == initramfs.INIT_FILES["/init"].read_bytes()
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert (found["dev/console"].mode, found["dev/console"].device) == (
        stat.S_IFCHR | 0o600,
        (5, 1),
    )
    assert (found["dev/port"].mode, found["dev/port"].device) == (stat.S_IFCHR | 0o600, (1, 4))
    busybox = shutil.which("busybox")
    assert busybox is not None
    assert found["bin/busybox"].data == Path(busybox).read_bytes()
    for applet in ("bin/sh", "bin/mount", "sbin/insmod", "usr/bin/setsid"):
        assert found[applet].mode == stat.S_IFLNK | 0o777
        assert found[applet].data == b"/bin/busybox"
    assert stat.S_ISREG(found["sbin/poweroff"].mode), "ours comes before busybox's"
    assert initramfs.SCRIPT[1:] not in found
    assert initramfs.LOAD_LIST[1:] not in found


def test_an_init_that_is_a_program(kernel: Kernel, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF of ours")
    found = members(initramfs.build(kernel, init=program))
    assert found["init"].data == b"\x7fELF of ours"
    assert found["init"].mode == stat.S_IFREG | 0o755


def test_the_agents_initramfs(kernel: Kernel) -> None:
    with pytest.raises(ConfigError, match=r"module virtio_mmio: the kernel .* has no such module"):
        agent_image.initramfs(kernel)
    made = agent_image.initramfs(
        dataclasses.replace(kernel, modules=None), files={"/sbin/reboot": b"mine"}
    )
    found = members(made)
    assert found["init"].data == agent_image.agent().read_bytes()
    assert initramfs.is_static(agent_image.agent())
    assert found["sbin/poweroff"].data == initramfs.INIT_FILES["/sbin/poweroff"].read_bytes()
    assert found["sbin/reboot"].data == b"mine"


def test_directories_that_init_mounts_on_are_there(kernel: Kernel) -> None:
    found = members(initramfs.build(kernel))
    init = found["init"].data.decode()
    places = re.findall(r"^mount -t .* (/\S+)(?: 2>|$)", init, re.MULTILINE)
    assert {"/proc", "/sys", "/dev", "/dev/pts", "/run", "/tmp"} <= set(places)
    for place in places:
        if place.startswith("/dev/"):
            assert re.search(rf"^mkdir .*{place}\b", init, re.MULTILINE)
        else:
            assert stat.S_ISDIR(found[place[1:]].mode)


@pytest.mark.parametrize("source", initramfs.INIT_FILES.values(), ids=lambda path: path.name)
def test_shell_files_parse(source: Path) -> None:
    subprocess.run(["busybox", "sh", "-n", str(source)], timeout=30, check=True)


def test_same_parts_same_file(kernel: Kernel, folder: Path) -> None:
    first = initramfs.build(kernel, modules=["xz"], script="true")
    assert initramfs.build(kernel, modules=["xz"], script="true") == first
    assert initramfs.build(kernel, modules=["xz"], script="false") != first
    assert len(list(folder.glob("initramfs-*"))) == 2
    assert first.parent == folder


def test_changed_module_is_another_file(kernel: Kernel) -> None:
    first = initramfs.build(kernel, modules=["plain"])
    assert kernel.modules is not None
    (kernel.modules / "kernel/plain.ko").write_bytes(b"plain module 2")
    assert initramfs.build(kernel, modules=["plain"]) != first


def test_modules_are_unpacked_and_listed_in_order(kernel: Kernel) -> None:
    found = members(initramfs.build(kernel, modules=["xz", "zst"]))
    assert found["lib/modules/load"].data.decode().splitlines() == [
        f"/{MODULES}/kernel/gz.ko",
        f"/{MODULES}/kernel/plain.ko",
        f"/{MODULES}/kernel/xz.ko",
        f"/{MODULES}/kernel/zst.ko",
    ]
    for name in ("plain", "xz", "gz", "zst"):
        assert found[f"{MODULES}/kernel/{name}.ko"].data == f"{name} module".encode()


def test_soft_modules_are_marked(kernel: Kernel) -> None:
    found = members(initramfs.build(kernel, modules=["xz"]))
    assert found["lib/modules/load"].data.decode().splitlines() == [
        f"/{MODULES}/kernel/gz.ko soft",
        f"/{MODULES}/kernel/plain.ko",
        f"/{MODULES}/kernel/xz.ko",
    ]


def test_kernel_without_modules(kernel: Kernel) -> None:
    bare = Kernel("bare", kernel.image, RELEASE, None, None)
    initramfs.build(bare)
    with pytest.raises(
        ConfigError, match=rf"^module xz: the kernel bare has no modules.*{RELEASE}"
    ):
        initramfs.build(bare, modules=["xz"])


@pytest.mark.parametrize(
    ("script", "content"),
    [
        ("uname -a", b"#!/bin/sh\nuname -a"),
        ("#!/usr/bin/python3\n", b"#!/usr/bin/python3\n"),
        (b"\x7fELF...", b"\x7fELF..."),
        (b"echo", b"#!/bin/sh\necho"),
    ],
)
def test_script(kernel: Kernel, tmp_path: Path, script: str | bytes, content: bytes) -> None:
    given: str | Path
    if isinstance(script, bytes):
        given = tmp_path / "script"
        given.write_bytes(script)
    else:
        given = script
    member = members(initramfs.build(kernel, script=given))["script"]
    assert member.data == content
    assert member.mode == stat.S_IFREG | 0o755


def test_init_of_ones_own_replaces_ours(kernel: Kernel) -> None:
    found = members(initramfs.build(kernel, init="#!/bin/sh\nown\n"))
    assert found["init"].data == b"#!/bin/sh\nown\n"
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert stat.S_ISLNK(found["sbin/poweroff"].mode)
    assert "etc/profile" not in found


def test_files(kernel: Kernel, tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"binary")
    tool.chmod(0o700)
    data = tmp_path / "data"
    data.write_bytes(b"data")
    found = members(
        initramfs.build(
            kernel,
            files={
                "/opt/tool": tool,
                "/opt/data": data,
                "/opt/bytes": b"bytes",
                "/opt/script": b"#!/bin/sh\n",
                "/bin/ls": b"ours",
            },
        )
    )
    assert found["opt"].mode == stat.S_IFDIR | 0o755
    assert (found["opt/tool"].data, found["opt/tool"].mode) == (b"binary", stat.S_IFREG | 0o755)
    assert (found["opt/data"].data, found["opt/data"].mode) == (b"data", stat.S_IFREG | 0o644)
    assert (found["opt/bytes"].data, found["opt/bytes"].mode) == (b"bytes", stat.S_IFREG | 0o644)
    assert found["opt/script"].mode == stat.S_IFREG | 0o755
    assert found["bin/ls"].data == b"ours", "a file given comes before busybox's"


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("/x", Path("/nonexistent"), "^file /x=/nonexistent: there is no such file on this host$"),
        ("/x", Path("/etc"), "^file /x=/etc: there is no such file"),
        ("/../x", b"", "^file /../x: .* is no path inside an archive"),
        ("/init", b"", "^file /init: .* in this archive already"),
        ("/init/x", b"", "^file /init/x: .*init is not a directory"),
        ("/bin", b"", "^file /bin: .* in this archive already"),
    ],
)
def test_files_that_cannot_be(
    kernel: Kernel, folder: Path, path: str, source: Path | bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        initramfs.build(kernel, files={path: source})
    assert not list(folder.glob("*initramfs*"))


def test_a_script_from_a_fifo(kernel: Kernel, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"echo",))
    writer.start()
    assert initramfs._script(fifo) == b"#!/bin/sh\necho"
    writer.join()


def test_a_script_without_end(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initramfs, "SCRIPT_MAX", 1 << 20)
    with pytest.raises(ConfigError, match="script /dev/zero: larger than 1 MiB"):
        initramfs.build(kernel, script=Path("/dev/zero"))


def test_missing_script(kernel: Kernel) -> None:
    with pytest.raises(ConfigError, match=r"^script /nonexistent: No such file or directory$"):
        initramfs.build(kernel, script=Path("/nonexistent"))


def test_dynamic_busybox_is_not_taken(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("busybox")
    assert real is not None
    assert initramfs.is_static(Path(real))
    assert not initramfs.is_static(Path("/bin/true").resolve())
    dynamic = tmp_path / "path/busybox"
    dynamic.parent.mkdir()
    shutil.copy("/bin/true", dynamic)
    monkeypatch.setenv("PATH", str(dynamic.parent))

    def unpack(package: packages.Package, place: Path) -> None:
        assert package.name == "busybox-static"
        (place / "bin").mkdir(parents=True)
        shutil.copy(real, place / "bin/busybox")

    fetched = packages.Package("busybox-static", "1", "amd64", (), 1)
    monkeypatch.setattr(packages, "candidate", lambda _: fetched)
    monkeypatch.setattr(packages, "unpack", unpack)
    found = members(initramfs.build(kernel))
    assert found["bin/busybox"].data == Path(real).read_bytes()


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(60)])
def test_what_is_no_static_program(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert not initramfs.is_static(tmp_path / "file")


def test_default_guest(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "find", lambda _: kernel)
    monkeypatch.setattr(default, "MODULES", ("plain",))
    image, archive = default.default()
    assert image == kernel.image
    found = members(archive)
    greeting = found["etc/motd"].data.decode()
    assert greeting.count("\n") == 1
    assert all(word in greeting for word in (RELEASE, "poweroff", "Ctrl-A X"))
    assert found["lib/modules/load"].data == f"/{MODULES}/kernel/plain.ko\n".encode()
