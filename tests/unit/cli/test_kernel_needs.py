"""A guest without ACPI whose kernel cannot do without: the user is told, once and in one line."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
from pyvirt.cli import kernel_needs
from pyvirt.cli.options.parse import parse
from pyvirt.vmm.log import Log

MPPARSE = "CONFIG_X86_MPPARSE"
DEVICES = "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"
BANNER = b"\x7fELF" + b"Linux version 7.2.0-fake (a@b) #1\0"
WITHOUT = "CONFIG_64BIT=y\n# CONFIG_X86_MPPARSE is not set\n"


class Told(Log):
    """A log that keeps its warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def warning(self, text: str) -> None:
        self.lines.append(text)


def said(kernel: Path, *words: str) -> list[str]:
    """Return what is logged of a kernel, when the look has ended."""
    log = Told()
    before = threading.active_count()
    options = parse(["-kernel", str(kernel), "-machine", "discovery=cmdline", *words])
    kernel_needs._look(options, log)
    assert threading.active_count() == before
    return log.lines


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(BANNER)
    return path


def test_the_configuration_inside(kernel: Path) -> None:
    inside = b"IKCFG_ST" + gzip.compress(WITHOUT.encode()) + b"IKCFG_ED"
    kernel.write_bytes(BANNER + inside)
    (line,) = said(kernel, "-smp", "2")
    assert line == (
        f"-machine discovery=cmdline: {kernel} was built without {MPPARSE}, so the guest sees one "
        "processor; use discovery=acpi, or take another kernel"
    )


def test_the_configuration_beside(kernel: Path) -> None:
    (kernel.parent / "config-7.2.0-fake").write_text(WITHOUT)
    assert [MPPARSE in line for line in said(kernel, "-smp", "2")] == [True]
    image = kernel.parent / "disk.img"
    image.write_bytes(bytes(4096))
    (line,) = said(kernel, "-disk", str(image))
    assert f"{DEVICES}, so the guest finds no virtio device" in line


def test_nothing_is_said_of_what_is_not_wanted(kernel: Path) -> None:
    (kernel.parent / "config-7.2.0-fake").write_text(WITHOUT)
    assert not said(kernel)


def test_nothing_is_said_of_a_kernel_that_has_all(kernel: Path) -> None:
    (kernel.parent / "config-7.2.0-fake").write_text(f"{MPPARSE}=y\n{DEVICES}=y\n")
    assert not said(kernel, "-smp", "2", "-qmp", "fd:7")


@pytest.mark.parametrize("data", [BANNER, b"\x7fELF", b""])
def test_nothing_is_said_where_nothing_tells(data: bytes, kernel: Path) -> None:
    kernel.write_bytes(data)
    assert not said(kernel, "-smp", "2")
