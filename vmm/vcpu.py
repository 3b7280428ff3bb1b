"""One vCPU: its creation, CPUID, MSRs and local APIC, and the thread that runs it."""

from __future__ import annotations

import os

from ..errors import KvmError
from ..native import check, ffi, lib
from . import cpuid, kvm
from .bus import Bus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CPUID_ENTRIES_MAX = 256
_CPUID_BRAND = range(0x8000_0002, 0x8000_0005)
_MSR_MISC_ENABLE, _MISC_ENABLE_FAST_STRING = 0x1A0, 1
_MSR_MTRR_DEF_TYPE, _MTRR_ENABLE, _MTRR_WRITE_BACK = 0x2FF, 1 << 11, 6
_FPU_FCW_DEFAULT, _FPU_MXCSR_DEFAULT = 0x37F, 0x1F80
_APIC_LVT_LINT0, _APIC_LVT_LINT1 = 0x350, 0x360
_APIC_MODE_NMI, _APIC_MODE_EXTINT = 0x4 << 8, 0x7 << 8


def supported_cpuid(kvm_fd: int) -> list[cpuid.Entry]:
    """Return the CPUID entries that KVM can offer on this host.

    The brand string, which KVM leaves to user space, is the host's.
    """
    table = ffi.new(
        "struct kvm_cpuid2 *", {"nent": _CPUID_ENTRIES_MAX, "entries": _CPUID_ENTRIES_MAX}
    )
    kvm.GET_SUPPORTED_CPUID(kvm_fd, table)
    entries = [
        cpuid.Entry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
        for e in table.entries[0 : table.nent]
    ]
    registers = ffi.new("uint32_t[4]")
    for entry in entries:
        if entry.function in _CPUID_BRAND:
            lib.pv_host_cpuid(entry.function, 0, registers)
            entry.eax, entry.ebx, entry.ecx, entry.edx = registers
    return entries


class Vcpu:
    """One vCPU; owns its descriptor and the C state of its loop."""

    __slots__ = ("bus", "cpuid", "fd", "handle", "index")

    def __init__(
        self, vm_fd: int, index: int, run_size: int, bus: Bus, *, apic_id: int | None = None
    ) -> None:
        """Create vCPU `index`; `run_size` is KVM_GET_VCPU_MMAP_SIZE's.

        Its `apic_id` is the same number where none is given.
        """
        self.index = index
        self.bus = bus
        self.cpuid: list[cpuid.Entry] = []
        self.fd = kvm.CREATE_VCPU(vm_fd, index if apic_id is None else apic_id)
        out = ffi.new("struct pv_vcpu **")
        try:
            check(lib.pv_vcpu_new(self.fd, run_size, bus.handle, out), f"vCPU {index}")
        except BaseException:
            os.close(self.fd)
            raise
        self.handle: Any = out[0]

    def set_cpuid(self, entries: list[cpuid.Entry]) -> None:
        """Give the vCPU its CPUID; before its first run."""
        self.cpuid = entries
        rows = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
        kvm.SET_CPUID2(
            self.fd, ffi.new("struct kvm_cpuid2 *", {"nent": len(rows), "entries": rows})
        )

    def reset(self) -> None:
        """Set what firmware would have: FPU, MSRs that Linux looks at, LINT0 and LINT1."""
        kvm.SET_FPU(
            self.fd,
            ffi.new("struct kvm_fpu *", {"fcw": _FPU_FCW_DEFAULT, "mxcsr": _FPU_MXCSR_DEFAULT}),
        )
        msrs = [
            (_MSR_MISC_ENABLE, 0, _MISC_ENABLE_FAST_STRING),
            (_MSR_MTRR_DEF_TYPE, 0, _MTRR_ENABLE | _MTRR_WRITE_BACK),
        ]
        # KVM stops at the first MSR that the processor lacks; none of these is vital.
        kvm.SET_MSRS(self.fd, ffi.new("struct kvm_msrs *", {"nmsrs": len(msrs), "entries": msrs}))
        apic = ffi.new("struct kvm_lapic_state *")
        kvm.GET_LAPIC(self.fd, apic)
        registers = ffi.cast("uint32_t *", apic.regs)
        registers[_APIC_LVT_LINT0 // 4] = _APIC_MODE_EXTINT
        registers[_APIC_LVT_LINT1 // 4] = _APIC_MODE_NMI
        kvm.SET_LAPIC(self.fd, apic)

    def run(self) -> int:
        """Run until an exit that only the machine can judge; return its reason.

        KVM_EXIT_INTR means that somebody called `kick`. Accesses to Python devices are served
        here. On the vCPU's own thread only; KvmError when KVM_RUN itself fails.
        """
        run, access = lib.pv_vcpu_run, lib.pv_vcpu_access(self.handle)
        io, mmio = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO
        while True:
            reason: int = run(self.handle)
            if reason in (io, mmio):
                self.bus.serve(access)
            elif reason < 0:
                raise KvmError("KVM_RUN", -reason)
            else:
                return reason

    def kick(self) -> None:
        """Make `run` return KVM_EXIT_INTR, now or at its next call. Any thread."""
        lib.pv_vcpu_kick(self.handle)

    def close(self) -> None:
        """Free the C state and close the descriptor; the thread must be gone."""
        lib.pv_vcpu_free(self.handle)
        os.close(self.fd)
