"""The state of the boot vCPU at a kernel's first instruction.

Sources: Documentation/arch/x86/boot.rst (64-bit boot protocol); Xen's PVH boot ABI
(docs/misc/pvh.pandoc); Multiboot Specification 0.6.96, 3.2; Intel SDM volume 3, chapter 9.
"""

from __future__ import annotations

from struct import pack

from ...native import ffi
from .. import kvm, layout
from ..memory import GuestMemory
from . import multiboot
from .kernel import MULTIBOOT, PVH, Kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CR0_PE, _CR0_ET, _CR0_PG = 1 << 0, 1 << 4, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_FIXED = 1 << 1

# Linux wants __BOOT_CS at 0x10 and __BOOT_DS at 0x18; a busy 32-bit TSS stands behind them.
_BOOT_CS, _BOOT_DS, _BOOT_TSS = 0x10, 0x18, 0x20
_CODE, _DATA, _TSS = 0xB, 0x3, 0xB
_GDT_CODE64 = 0x00AF_9B00_0000_FFFF
_GDT_CODE32 = 0x00CF_9B00_0000_FFFF
_GDT_DATA = 0x00CF_9300_0000_FFFF
_GDT_TSS = 0x0000_8B00_0000_0067

_PRESENT_WRITABLE = 0x3
_HUGE = 0x80
_IDENTITY_GIB = layout.PAGE_DIRECTORY_COUNT


def _segment(selector: int, kind: int, *, code64: bool = False) -> Any:
    is_code = kind == _CODE
    return {
        "base": 0,
        "limit": 0xFFFF_FFFF,
        "selector": selector,
        "type": kind,
        "present": 1,
        "dpl": 0,
        "db": int(not (is_code and code64)),
        "s": 1,
        "l": int(is_code and code64),
        "g": 1,
    }


def _set_segments(memory: GuestMemory, sregs: Any, *, code64: bool) -> None:
    code = _GDT_CODE64 if code64 else _GDT_CODE32
    memory.write(layout.GDT, pack("<5Q", 0, 0, code, _GDT_DATA, _GDT_TSS))
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, 5 * 8 - 1
    sregs.idt.base, sregs.idt.limit = layout.IDT, 7
    sregs.cs = _segment(_BOOT_CS, _CODE, code64=code64)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, _segment(_BOOT_DS, _DATA))
    sregs.tr = {"limit": 0x67, "selector": _BOOT_TSS, "type": _TSS, "present": 1}


def _identity_map(memory: GuestMemory) -> None:
    """Map the first 4 GiB to themselves in 2 MiB pages."""
    memory.write(layout.PML4, pack("<Q", layout.PDPT | _PRESENT_WRITABLE))
    directories = range(
        layout.PAGE_DIRECTORIES, layout.PAGE_DIRECTORIES + _IDENTITY_GIB * 0x1000, 0x1000
    )
    memory.write(layout.PDPT, b"".join(pack("<Q", d | _PRESENT_WRITABLE) for d in directories))
    flags = _PRESENT_WRITABLE | _HUGE
    memory.write(
        layout.PAGE_DIRECTORIES,
        pack(f"<{_IDENTITY_GIB * 512}Q", *range(flags, _IDENTITY_GIB << 30 | flags, 1 << 21)),
    )


def prepare(memory: GuestMemory, vcpu_fd: int, kernel: Kernel) -> None:
    """Set the registers of the boot vCPU, and write the tables that they point to."""
    sregs = ffi.new("struct kvm_sregs *")
    kvm.GET_SREGS(vcpu_fd, sregs)
    regs = ffi.new("struct kvm_regs *")
    regs.rflags = _RFLAGS_FIXED
    regs.rip = kernel.entry
    if kernel.protocol in (PVH, MULTIBOOT):
        _set_segments(memory, sregs, code64=False)
        sregs.cr0 = _CR0_PE | _CR0_ET
        sregs.cr4 = 0
        sregs.efer = 0
        if kernel.protocol == PVH:
            regs.rbx = layout.PVH_START_INFO
        else:
            regs.rax = multiboot.IN_EAX
            regs.rbx = kernel.info
    else:
        _set_segments(memory, sregs, code64=True)
        _identity_map(memory)
        sregs.cr3 = layout.PML4
        sregs.cr4 = _CR4_PAE
        sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_PG
        sregs.efer = _EFER_LME | _EFER_LMA
        regs.rsi = layout.ZERO_PAGE
        regs.rsp = regs.rbp = layout.BOOT_STACK
    kvm.SET_SREGS(vcpu_fd, sregs)
    kvm.SET_REGS(vcpu_fd, regs)
