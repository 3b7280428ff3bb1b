"""Multiboot 1: where a kernel says it wants to be, what it is told, and headers that lie."""

from __future__ import annotations

from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm import layout
from pyvirt.vmm.boot import loader, multiboot
from pyvirt.vmm.boot.kernel import MULTIBOOT, Kernel, KernelFile
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.memory import GuestMemory

from ...conftest import Registers
from ...refusal import attempt, refusal
from .images import MIB, PAYLOAD, Elf, Segment, stored

MAGIC = 0x1BADB002
HAS_ADDRESSES = 1 << 16


def header(flags: int = 0, *more: int) -> bytes:
    return pack(f"<{3 + len(more)}I", MAGIC, flags, -(MAGIC + flags) & 0xFFFF_FFFF, *more)


def flat(
    start: int = 2 * MIB,
    *,
    at: int = 16,
    data_end: int = 0,
    bss_end: int = 0,
    entry: int = 2 * MIB + 64,
    header_address: int | None = None,
) -> bytes:
    """Return a file that is loaded by its header's addresses."""
    address = start + at if header_address is None else header_address
    words = header(HAS_ADDRESSES, address, start, data_end, bss_end, entry)
    return bytes(at) + words + PAYLOAD


def elf32(paddr: int = 4 * MIB, *, flags: int = 0, machine: int = 3, memsz: int = 0x3000) -> bytes:
    """Return a 32-bit ELF file with one segment that holds the header."""
    data = header(flags) + PAYLOAD
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + pack(
        "<HHIIIIIHHHHHH", 2, machine, 1, paddr + 12, 52, 0, 0, 52, 32, 1, 40, 0, 0
    )
    return head + pack("<8I", 1, 84, 0xC000_0000, paddr, len(data), memsz, 7, 4096) + data


def load(data: bytes, memory: GuestMemory) -> Kernel:
    with stored(data) as path, KernelFile("-kernel", path) as file:
        assert multiboot.recognises(file)
        return multiboot.load(file, memory)


def recognised(data: bytes) -> bool:
    with stored(data) as path, KernelFile("-kernel", path) as file:
        return multiboot.recognises(file)


def test_32_bit_elf(memory: GuestMemory) -> None:
    kernel = load(elf32(), memory)
    assert (kernel.protocol, kernel.entry) == (MULTIBOOT, 4 * MIB + 12)
    assert kernel.end == 4 * MIB + 0x3000
    assert memory.read(4 * MIB, 12) == header()
    assert memory.read(4 * MIB + 12, len(PAYLOAD) + 1) == PAYLOAD + b"\0"


def test_a_virtual_entry_point(memory: GuestMemory) -> None:
    image = bytearray(elf32())
    image[24:28] = pack("<I", 0xC000_0000 + 12)  # the segment is at 4 MiB
    assert load(bytes(image), memory).entry == 4 * MIB + 12
    image[24:28] = pack("<I", 0xC000_3000)
    assert "outside its segments" in refusal(lambda: load(bytes(image), memory))


def test_64_bit_elf(memory: GuestMemory) -> None:
    kernel = load(Elf((Segment(data=header(3) + PAYLOAD),)).build(), memory)
    assert (kernel.protocol, kernel.entry) == (MULTIBOOT, 16 * MIB + 0x40)


def test_addresses_in_the_header(memory: GuestMemory) -> None:
    data = flat()
    kernel = load(data, memory)
    assert memory.read(2 * MIB, len(data)) == data
    assert (kernel.entry, kernel.end) == (2 * MIB + 64, 2 * MIB + len(data))


def test_addresses_that_begin_behind_the_files_begin(memory: GuestMemory) -> None:
    data = flat(at=100, header_address=2 * MIB + 60, data_end=2 * MIB + 200, bss_end=3 * MIB)
    kernel = load(data, memory)
    assert memory.read(2 * MIB, 201) == data[40:240] + b"\0"
    assert kernel.end == 3 * MIB


@pytest.mark.parametrize("at", [0, 4, 4092, 4096, 8180])
def test_header_in_the_first_8_kib(at: int) -> None:
    assert recognised(bytes(at) + header())


@pytest.mark.parametrize(
    "data",
    [
        bytes(8184) + header(),
        b"x" + header(),
        header()[:-1],
        header()[:8] + b"\0\0\0\0",
        bytes(5000),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    assert not recognised(data)


def test_a_magic_number_before_the_header() -> None:
    assert recognised(header()[:8] + header())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(0x800C) + PAYLOAD, "requires 0x8008, which is not here"),
        (header() + PAYLOAD, "that is not ELF"),
        (elf32(machine=40), "a file for ARM"),
        (elf32(machine=62), "a file for ELF machine 62"),
        (
            elf32(paddr=0xFF0),
            "to be loaded at 0xff0 to 0x3fef; below 1 MiB there is room from 0x1000",
        ),
        (elf32(paddr=0x9_D000), "room from 0x1000 to 0x9fbff"),
        (elf32(paddr=0xF_F000), "room from 0x1000 to 0x9fbff"),
        (elf32(memsz=8), "larger in the file than in memory"),
        (elf32()[:-1], "truncated"),
        (flat(entry=MIB), "entered at 0x100000, outside"),
        (flat(start=0, entry=0x8000), "to be loaded at 0x0 to"),
        (flat(start=0x8000, entry=0x8000, bss_end=2 * MIB), "to be loaded at 0x8000 to 0x1fffff"),
        (flat(header_address=0), "contradicts itself"),
        (flat(header_address=2 * MIB + 17), "contradicts itself"),
        (flat(data_end=MIB), "contradicts itself"),
        (flat(data_end=3 * MIB), "truncated"),
        (flat(bss_end=0xFFFF_FFFF), "needs memory"),
        (header(HAS_ADDRESSES, 0, 0), "truncated"),
        (elf32(paddr=0xFFFF_F000), "needs memory"),
    ],
)
def test_refusals(data: bytes, words: str, memory: GuestMemory) -> None:
    assert words in refusal(lambda: load(data, memory))


@given(st.integers(0, 120), st.binary(min_size=1, max_size=8), st.booleans())
def test_damaged_files_are_refused_or_loaded(at: int, damage: bytes, is_elf: bool) -> None:
    data = bytearray(elf32() if is_elf else flat())
    data[at : at + len(damage)] = damage
    memory = GuestMemory(128 * MIB)
    try:
        if recognised(bytes(data)):
            attempt(lambda: load(bytes(data), memory))
    finally:
        memory.close()


@given(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=5, max_size=5))
def test_any_addresses_are_refused_or_loaded(words: list[int]) -> None:
    memory = GuestMemory(128 * MIB)
    try:
        kernel = attempt(lambda: load(header(HAS_ADDRESSES, *words) + PAYLOAD, memory))
        assert kernel is None or 0x1000 <= kernel.entry < kernel.end <= memory.size
    finally:
        memory.close()


@pytest.mark.parametrize("discovery", ["acpi", "cmdline"])
def test_what_the_kernel_is_told(discovery: str, memory: GuestMemory, registers: Registers) -> None:
    with stored(elf32()) as path, stored(b"A=1") as initrd:
        config = MachineConfig(path, initrd=initrd, cmdline="one two", discovery=discovery)
        loader.load(config, memory, -1)
    assert registers.regs.rax == 0x2BADB002
    assert registers.regs.rip == 4 * MIB + 12
    assert registers.sregs.cs.db == 1
    info = memory.read(registers.regs.rbx, 2048)
    flags, lower, upper, _, cmdline, count, modules = unpack_from("<7I", info)
    assert flags == 0x24D
    assert (lower, upper) == (0x9FC00 >> 10, (memory.size - MIB) >> 10)
    assert memory.read(cmdline, 64).partition(b"\0")[0].partition(b" ")[2] == b"one two"
    assert count == 1
    start, end = unpack_from("<II", memory.read(modules, 8))
    assert memory.read(start, end - start) == b"A=1"
    assert start % 4096 == 0
    length, memory_map = unpack_from("<II", info, 44)
    table = memory.read(memory_map, length)
    rows = [unpack_from("<IQQI", table, at) for at in range(0, length, 24)]
    assert [row[1:] for row in rows] == list(layout.e820(memory.size))
    assert {row[0] for row in rows} == {20}
    (name,) = unpack_from("<I", info, 64)
    assert memory.read(name, 7) == b"pyvirt\0"


def test_no_module_without_an_initrd(memory: GuestMemory, registers: Registers) -> None:
    with stored(elf32()) as path:
        loader.load(MachineConfig(path), memory, -1)
    assert unpack_from("<I", memory.read(registers.regs.rbx + 20, 4)) == (0,)


def test_a_kernel_may_end_where_memory_does(memory: GuestMemory) -> None:
    end = memory.regions[0][1]
    assert load(flat(bss_end=end), memory).end == end
    assert "raise -m" in refusal(lambda: load(flat(bss_end=end + 1), memory))


def test_a_wish_for_a_video_mode_is_passed_over_with_a_note(memory: GuestMemory) -> None:
    (note,) = load(elf32(flags=7), memory).notes
    assert "asks for a video mode; there is no display" in note
    assert not load(elf32(flags=3), memory).notes


# Realmode of kvm-unit-tests is at 0x8000; the boot information is at 0x6000 where that is free.
@pytest.mark.parametrize("memsz", [0x1FF0, 0x2000, 0x9_7000])
@pytest.mark.parametrize("paddr", [0x1000, 0x4000, 0x5000, 0x6000, 0x6FF0, 0x7000, 0x8000])
@pytest.mark.parametrize("by_addresses", [True, False])
def test_below_1_mib(
    paddr: int, memsz: int, by_addresses: bool, memory: GuestMemory, registers: Registers
) -> None:
    image = (
        flat(start=paddr, entry=paddr + 12, bss_end=paddr + memsz)
        if by_addresses
        else elf32(paddr=paddr, memsz=memsz)
    )
    with stored(image) as path, stored(b"A=1") as initrd:
        kernel = loader.load(MachineConfig(path, cmdline="x y", initrd=initrd), memory, -1)
    assert kernel.pieces == [(paddr, paddr + memsz)]
    info = registers.regs.rbx
    assert 0x1000 <= info <= 0x9_EC00
    assert info + 4096 <= paddr or paddr + memsz <= info
    if paddr >= 0x7000 or paddr + memsz <= 0x6000:
        assert info == 0x6000
    cmdline, _, modules = unpack_from("<3I", memory.read(info + 16, 12))
    assert memory.read(cmdline, 4096).partition(b"\0")[0].endswith(b" x y")
    _, _, name = unpack_from("<3I", memory.read(modules, 12))
    for address in (cmdline, modules, name):
        assert info < address < info + 4096
    assert memory.read(name, 64).partition(b"\0")[0].decode() == initrd.rpartition("/")[2]


def test_the_longest_command_line_fits_beside_the_rest(
    memory: GuestMemory, registers: Registers
) -> None:
    with stored(elf32()) as path, stored(b"A=1") as initrd:
        room = 2047 - len(path.rpartition("/")[2]) - 1
        config = MachineConfig(path, cmdline="x" * room, initrd=initrd)
        loader.load(config, memory, -1)
        config = MachineConfig(path, cmdline="x" * (room + 1))
        assert "2048 bytes, the kernel takes 2047" in refusal(
            lambda: loader.load(config, memory, -1)
        )
    (cmdline,) = unpack_from("<I", memory.read(registers.regs.rbx + 16, 4))
    assert memory.read(cmdline, 2048).endswith(b"x\0")


def test_no_room_for_the_boot_information(memory: GuestMemory) -> None:
    with stored(elf32(paddr=0x1000, memsz=0x9_E000)) as path:
        message = refusal(lambda: loader.load(MachineConfig(path), memory, -1))
    assert "no room for the boot information" in message
