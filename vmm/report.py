"""The state of a vCPU in readable form, for a guest that ended badly."""

from __future__ import annotations

from ..errors import KvmError
from ..native import ffi, lib
from . import kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .vcpu import Vcpu

_INTERNAL_ERRORS = {
    1: "emulation failure",
    2: "simultaneous exceptions",
    3: "an event could not be delivered",
    4: "an exit that KVM does not expect",
}
_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
    ("rip", "rflags"),
)
# Where a processor starts after reset. Of a triple fault on AMD there is no more to tell: the
# processor leaves its state undefined then, so KVM resets the vCPU.
_RESET_CS, _RESET_RIP = 0xF000, 0xFFF0
_AT_RESET = "(at reset: this processor keeps no registers of a triple fault)"
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


def describe_exit(vcpu: Vcpu, reason: int) -> str:
    """Say in one line what KVM reports of an exit that pyvirt cannot handle."""
    detail = ffi.new("struct pv_exit_detail *")
    lib.pv_vcpu_exit_detail(vcpu.handle, detail)
    if reason == lib.KVM_EXIT_INTERNAL_ERROR:
        what = _INTERNAL_ERRORS.get(detail.code, f"suberror {detail.code}")
        return f"KVM internal error {detail.code} ({what})"
    if reason == lib.KVM_EXIT_FAIL_ENTRY:
        return f"the processor refused to enter the guest, hardware reason {detail.code:#x}"
    return f"KVM exit {reason}, code {detail.code:#x}, which pyvirt does not know"


def _row(structure: Any, names: tuple[str, ...]) -> str:
    return "  ".join(f"{name:>6} {getattr(structure, name):016x}" for name in names)


def _segment(name: str, segment: Any) -> str:
    mode = "64-bit" if segment.l else "32-bit" if segment.db else "16-bit"
    return (
        f"{name:>6} {segment.selector:04x} base {segment.base:x} limit {segment.limit:x} "
        f"type {segment.type:x} dpl {segment.dpl} {mode}"
    )


def _tables(sregs: Any) -> tuple[tuple[str, Any], ...]:
    return ("gdt", sregs.gdt), ("idt", sregs.idt)


def registers(vcpu: Vcpu) -> str:
    """Return the registers of a vCPU that stands still, a few to the line.

    Where KVM does not tell them, as of a VM that it has given up, why: one line.
    """
    regs = ffi.new("struct kvm_regs *")
    sregs = ffi.new("struct kvm_sregs *")
    try:
        kvm.GET_REGS(vcpu.fd, regs)
        kvm.GET_SREGS(vcpu.fd, sregs)
    except KvmError as error:
        return f"no registers: {error}"
    rows = [_row(regs, names) for names in _GENERAL]
    rows.append(_row(sregs, _CONTROL))
    rows += [_segment(name, getattr(sregs, name)) for name in ("cs", "ss", "tr")]
    rows += [f"{name:>6} base {t.base:x} limit {t.limit:x}" for name, t in _tables(sregs)]
    if (sregs.cs.selector, regs.rip) == (_RESET_CS, _RESET_RIP):
        rows.append(_AT_RESET)
    return "\n".join(rows)
