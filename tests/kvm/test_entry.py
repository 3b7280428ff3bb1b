"""What a guest finds at its first instruction, as the guest itself sees it."""

from __future__ import annotations

import os
from pathlib import Path
from struct import calcsize, unpack_from

import pytest
from pyvirt.vmm import layout

from .conftest import Make
from .support import BUFFER, MAILBOX, MEMORY, Guest

GIB = 1 << 30
FIVE_GIB = 5 * GIB
ZERO_PAGE, START_INFO = 0x7000, 0x6000
BOOT_CS, BOOT_DS = 0x10, 0x18
CR0_PE, CR0_PG = 1 << 0, 1 << 31
CR4_PAE = 1 << 5
RFLAGS_IF = 1 << 9
START_INFO_MAGIC = 0x336EC578
CMDLINE = "console=ttyS0 a-word 'and two'"


def text_at(guest: Guest, address: int) -> str:
    return guest.read(address, 256).split(b"\0", 1)[0].decode()


def is_rsdp(guest: Guest, address: int) -> bool:
    table = guest.read(address, 20)
    return table.startswith(b"RSD PTR ") and sum(table) & 0xFF == 0


@pytest.fixture
def initrd(tmp_path: Path) -> Path:
    """Return a file whose bytes tell their place and whose size is no round number."""
    path = tmp_path / "initrd"
    path.write_bytes(b"".join(i.to_bytes(4, "little") for i in range(50_000)) + b"end")
    return path


def test_linux_entry_registers(machine: Make) -> None:
    guest = machine("entry_linux")
    assert guest.run() == ("debug-exit", 0)
    words = guest.read_words(MAILBOX, 12)
    rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, rflags, cr0, cr3, cr4 = words
    assert rsi == ZERO_PAGE
    assert (rax, rbx, rcx, rdx, rdi) == (0,) * 5
    assert rsp == rbp
    assert rsp % 16 == 0
    assert ZERO_PAGE + 0x1000 < rsp <= cr3
    assert not rflags & RFLAGS_IF
    assert cr0 & (CR0_PE | CR0_PG) == CR0_PE | CR0_PG
    assert cr4 == CR4_PAE
    assert unpack_from("<3H", guest.read(MAILBOX + 96, 6)) == (BOOT_CS, BOOT_DS, BOOT_DS)
    directory = guest.read_words(cr3, 1)[0] & ~0xFFF
    assert [entry & 1 for entry in guest.read_words(directory, 5)] == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("memory", "ram"),
    [
        (MEMORY, [(0, 0x9FC00), (1 << 20, MEMORY - (1 << 20))]),
        (FIVE_GIB, [(0, 0x9FC00), (1 << 20, 3 * GIB - (1 << 20)), (4 * GIB, 2 * GIB)]),
    ],
)
def test_zero_page(machine: Make, initrd: Path, memory: int, ram: list[tuple[int, int]]) -> None:
    guest = machine("entry_linux", cmdline=CMDLINE, initrd=str(initrd), memory=memory)
    assert guest.run() == ("debug-exit", 0)
    page = guest.read(BUFFER, 4096)
    assert page == guest.read(ZERO_PAGE, 4096)
    assert unpack_from("<H", page, 0x1FE) == (0xAA55,)
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF  # a loader without a number of its own
    entries = [unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    assert [entry[:2] for entry in entries if entry[2] == layout.E820_RAM] == ram
    (cmdline,) = unpack_from("<I", page, 0x228)
    assert text_at(guest, cmdline) == CMDLINE
    address, size = unpack_from("<II", page, 0x218)
    assert unpack_from("<II", page, 0x0C0) == (0, 0)  # the upper halves of both
    assert size == initrd.stat().st_size
    assert guest.read(address, size) == initrd.read_bytes()
    (rsdp,) = unpack_from("<Q", page, 0x070)
    assert is_rsdp(guest, rsdp)


@pytest.mark.any_kvm
def test_zero_page_without_initrd(machine: Make) -> None:
    guest = machine("entry_linux")
    guest.run()
    page = guest.read(BUFFER, 4096)
    assert unpack_from("<II", page, 0x218) == (0, 0)
    (cmdline,) = unpack_from("<I", page, 0x228)
    assert text_at(guest, cmdline) == ""


def test_pvh_entry_registers(machine: Make) -> None:
    guest = machine("entry_pvh")
    assert guest.run() == ("debug-exit", 0)
    eax, ebx, cr0, cr4, cs, ds, ss = unpack_from("<4I3H", guest.read(MAILBOX, 22))
    assert ebx == START_INFO
    assert eax == 0
    assert cr0 & (CR0_PE | CR0_PG) == CR0_PE
    assert cr4 == 0
    assert (cs, ds, ss) == (BOOT_CS, BOOT_DS, BOOT_DS)


@pytest.mark.parametrize("with_initrd", [False, True])
def test_pvh_start_info(machine: Make, initrd: Path, with_initrd: bool) -> None:
    guest = machine(
        "entry_pvh",
        cmdline=CMDLINE,
        initrd=str(initrd) if with_initrd else "",
        memory=FIVE_GIB,
    )
    assert guest.run() == ("debug-exit", 0)
    info = guest.read(BUFFER, 4096)
    fields = "<IIIIQQQQII"
    assert calcsize(fields) == 56
    magic, version, flags, modules, module_list, cmdline, rsdp, memory_map, entries, _ = (
        unpack_from(fields, info)
    )
    assert magic == START_INFO_MAGIC
    assert version == 1
    assert flags == 0
    assert text_at(guest, cmdline) == CMDLINE
    assert is_rsdp(guest, rsdp)
    table = guest.read(memory_map, 24 * entries)
    rows = [unpack_from("<QQII", table, 24 * i) for i in range(entries)]
    assert [row[:3] for row in rows] == list(layout.e820(FIVE_GIB))
    assert modules == with_initrd
    if with_initrd:
        address, size, module_cmdline, _ = unpack_from("<4Q", guest.read(module_list, 32))
        assert guest.read(address, size) == initrd.read_bytes()
        assert module_cmdline == 0
    else:
        assert module_list == 0


@pytest.mark.parametrize("address", [4 * GIB, 6 * GIB - 8, 5 * GIB + 0x12_3458])
def test_memory_above_4_gib_is_the_same_on_both_sides(machine: Make, address: int) -> None:
    mine, guests = 0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210
    guest = machine("high_memory", memory=FIVE_GIB)
    guest.write_words(address, mine)
    guest.write_words(MAILBOX, address, 0, guests)
    assert guest.run() == ("debug-exit", 0)
    assert guest.read_words(MAILBOX, 2) == [address, mine]
    assert guest.read_words(address, 1) == [guests]


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_memory_that_is_not_touched_costs_nothing(machine: Make) -> None:
    before = resident_bytes()
    guest = machine("high_memory", memory=FIVE_GIB)
    guest.write_words(MAILBOX, 6 * GIB - 8, 0, 1)
    guest.run()
    assert resident_bytes() - before < 64 << 20


@pytest.mark.any_kvm
@pytest.mark.parametrize("address", [3 * GIB, 4 * GIB - 8, 6 * GIB - 7, 6 * GIB])
def test_addresses_outside_memory_are_refused(machine: Make, address: int) -> None:
    guest = machine("spin", memory=FIVE_GIB)
    assert guest.memory is not None
    with pytest.raises(IndexError):
        guest.memory.view(address, 8)
