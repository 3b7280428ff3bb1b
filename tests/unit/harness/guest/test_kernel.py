"""Kernels by name and by path; packages are stand-ins, so that nothing is fetched."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
from pyvirt.errors import BackendError, ConfigError
from pyvirt.harness.guest import kernel, micro, packages

from ...vmm.boot.test_efi import image as efi_image

RELEASE = "6.1.0-99-cloud-amd64"
ELF = b"\x7fELF" + bytes(500)


def bzimage(version: bytes | None = f"{RELEASE} (b@c) #1 SMP".encode()) -> bytes:
    """Return a bzImage with a version string and a gzip payload."""
    payload = gzip.compress(ELF, mtime=0)
    head = bytearray(1024)
    head[0x1F1] = 1
    struct.pack_into("<4sH", head, 0x202, b"HdrS", 0x20F)
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    if version is not None:
        struct.pack_into("<H", head, 0x20E, 0x300 - 0x200)
        head[0x300 : 0x300 + len(version)] = version
    return bytes(head) + payload


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "cache"
    monkeypatch.setenv("PYVIRT_CACHE", str(place))
    return place


class Archive:
    """A package archive that holds one kernel, and counts what it is asked."""

    def __init__(self) -> None:
        self.version = "6.1-1"
        self.questions = 0
        self.files: dict[str, bytes] = {
            f"boot/vmlinuz-{RELEASE}": bzimage(),
            f"lib/modules/{RELEASE}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
            f"lib/modules/{RELEASE}/modules.order": b"",
        }

    def candidate(self, name: str) -> packages.Package:
        self.questions += 1
        image = f"linux-image-{RELEASE}"
        depends = () if name == image else ("linux-base", image)
        return packages.Package(name, self.version, "amd64", depends, 1000)

    def unpack(self, package: packages.Package, place: Path) -> None:
        assert package.name == f"linux-image-{RELEASE}"
        for name, data in self.files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Archive:
    archive = Archive()
    monkeypatch.setattr(packages, "candidate", archive.candidate)
    monkeypatch.setattr(packages, "unpack", archive.unpack)
    monkeypatch.setattr(packages, "with_fresh_lists", lambda action: action())
    return archive


@pytest.mark.parametrize("name", ["cloud", "cloud-6.12", "generic"])
def test_package_kernel(archive: Archive, folder: Path, name: str) -> None:
    found = kernel.find(name)
    assert found.name == name
    assert found.release == RELEASE
    assert found.image.read_bytes() == bzimage()
    assert found.vmlinux is not None
    assert found.vmlinux.read_bytes() == ELF
    assert found.modules is not None
    assert found.modules.name == RELEASE
    assert (found.modules / "modules.dep").is_file(), "depmod has run"
    assert found.image.is_relative_to(folder)


def test_second_time_asks_nothing(archive: Archive) -> None:
    first = kernel.find("cloud")
    asked = archive.questions
    archive.version = "6.1-2"
    assert kernel.find("cloud") == first
    assert archive.questions == asked
    renewed = kernel.find("cloud", renew=True)
    assert renewed.image != first.image
    assert kernel.find("cloud") == renewed


def test_package_without_a_kernel(archive: Archive, folder: Path) -> None:
    del archive.files[f"boot/vmlinuz-{RELEASE}"]
    with pytest.raises(BackendError, match="holds 0 kernels in /boot"):
        kernel.find("cloud")
    assert not [p for p in folder.iterdir() if "kernel" in p.name], "nothing half-made stays"


def test_meta_package_without_an_image(monkeypatch: pytest.MonkeyPatch, archive: Archive) -> None:
    empty = packages.Package("linux-image-amd64", "1", "amd64", ("linux-base",), 1)
    monkeypatch.setattr(packages, "candidate", lambda _: empty)
    with pytest.raises(BackendError, match="linux-image-amd64 depends on no linux-image package"):
        kernel.find("generic")


def test_micro_is_found_by_its_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []

    def build() -> Path:
        entry = folder / f"kernel-micro-{len(built)}"
        (entry / "lib/modules/6.1.0-micro").mkdir(parents=True)
        built.append(entry)
        return entry

    monkeypatch.setattr(micro, "build", build)
    first = kernel.find("micro")
    assert (first.name, first.release) == ("micro", "6.1.0-micro")
    assert kernel.find("micro") == first
    assert len(built) == 1
    monkeypatch.setattr(micro, "RECIPE", "another")
    assert kernel.find("micro") != first


@pytest.mark.parametrize("place", ["boot/vmlinuz-x", "bzImage"])
def test_bzimage_by_path(tmp_path: Path, place: str) -> None:
    image = tmp_path / place
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(bzimage())
    found = kernel.find(str(image))
    assert found == kernel.Kernel(str(image), image, RELEASE, None, None)
    modules = tmp_path / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    assert kernel.find(str(image)).modules is None, "without modules.dep there are none to load"
    (modules / "modules.dep").touch()
    assert kernel.find(str(image)).modules == modules


def test_vmlinux_by_path(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(ELF + b"Linux version 6.6.1-rc2+ (me@here) (gcc) #1\n")
    found = kernel.find(str(image))
    assert (found.release, found.vmlinux) == ("6.6.1-rc2+", image)


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage())
    monkeypatch.chdir(tmp_path)
    assert kernel.find("bzImage").image == tmp_path / "bzImage"


@pytest.mark.parametrize(
    "content", [b"", b"text", bytes(4096), bzimage()[:0x209], bzimage(None), bzimage(b"\0"), ELF]
)
def test_file_that_is_no_kernel(tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "file"
    image.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^kernel {image}: it "):
        kernel.find(str(image))


@pytest.mark.parametrize("name", ["nothing", "", "/", "./no/such"])
def test_name_of_nothing(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"neither a file nor one of the names cloud, cloud-6\.12, gen"
    ):
        kernel.find(name)


def test_efi_image(tmp_path: Path) -> None:
    image = tmp_path / "linux.efi"
    image.write_bytes(efi_image(b".text", b".linux"))
    with pytest.raises(ConfigError, match=rf"^kernel {image}: an EFI image with a Linux kernel in"):
        kernel.find(str(image))
