"""Images on the host: what is opened, how it is locked, and what is refused in which words."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from pyvirt.devices import disk as disk_module
from pyvirt.devices import image_lock
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


def test_an_image_that_cannot_be_written(open_folder: Path) -> None:
    image = open_folder / "image"
    image.write_bytes(bytes(4096))
    image.chmod(0o444)
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


READ, WRITE = fcntl.F_RDLCK, fcntl.F_WRLCK
# How others lock an image: the kind of lock, the first byte, and how many, 0 for all.
QEMU_READER = ((READ, 100, 1), (READ, 201, 1))
QEMU_WRITER = ((READ, 100, 2), (READ, 201, 1))
QEMU_RESIZER = ((READ, 100, 2), (READ, 103, 1), (READ, 203, 1))
QEMU_ALONE = ((READ, 200, 1),)
STRATOVIRT_READER = ((READ, 101, 2), (READ, 202, 1))
STRATOVIRT_WRITER = ((WRITE, 101, 2), (WRITE, 202, 1))
PLAIN_READER = ((READ, 0, 0),)
PLAIN_WRITER = ((WRITE, 0, 0),)


def lock(path: Path, *ranges: tuple[int, int, int]) -> int:
    """Return a descriptor that holds locks; OSError when it cannot."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for kind, start, length in ranges:
            wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except BaseException:
        os.close(fd)
        raise
    return fd


@pytest.mark.parametrize(
    ("theirs", "readonly", "is_shared"),
    [
        (QEMU_READER, True, True),
        (QEMU_READER, False, False),
        (QEMU_WRITER, True, False),
        (QEMU_WRITER, False, False),
        (QEMU_RESIZER, True, False),
        (QEMU_ALONE, True, False),
        (STRATOVIRT_READER, False, False),
        (STRATOVIRT_WRITER, True, False),
        (STRATOVIRT_WRITER, False, False),
        (PLAIN_READER, True, True),
        (PLAIN_READER, False, False),
        (PLAIN_WRITER, True, False),
        (PLAIN_WRITER, False, False),
    ],
)
def test_locks_of_other_monitors_count(
    image: Path, theirs: tuple[tuple[int, int, int], ...], readonly: bool, is_shared: bool
) -> None:
    holder = lock(image, *theirs)
    if is_shared:
        Disk(str(image), readonly=readonly).close()
    else:
        assert "in use" in refusal(lambda: Disk(str(image), readonly=readonly))
    os.close(holder)
    Disk(str(image), readonly=readonly).close()


@pytest.mark.parametrize(
    ("theirs", "readonly", "is_shared"),
    [
        (STRATOVIRT_READER, True, True),
        (STRATOVIRT_READER, False, False),
        (STRATOVIRT_WRITER, True, False),
        (STRATOVIRT_WRITER, False, False),
        (PLAIN_READER, True, True),
        (PLAIN_READER, False, False),
        (PLAIN_WRITER, True, False),
    ],
)
def test_other_monitors_see_our_locks(
    image: Path, theirs: tuple[tuple[int, int, int], ...], readonly: bool, is_shared: bool
) -> None:
    """Those that look at nothing but whether theirs can be had; QEMU's tests are its own."""
    disk = Disk(str(image), readonly=readonly)
    if is_shared:
        os.close(lock(image, *theirs))
    else:
        with pytest.raises(BlockingIOError):
            lock(image, *theirs)
    disk.close()


def test_file_systems_without_locks_do(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> object:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    fd = os.open(image, os.O_RDWR)
    assert image_lock.lock_image(fd, readonly=False)
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "offset", "signature"),
    [
        ("qcow2", 0, b"QFI\xfb\0\0\0\3"),
        ("QED", 0, b"QED\0"),
        ("VMDK", 0, b"KDMV\1\0\0\0"),
        ("VMDK", 0, b"COWD"),
        ("VMDK", 0, b"# Disk DescriptorFile\nversion=1\n"),
        ("VHDX", 0, b"vhdxfile"),
        ("VHD", 0, b"conectix"),
        ("VDI", 64, b"\x7f\x10\xda\xbe"),
        ("Parallels", 0, b"WithoutFreeSpace"),
        ("Parallels", 0, b"WithouFreSpacExt"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_images_of_other_formats_are_refused(
    image: Path, name: str, offset: int, signature: bytes, readonly: bool
) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(signature)
    option = f"-disk {image}"
    assert refusal(lambda: Disk(str(image), readonly=readonly, option=option)) == (
        f"{option}: a {name} image, and disks are raw; convert it: qemu-img convert -O raw "
        f"{image} {image}.raw; or give format=raw and the guest sees it as it is"
    )
    Disk(str(image), readonly=readonly, raw=True).close()


@pytest.mark.parametrize("begins", [b"LUKS\xba\xbe\0\2", b"\xeb\x63\x90", b"QFI", b""])
def test_what_a_guest_may_write_is_raw(image: Path, begins: bytes) -> None:
    with image.open("r+b") as file:
        file.write(begins)
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
