"""Zero page and PVH start info, read back at the offsets that their documents give."""

from __future__ import annotations

from struct import iter_unpack, unpack_from

import pytest
from pyvirt.vmm import layout
from pyvirt.vmm.boot import params
from pyvirt.vmm.boot.kernel import LINUX64, Kernel
from pyvirt.vmm.memory import GuestMemory

from .images import MIB, BzImage

RSDP = 0xE_0000
INITRD = (0x7654_3000, 12345)


def zero_page(kernel: Kernel, memory: GuestMemory, initrd: tuple[int, int] = INITRD) -> bytes:
    params.zero_page(memory, kernel, initrd, kernel.cmdline_max, RSDP)
    return memory.read(layout.ZERO_PAGE, 4096)


def bzimage_kernel() -> Kernel:
    data = BzImage(cmdline_max=1999).build()
    return Kernel(LINUX64, 16 * MIB + 0x200, 24 * MIB, header=data[0x1F1:0x26C], cmdline_max=1999)


def elf_kernel() -> Kernel:
    return Kernel(LINUX64, 16 * MIB, 24 * MIB)


@pytest.mark.parametrize("kernel", [bzimage_kernel(), elf_kernel()], ids=["bzImage", "ELF"])
def test_zero_page_says_what_the_loader_must(kernel: Kernel, memory: GuestMemory) -> None:
    page = zero_page(kernel, memory)
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF, "type of loader: undefined"
    assert unpack_from("<II", page, 0x218) == INITRD
    assert unpack_from("<I", page, 0x228) == (layout.CMDLINE,)
    assert unpack_from("<I", page, 0x238) == (kernel.cmdline_max,)
    assert unpack_from("<Q", page, 0x070) == (RSDP,)
    assert unpack_from("<III", page, 0x0C0) == (0, 0, 0), "upper halves, command line's too"


def test_header_of_a_bzimage_is_handed_back_to_it(memory: GuestMemory) -> None:
    kernel = bzimage_kernel()
    page = bytearray(zero_page(kernel, memory))
    written = (0x210, 1), (0x218, 8), (0x228, 4)
    expected = bytearray(0x1F1) + kernel.header
    for at, size in written:
        page[at : at + size] = expected[at : at + size] = bytes(size)
    assert page[0x1F1 : len(expected)] == expected[0x1F1:]


def test_longest_header_leaves_the_memory_map_alone(memory: GuestMemory) -> None:
    kernel = Kernel(LINUX64, 16 * MIB, 24 * MIB, header=b"\xee" * (0x202 + 0xFF - 0x1F1))
    page = zero_page(kernel, memory)
    assert page[0x1E8] == 3
    assert unpack_from("<QQI", page, 0x2D0) == layout.e820(memory.size)[0]


def test_initrd_above_4_gib_is_split(memory: GuestMemory) -> None:
    page = zero_page(elf_kernel(), memory, (0x3_8765_4000, 0x2_0000_0001))
    assert unpack_from("<II", page, 0x218) == (0x8765_4000, 1)
    assert unpack_from("<II", page, 0x0C0) == (3, 2)


@pytest.mark.parametrize("size", [128 * MIB, 3 << 30, 5 << 30])
def test_memory_map(size: int) -> None:
    memory = GuestMemory(size)
    expected = list(layout.e820(size))
    page = zero_page(elf_kernel(), memory)
    entries = page[0x2D0 : 0x2D0 + 20 * page[0x1E8]]
    assert list(iter_unpack("<QQI", entries)) == expected
    assert not any(page[0x2D0 + len(entries) : 0xCD0])
    params.start_info(memory, INITRD, RSDP)
    at, count = unpack_from("<QI", memory.read(layout.PVH_START_INFO, 56), 40)
    assert list(iter_unpack("<QQIxxxx", memory.read(at, 24 * count))) == expected
    memory.close()


def test_start_info(memory: GuestMemory) -> None:
    params.start_info(memory, INITRD, RSDP)
    info = memory.read(layout.PVH_START_INFO, 56)
    magic, version, flags, modules, at, cmdline, rsdp = unpack_from("<IIIIQQQ", info)
    assert (magic, version, flags) == (0x336EC578, 1, 0)
    assert (cmdline, rsdp) == (layout.CMDLINE, RSDP)
    assert modules == 1
    assert unpack_from("<QQQQ", memory.read(at, 32)) == (*INITRD, 0, 0)


def test_start_info_without_initrd_or_acpi(memory: GuestMemory) -> None:
    params.start_info(memory, (0, 0), 0)
    info = memory.read(layout.PVH_START_INFO, 56)
    assert unpack_from("<IQQQ", info, 12) == (0, 0, layout.CMDLINE, 0)


def test_start_info_stays_in_its_page() -> None:
    memory = GuestMemory(5 << 30)
    memory.write(layout.ZERO_PAGE, b"zero page")
    params.start_info(memory, INITRD, RSDP)
    assert memory.read(layout.ZERO_PAGE, 9) == b"zero page"
    memory.close()
