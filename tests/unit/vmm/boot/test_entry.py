"""The boot vCPU's registers, and the descriptor and page tables that they point to."""

from __future__ import annotations

from struct import unpack, unpack_from
from typing import TYPE_CHECKING

import pytest
from pyvirt.vmm import layout
from pyvirt.vmm.boot import entry
from pyvirt.vmm.boot.kernel import LINUX64, PVH, Kernel

from .images import MIB

if TYPE_CHECKING:
    from pyvirt.vmm.memory import GuestMemory

    from ...conftest import Registers

PG, PE = 1 << 31, 1
PAE = 1 << 5
LME, LMA = 1 << 8, 1 << 10
PRESENT, HUGE = 1, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000


def prepare(protocol: str, memory: GuestMemory, registers: Registers) -> None:
    entry.prepare(memory, -1, Kernel(protocol, 16 * MIB + 0x200, 24 * MIB))


def translate(memory: GuestMemory, cr3: int, address: int) -> int | None:
    """Walk four-level page tables as the processor does; None: not present."""
    table = cr3
    for shift in (39, 30, 21, 12):
        (word,) = unpack("<Q", memory.read(table + 8 * (address >> shift & 511), 8))
        if not word & PRESENT:
            return None
        if word & HUGE or shift == 12:
            mask = (1 << shift) - 1
            return int(word & ADDRESS & ~mask | address & mask)
        table = word & ADDRESS
    return None


def test_linux_is_entered_in_long_mode(memory: GuestMemory, registers: Registers) -> None:
    prepare(LINUX64, memory, registers)
    sregs, regs = registers.sregs, registers.regs
    assert sregs.cr0 & (PG | PE) == PG | PE
    assert sregs.cr4 & PAE
    assert sregs.efer == LME | LMA
    assert (regs.rip, regs.rsi) == (16 * MIB + 0x200, layout.ZERO_PAGE)
    assert regs.rflags == 2, "interrupts off"
    assert (sregs.cs.l, sregs.cs.db) == (1, 0)


def test_pvh_is_entered_in_flat_32_bit_mode(memory: GuestMemory, registers: Registers) -> None:
    prepare(PVH, memory, registers)
    sregs, regs = registers.sregs, registers.regs
    assert sregs.cr0 & (PG | PE) == PE
    assert (sregs.cr4, sregs.efer) == (0, 0)
    assert (regs.rip, regs.rbx) == (16 * MIB + 0x200, layout.PVH_START_INFO)
    assert regs.rflags == 2
    assert (sregs.cs.l, sregs.cs.db) == (0, 1)


@pytest.mark.parametrize("protocol", [LINUX64, PVH])
def test_segments_agree_with_the_descriptor_table(
    protocol: str, memory: GuestMemory, registers: Registers
) -> None:
    prepare(protocol, memory, registers)
    sregs = registers.sregs
    table = memory.read(sregs.gdt.base, sregs.gdt.limit + 1)
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr"):
        segment = getattr(sregs, name)
        low, high = unpack_from("<II", table, segment.selector)
        granular = high >> 23 & 1
        limit = high & 0xF_0000 | low & 0xFFFF
        assert segment.limit == (limit << 12 | 0xFFF if granular else limit), name
        assert segment.base == (high & 0xFF00_0000 | high << 16 & 0xFF_0000 | low >> 16), name
        assert segment.type == high >> 8 & 0xF, name
        assert segment.s == high >> 12 & 1, name
        assert segment.dpl == high >> 13 & 3, name
        assert segment.present == high >> 15 & 1 == 1, name
        assert (segment.l, segment.db, segment.g) == (high >> 21 & 1, high >> 22 & 1, granular)
    assert (sregs.cs.selector, sregs.ds.selector) == (0x10, 0x18), "__BOOT_CS, __BOOT_DS"


def test_identity_map_covers_4_gib(memory: GuestMemory, registers: Registers) -> None:
    prepare(LINUX64, memory, registers)
    cr3 = registers.sregs.cr3
    for address in range(0, 4 << 30, 2 * MIB):
        assert translate(memory, cr3, address + 0x1234) == address + 0x1234
    assert translate(memory, cr3, 4 << 30) is None
    assert translate(memory, cr3, 1 << 39) is None


def test_boot_stack_does_not_reach_the_zero_page(memory: GuestMemory, registers: Registers) -> None:
    prepare(LINUX64, memory, registers)
    assert layout.ZERO_PAGE + 0x1000 + 0x800 < registers.regs.rsp <= layout.PML4
    assert registers.regs.rsp % 16 == 0
