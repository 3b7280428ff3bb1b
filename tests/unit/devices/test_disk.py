"""Images on the host: what is opened, how it is locked, and what is refused in which words."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pyvirt.devices import disk as disk_module
from pyvirt.devices.disk import Disk
from pyvirt.native import ffi, lib

from ..refusal import refusal, unprivileged


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


def has_direct_io(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_a_file_is_measured(image: Path) -> None:
    disk = Disk(str(image))
    assert disk.sectors == 2048
    assert disk.block_size & (disk.block_size - 1) == 0
    assert disk.direct == has_direct_io(image)
    disk.close()


def test_a_disk_of_three_tebibytes(image: Path) -> None:
    os.truncate(image, 3 << 40)
    disk = Disk(str(image))
    assert disk.sectors == 3 << 31
    disk.close()


def test_without_direct_io_nothing_need_be_aligned(image: Path) -> None:
    disk = Disk(str(image), direct=False)
    assert (disk.direct, disk.offset_align, disk.memory_align) == (False, 1, 1)
    assert not fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_DIRECT
    disk.close()


def test_direct_io_shows_its_alignment(image: Path) -> None:
    if not has_direct_io(image):
        assert "no direct I/O" in refusal(lambda: Disk(str(image), direct=True))
        return
    disk = Disk(str(image), direct=True)
    assert fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_DIRECT
    for align in (disk.offset_align, disk.memory_align):
        assert align in {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}
    disk.close()


class Coarse:
    """A C side on which direct I/O works in units of 4096 bytes."""

    @staticmethod
    def pv_block_alignment(_fd: int, offset: object, memory: object) -> int:
        offset[0] = memory[0] = 4096  # type: ignore[index]
        return 0


def test_direct_io_needs_a_size_of_whole_units(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "lib", Coarse)
    os.truncate(image, (1 << 20) + 512)
    disk = Disk(str(image))
    assert (disk.direct, disk.sectors) == (False, 2049)
    assert not fcntl.fcntl(disk.fd, fcntl.F_GETFL) & os.O_DIRECT
    disk.close()
    if has_direct_io(image):
        message = refusal(lambda: Disk(str(image), direct=True))
        assert "direct=on: the size is no multiple of 4096" in message


@pytest.mark.parametrize("size", [1, 511, 513, (1 << 20) + 1])
def test_half_sectors_are_refused(image: Path, size: int) -> None:
    os.truncate(image, size)
    message = refusal(lambda: Disk(str(image)))
    assert f"{size} bytes, a disk has a multiple of 512; run: truncate -s %512" in message
    os.truncate(image, (size + 511) // 512 * 512)
    Disk(str(image)).close()


def test_an_empty_file_is_refused(image: Path) -> None:
    os.truncate(image, 0)
    assert "empty; give it a size" in refusal(lambda: Disk(str(image)))


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, fifo, Path("/dev/null")):
        message = refusal(partial(Disk, str(path)))
        assert f"{path}: neither a file nor a block device" in message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    message = refusal(lambda: Disk(str(tmp_path / "none.img")))
    assert "none.img: No such file or directory; name an image that exists" in message


def test_an_image_that_cannot_be_written(image: Path) -> None:
    image.chmod(0o444)
    for folder in (image.parent, *image.parents[1:3]):
        folder.chmod(0o755)
    with unprivileged():
        assert "give readonly=on" in refusal(lambda: Disk(str(image)))
        disk = Disk(str(image), readonly=True)
        disk.close()


@pytest.mark.parametrize(
    ("first", "second", "is_shared"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_readers_share_an_image_and_a_writer_does_not(
    image: Path, first: bool, second: bool, is_shared: bool
) -> None:
    holder = Disk(str(image), readonly=first)
    if is_shared:
        Disk(str(image), readonly=second).close()
    else:
        message = refusal(lambda: Disk(str(image), readonly=second))
        assert "in use by another process or drive" in message
    holder.close()
    Disk(str(image), readonly=second).close()


def test_another_process_is_kept_out(image: Path) -> None:
    program = (
        "import sys\nfrom pyvirt.devices.disk import Disk\n"
        "try:\n    Disk(sys.argv[1])\nexcept Exception as e:\n    print(e)\n"
    )
    disk = Disk(str(image))
    result = subprocess.run(
        [sys.executable, "-c", program, str(image)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "in use by another process" in result.stdout
    disk.close()


def test_a_lock_of_another_monitor_counts(image: Path) -> None:
    """Some lock single bytes of an image."""
    holder = os.open(image, os.O_RDWR)
    lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
    fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
    assert "in use" in refusal(lambda: Disk(str(image)))
    os.close(holder)
    Disk(str(image)).close()


def test_a_refused_image_leaves_nothing_open(image: Path) -> None:
    os.truncate(image, 100)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        refusal(lambda: Disk(str(image)))
    assert os.listdir("/proc/self/fd") == before


def test_the_c_side_finds_the_alignment_or_says_no(image: Path) -> None:
    read, write = os.pipe()
    aligns = ffi.new("uint32_t[2]")
    assert lib.pv_block_alignment(read, aligns, aligns + 1) < 0
    os.close(read)
    os.close(write)
