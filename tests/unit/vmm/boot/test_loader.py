"""From options to a loaded guest: the right loader, everything in its place, refusals in words."""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path
from struct import unpack_from
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm import layout
from pyvirt.vmm.boot import acpi, loader
from pyvirt.vmm.boot.kernel import KernelFile
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.memory import GuestMemory

from ...conftest import Registers
from ...refusal import attempt, refusal, unprivileged
from . import images
from .images import MIB, PAYLOAD, PT_NOTE, BzImage, Elf, Segment, stored

BZIMAGE = BzImage().build()
PVH = Elf((Segment(), Segment(0, images.pvh_note(16 * MIB), PT_NOTE))).build()
pytestmark = pytest.mark.usefixtures("registers")


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    path = tmp_path / "kernel"
    path.write_bytes(BZIMAGE)
    return str(path)


def load(memory: GuestMemory, kernel: str, **words: str) -> None:
    loader.load(MachineConfig(kernel, **words), memory, -1)  # type: ignore[arg-type]


def initrd_place(memory: GuestMemory) -> tuple[int, int]:
    address, size = unpack_from("<II", memory.read(layout.ZERO_PAGE + 0x218, 8))
    return address, size


def cmdline(memory: GuestMemory) -> bytes:
    return memory.read(layout.CMDLINE, layout.CMDLINE_ROOM).partition(b"\0")[0]


@pytest.mark.parametrize(
    ("data", "entry"),
    [(BZIMAGE, 16 * MIB + 0x200), (Elf().build(), 16 * MIB + 0x40), (images.raw(), 16 * MIB)],
    ids=["bzImage", "ELF", "raw"],
)
def test_kind_of_kernel_is_told_by_its_content(
    data: bytes, entry: int, memory: GuestMemory, registers: Registers
) -> None:
    with stored(data) as path:
        load(memory, path)
    assert registers.regs.rip == entry
    assert memory.read(16 * MIB, len(PAYLOAD)) == PAYLOAD
    assert memory.read(layout.ZERO_PAGE + 0x202, 4) == b"HdrS"


def test_pvh_kernel_gets_start_info(memory: GuestMemory, registers: Registers) -> None:
    with stored(PVH) as path, stored(b"initrd") as initrd:
        load(memory, path, initrd=initrd)
    assert registers.regs.rbx == layout.PVH_START_INFO
    magic, modules = unpack_from("<I8xI", memory.read(layout.PVH_START_INFO, 16))
    assert (magic, modules) == (0x336EC578, 1)
    assert memory.read(layout.ZERO_PAGE, 4096) == bytes(4096)


def test_tables_and_where_they_are_said_to_be(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel)
    (rsdp,) = unpack_from("<Q", memory.read(layout.ZERO_PAGE + 0x70, 8))
    assert memory.read(rsdp, 8) == b"RSD PTR "
    assert memory.read(layout.MPTABLE, 4) == b"_MP_"


def test_discovery_by_command_line_has_no_acpi(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel, discovery="cmdline")
    assert memory.read(layout.ZERO_PAGE + 0x70, 8) == bytes(8)
    assert b"RSD PTR " not in memory.read(layout.ACPI, layout.ACPI_END - layout.ACPI)
    assert memory.read(layout.MPTABLE, 4) == b"_MP_"


DEVICES = [acpi.VirtioMmio(0xD000_0000, 4096, 5), acpi.VirtioMmio(0xD000_1000, 4096, 16)]


def test_a_guest_that_is_told_to_do_without_acpi(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel, cmdline="quiet acpi=off pci=off")
    assert memory.read(layout.ZERO_PAGE + 0x70, 8) == bytes(8)
    assert MachineConfig(kernel, cmdline="xacpi=off").discovery == "acpi"
    assert MachineConfig(kernel, cmdline="acpi=off", discovery="acpi").discovery == "acpi"


def test_devices_in_acpi(memory: GuestMemory, kernel: str) -> None:
    config = MachineConfig(kernel, cmdline="quiet")
    loader.load(config, memory, -1, DEVICES)
    tables, _ = acpi.build(apic_ids=[0], devices=DEVICES)
    assert memory.read(layout.ACPI, len(tables)) == tables
    assert cmdline(memory) == b"quiet"


def test_devices_on_the_command_line(memory: GuestMemory, kernel: str) -> None:
    config = MachineConfig(kernel, cmdline='quiet "a b" -- init', discovery="cmdline")
    loader.load(config, memory, -1, DEVICES)
    words = b"virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:16 "
    assert cmdline(memory) == words + b'quiet "a b" -- init'


def test_no_devices_no_words(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel, discovery="cmdline", cmdline="quiet")
    assert cmdline(memory) == b"quiet"


@pytest.mark.parametrize("option", ["-kernel", "-initrd"])
class TestFiles:
    """What is refused of any file, whichever option names it."""

    def refusal(self, option: str, path: str, kernel: str, memory: GuestMemory) -> str:
        files = {"-kernel": (path, ""), "-initrd": (kernel, path)}[option]
        message = refusal(lambda: load(memory, files[0], initrd=files[1]))
        assert message.startswith(f"{option} {path}: ")
        return message

    def test_missing(self, option: str, kernel: str, memory: GuestMemory) -> None:
        message = self.refusal(option, f"{kernel}.not", kernel, memory)
        assert message.endswith("No such file or directory; name a file that can be read")

    def test_directory(self, option: str, kernel: str, memory: GuestMemory) -> None:
        message = self.refusal(option, str(Path(kernel).parent), kernel, memory)
        assert message.endswith("not a regular file; name one")

    def test_fifo_is_not_waited_for(self, option: str, kernel: str, memory: GuestMemory) -> None:
        os.mkfifo(f"{kernel}.fifo")
        message = self.refusal(option, f"{kernel}.fifo", kernel, memory)
        assert message.endswith("not a regular file; name one")

    def test_no_permission(self, option: str, kernel: str) -> None:
        Path(kernel).chmod(0)
        with unprivileged():
            message = refusal(lambda: KernelFile(option, kernel))
        assert message.startswith(f"{option} {kernel}: Permission denied; ")

    def test_disk_that_fails(
        self, option: str, kernel: str, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bad = f"{kernel}.bad"
        Path(bad).write_bytes(BZIMAGE)
        real = {name: getattr(os, name) for name in ("pread", "preadv")}
        inode = os.stat(bad).st_ino

        def failing(name: str) -> Any:
            def call(fd: int, *rest: Any) -> Any:
                if os.fstat(fd).st_ino == inode:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real[name](fd, *rest)

            return call

        for name in real:
            with monkeypatch.context() as patch:
                patch.setattr(os, name, failing(name))
                message = self.refusal(option, bad, kernel, memory)
            assert message.endswith("Input/output error; copy it to another place")

    def test_file_that_shrinks(
        self, option: str, kernel: str, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short = f"{kernel}.short"
        Path(short).write_bytes(BZIMAGE)
        inode, real = os.stat(short).st_ino, os.preadv

        def call(fd: int, *rest: Any) -> int:
            return 0 if os.fstat(fd).st_ino == inode else real(fd, *rest)

        monkeypatch.setattr(os, "preadv", call)
        message = self.refusal(option, short, kernel, memory)
        assert message.endswith("became shorter while it was read; try again")

    def test_no_descriptor_stays_open(self, option: str, kernel: str, memory: GuestMemory) -> None:
        before = set(os.listdir("/proc/self/fd"))
        Path(f"{kernel}.empty").touch()
        for path in (f"{kernel}.empty", str(Path(kernel).parent), f"{kernel}.not"):
            self.refusal(option, path, kernel, memory)
        load(memory, kernel, initrd=kernel)
        assert set(os.listdir("/proc/self/fd")) == before


def test_kernel_file_that_cannot_be_mapped(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(mmap, "mmap", refuse)
    path = tmp_path / "raw"
    path.write_bytes(images.raw())
    message = refusal(lambda: load(memory, str(path)))
    assert message == f"-kernel {path}: No such device; copy it to another place"


def test_empty_initrd(memory: GuestMemory, kernel: str) -> None:
    with stored(b"") as path:
        message = refusal(lambda: load(memory, kernel, initrd=path))
    assert message == f"-initrd {path}: empty; name a cpio archive"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 1 << 20])
def test_initrd_is_as_high_as_can_be(size: int, memory: GuestMemory, kernel: str) -> None:
    content = (PAYLOAD * (size // len(PAYLOAD) + 1))[:size]
    with stored(content) as path:
        load(memory, kernel, initrd=path)
    address, told = initrd_place(memory)
    assert told == size
    assert address % 4096 == 0
    assert 128 * MIB - 4096 < address + size <= 128 * MIB
    assert memory.read(address, size) == content


def test_no_initrd(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel)
    assert initrd_place(memory) == (0, 0)


def test_initrd_stays_below_the_kernels_limit(memory: GuestMemory) -> None:
    with stored(BzImage(initrd_max=100 * MIB - 1).build()) as path, stored(PAYLOAD) as initrd:
        load(memory, path, initrd=initrd)
    address, size = initrd_place(memory)
    assert 100 * MIB - 4096 < address + size <= 100 * MIB


def test_initrd_stays_below_the_gap(kernel: str) -> None:
    memory = GuestMemory(5 << 30)
    with stored(BzImage(initrd_max=2**32 - 1).build()) as path, stored(PAYLOAD) as initrd:
        load(memory, path, initrd=initrd)
    address, size = initrd_place(memory)
    assert layout.GAP_START - 4096 < address + size <= layout.GAP_START
    memory.close()


def sparse(path: Path, size: int) -> str:
    with path.open("wb") as file:
        file.truncate(size)
    return str(path)


def test_initrd_fits_exactly(memory: GuestMemory, kernel: str, tmp_path: Path) -> None:
    end = 16 * MIB + BzImage().init_size
    load(memory, kernel, initrd=sparse(tmp_path / "initrd", 128 * MIB - end))
    assert initrd_place(memory) == (end, 128 * MIB - end)
    larger = sparse(tmp_path / "initrd", 128 * MIB - end + 1)
    message = refusal(lambda: load(memory, kernel, initrd=larger))
    assert f"do not fit between the kernel's end at {end:#x} and {128 * MIB:#x}; " in message


@pytest.mark.parametrize("extra", [1, 4096, MIB, 500 * MIB + 7])
def test_mend_for_a_large_initrd_works(
    extra: int, memory: GuestMemory, kernel: str, tmp_path: Path
) -> None:
    path = sparse(tmp_path / "initrd", 104 * MIB + extra)
    message = refusal(lambda: load(memory, kernel, initrd=path))
    wanted = re.search(r"; raise -m to (\d+) or more$", message)
    assert wanted is not None
    enough = GuestMemory(int(wanted[1]) * MIB)
    # Sparse as the file is, reading it would fill real memory.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enough.__class__, "load", lambda *_: None)
        load(enough, kernel, initrd=path)
    enough.close()


@pytest.mark.parametrize("initrd_max", [100 * MIB - 1, 2**31 - 1, 2**32 - 1])
def test_initrd_for_which_no_memory_is_enough(
    initrd_max: int, memory: GuestMemory, tmp_path: Path
) -> None:
    initrd = sparse(tmp_path / "initrd", min(initrd_max + 1, layout.GAP_START) - 23 * MIB)
    with stored(BzImage(initrd_max=initrd_max).build()) as path:
        assert refusal(lambda: load(memory, path, initrd=initrd)).endswith("; shrink it")


@pytest.mark.parametrize("limit", [1, 255, 2047, 0xFFFE])
def test_command_line_fits_exactly(limit: int, memory: GuestMemory) -> None:
    with stored(BzImage(cmdline_max=limit).build()) as path:
        load(memory, path, cmdline="a" * limit)
        assert cmdline(memory) == b"a" * limit
        message = refusal(lambda: load(memory, path, cmdline="a" * (limit + 1)))
    assert message == f"-append: {limit + 1} bytes, the kernel takes {limit}; shorten it"


@pytest.mark.parametrize("data", [Elf().build(), images.raw(), PVH], ids=["ELF", "raw", "PVH"])
def test_command_line_where_no_header_says(data: bytes, memory: GuestMemory) -> None:
    with stored(data) as path:
        load(memory, path, cmdline="a" * 2047)
        message = refusal(lambda: load(memory, path, cmdline="a" * 2048))
    assert message == "-append: 2048 bytes, the kernel takes 2047; shorten it"


def test_command_line_never_leaves_its_room(memory: GuestMemory) -> None:
    with stored(BzImage(cmdline_max=2**32 - 1).build()) as path:
        load(memory, path, cmdline="a" * (layout.CMDLINE_ROOM - 1))
        message = refusal(lambda: load(memory, path, cmdline="a" * layout.CMDLINE_ROOM))
    assert message.endswith("65536 bytes, the kernel takes 65535; shorten it")


def test_command_line_is_counted_and_kept_in_bytes(memory: GuestMemory) -> None:
    with stored(BzImage(cmdline_max=4).build()) as path:
        load(memory, path, cmdline="\udcff\udcfeé")
        assert cmdline(memory) == b"\xff\xfe\xc3\xa9"
        assert "5 bytes" in refusal(lambda: load(memory, path, cmdline="éé."))


def test_shorter_command_line_ends_where_it_should(memory: GuestMemory, kernel: str) -> None:
    load(memory, kernel, cmdline="a longer one")
    load(memory, kernel, cmdline="short")
    assert cmdline(memory) == b"short"


PREFIXES = [b"", b"\x7fELF", BZIMAGE[:0x300], PVH[:200], bytes(0x38) + b"ARM\x64", images.BANNER]


@given(st.sampled_from(PREFIXES), st.binary(max_size=600), st.binary(max_size=100))
def test_any_file_is_loaded_or_refused(prefix: bytes, content: bytes, initrd: bytes) -> None:
    memory = GuestMemory(128 * MIB)
    with stored(prefix + content) as path, stored(initrd) as second:
        attempt(lambda: load(memory, path, initrd=second))
    memory.close()


@given(
    st.lists(st.tuples(st.integers(0, 0x7FF), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 200),
)
def test_damaged_kernel_is_loaded_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(BZIMAGE)
    for at, value in changes:
        data[at] = value
    memory = GuestMemory(128 * MIB)
    with stored(bytes(data[: len(data) - cut])) as path, stored(PAYLOAD) as initrd:
        attempt(lambda: load(memory, path, initrd=initrd, cmdline="console=ttyS0"))
    memory.close()
