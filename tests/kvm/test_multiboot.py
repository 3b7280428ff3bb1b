"""Small kernels by the multiboot protocol, as kvm-unit-tests are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import GUESTS, PATIENCE, build
from .test_run import command, run

Kernel = Callable[[str], Path]
ENTERED = b"PASS: entry: entered by pyvirt\n"
SUMMARY = b"SUMMARY: 1 tests\n"


@pytest.fixture
def flat(kernel: Kernel, tmp_path: Path) -> Path:
    """Return the guest as kvm-unit-tests make theirs: 64-bit code in a 32-bit ELF file."""
    path = tmp_path / "test.flat"
    copy = ["objcopy", "-O", "elf32-i386", str(kernel("multiboot")), str(path)]
    subprocess.run(copy, check=True, timeout=PATIENCE)
    return path


def test_entry_and_command_line(flat: Path) -> None:
    status, out, err = run(*command(flat, "-append", "0 two 'words here'"))
    words = b"INFO: entry: test.flat 0 two 'words here'\n"
    assert (status, out, err) == (0, ENTERED + words + SUMMARY, "")


@pytest.mark.any_kvm
def test_64_bit_file(kernel: Kernel) -> None:
    status, out, _ = run(*command(kernel("multiboot"), "-append", ""))
    assert (status, out) == (0, ENTERED + b"INFO: entry: multiboot.elf \n" + SUMMARY)


# At 0x8000 as realmode of kvm-unit-tests, and where the boot information is otherwise.
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(0x1000, marks=pytest.mark.any_kvm),
        pytest.param(0x6000, marks=pytest.mark.any_kvm),
        0x8000,
    ],
)
def test_below_1_mib(at: int, tmp_path: Path) -> None:
    image = build(GUESTS / "multiboot.S", tmp_path / "low.elf", at)
    (tmp_path / "env").write_text("NR_CPUS=2")
    words = ("-append", "2 words", "-smp", "2", "-initrd", str(tmp_path / "env"))
    status, out, err = run(*command(image, *words))
    assert (status, err) == (0, "")
    assert ENTERED + b"INFO: entry: low.elf 2 words\nINFO: module: NR_CPUS=2\n" in out
    assert out.endswith(b"PASS: smp: all arrived\n" + SUMMARY)


@pytest.mark.any_kvm
def test_a_wish_for_a_video_mode(tmp_path: Path) -> None:
    source = tmp_path / "video.S"
    guest = (GUESTS / "multiboot.S").read_text()
    source.write_text(guest.replace("#define FLAGS 3", "#define FLAGS 7"))
    (tmp_path / "guest.h").symlink_to(GUESTS / "guest.h")
    status, out, err = run(*command(build(source, tmp_path / "video.elf"), "-append", "0"))
    assert (status, out[: len(ENTERED)]) == (0, ENTERED)
    assert err.startswith("pyvirt: -kernel ")
    assert "asks for a video mode; there is no display" in err
    assert err.count("\n") == 1


@pytest.mark.any_kvm
def test_module(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("NR_CPUS=1")
    status, out, _ = run(*command(flat, "-append", "0", "-initrd", str(tmp_path / "env")))
    assert status == 0
    assert b"INFO: module: NR_CPUS=1\n" in out


@pytest.mark.parametrize(
    "vcpus",
    [pytest.param(1, marks=pytest.mark.any_kvm), pytest.param(2, marks=pytest.mark.any_kvm), 4],
)
def test_processors(flat: Path, vcpus: int) -> None:
    status, out, err = run(*command(flat, "-append", str(vcpus), "-smp", str(vcpus)))
    assert (status, err) == (0, "")
    assert out.endswith(b"PASS: smp: all arrived\n" + SUMMARY)


@pytest.mark.any_kvm
@pytest.mark.parametrize(
    ("word", "status", "line"),
    [
        ("f", 1, b"FAIL: choice: asked to"),
        ("s", 38, b"SKIP: choice: asked to"),
        ("a", 127, b"ABORT: choice: asked to"),
        ("o", 0, b"INFO: entry: test.flat o"),
    ],
)
def test_the_value_written_is_the_exit_status(
    flat: Path, word: str, status: int, line: bytes
) -> None:
    ended, out, err = run(*command(flat, "-append", word))
    assert (ended, err) == (status, "")
    assert line in out.splitlines()
