"""The state of a vCPU, as KVM has it: saved and restored with no vCPU of the machine running.

The order of the calls matters: KVM_GET_MP_STATE lets a pending INIT or SIPI happen, and reading
some state moves other state on, so events are read last. Setting, the local APIC's base comes with
the special registers before the APIC itself, the APIC before the deadline of its timer, and that
after the TSC. Source: Documentation/virt/kvm/api.rst; Intel SDM volume 4, AMD APM volume 2,
appendix A, for the MSRs.
"""

from __future__ import annotations

from ...errors import KvmError, PyvirtError
from ...native import ffi, lib
from .. import kvm
from . import ioctls, structs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from ..vcpu import Vcpu

_U32_MAX, _U64_MAX = (1 << 32) - 1, (1 << 64) - 1
_MSRS_MAX = 1024
_XSAVE_MIN = 4096  # bytes
_MP_STATE_MAX = 10

_EFER_SVME, _CR4_VMXE = 1 << 12, 1 << 13

_MSR_TSC = 0x10
_MSR_TSC_DEADLINE = 0x6E0
# Which branches were last: KVM shows them, and does not let them be set.
_UNSETTABLE = range(0x1DB, 0x1DF)
# Those of memory types, which KVM keeps but does not list.
_MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)


def check(vcpu: Vcpu) -> None:
    """Refuse a vCPU that has a state which is not kept; PyvirtError."""
    sregs = ffi.new("struct kvm_sregs *")
    kvm.GET_SREGS(vcpu.fd, sregs)
    if sregs.efer & _EFER_SVME or sregs.cr4 & _CR4_VMXE:
        raise PyvirtError(
            f"vCPU {vcpu.index}: its guest uses virtualization itself, which a snapshot does not "
            "keep; unload the guest's KVM first"
        )


def msr_indices(kvm_fd: int) -> list[int]:
    """Return the MSRs that make up a vCPU's state; the TSC, which moves on, is not one of them."""
    table = ffi.new("struct kvm_msr_list *", {"nmsrs": _MSRS_MAX, "indices": _MSRS_MAX})
    ioctls.GET_MSR_INDEX_LIST(kvm_fd, table)
    listed = [int(index) for index in table.indices[0 : table.nmsrs]]
    kept = [index for index in listed if index != _MSR_TSC and index not in _UNSETTABLE]
    return kept + [index for index in _MTRRS if index not in kept]


def save(vcpu: Vcpu, kvm_fd: int, vm_fd: int) -> dict[str, object]:
    """Return the state of a vCPU, but for its TSC; KvmError."""
    fd = vcpu.fd
    mp = ffi.new("struct kvm_mp_state *")
    kvm.GET_MP_STATE(fd, mp)
    regs = ffi.new("struct kvm_regs *")
    kvm.GET_REGS(fd, regs)
    state: dict[str, object] = {
        "mp_state": int(mp.mp_state),
        "cpuid": [{name: getattr(entry, name) for name in entry.__slots__} for entry in vcpu.cpuid],
        "regs": structs.save(regs),
        **_save_sregs(fd, kvm_fd),
        **_save_fpu(fd, kvm_fd, vm_fd),
    }
    debugregs = ffi.new("struct kvm_debugregs *")
    ioctls.GET_DEBUGREGS(fd, debugregs)
    state["debugregs"] = structs.save(debugregs)
    lapic = ffi.new("struct kvm_lapic_state *")
    kvm.GET_LAPIC(fd, lapic)
    state["lapic"] = bytes(ffi.buffer(lapic.regs)).hex()
    msrs = read_msrs(fd, msr_indices(kvm_fd))
    state["msrs"] = [{"index": index, "value": value} for index, value in msrs.items()]
    events = ffi.new("struct kvm_vcpu_events *")
    ioctls.GET_VCPU_EVENTS(fd, events)
    state["events"] = structs.save(events)
    return state


def _save_sregs(fd: int, kvm_fd: int) -> dict[str, object]:
    if not kvm.extension(kvm_fd, "KVM_CAP_SREGS2"):
        sregs = ffi.new("struct kvm_sregs *")
        kvm.GET_SREGS(fd, sregs)
        # What it says of a pending interrupt is among the events.
        return {"sregs": structs.save(sregs, ("interrupt_bitmap",)), "pdptrs": None}
    sregs = ffi.new("struct kvm_sregs2 *")
    ioctls.GET_SREGS2(fd, sregs)
    is_pae = sregs.flags & lib.KVM_SREGS2_FLAGS_PDPTRS_VALID
    pdptrs = {"entries": [int(one) for one in sregs.pdptrs]} if is_pae else None
    return {"sregs": structs.save(sregs, ("flags", "pdptrs")), "pdptrs": pdptrs}


def _save_fpu(fd: int, kvm_fd: int, vm_fd: int) -> dict[str, object]:
    # Of the x87 and SSE it has what XSAVE has too, but where KVM emulates the processor.
    fpu = ffi.new("struct kvm_fpu *")
    ioctls.GET_FPU(fd, fpu)
    state: dict[str, object] = {"fpu": structs.save(fpu), "xsave": None, "xcrs": None}
    if kvm.extension(kvm_fd, "KVM_CAP_XSAVE"):
        size = kvm.extension(vm_fd, "KVM_CAP_XSAVE2")
        area = ffi.new("char[]", max(size, _XSAVE_MIN))
        (ioctls.GET_XSAVE2 if size > _XSAVE_MIN else ioctls.GET_XSAVE)(fd, area)
        state["xsave"] = {"area": bytes(ffi.buffer(area)).hex()}
    if kvm.extension(kvm_fd, "KVM_CAP_XCRS"):
        xcrs = ffi.new("struct kvm_xcrs *")
        ioctls.GET_XCRS(fd, xcrs)
        found = [structs.save(one) for one in xcrs.xcrs[0 : xcrs.nr_xcrs]]
        state["xcrs"] = {"registers": found}
    return state


def read_msrs(fd: int, indices: list[int]) -> dict[int, int]:
    """Return the values of those of the MSRs that the vCPU has."""
    found: dict[int, int] = {}
    rest = indices
    while rest:
        table = ffi.new(
            "struct kvm_msrs *", {"nmsrs": len(rest), "entries": [(index,) for index in rest]}
        )
        # It stops at the first that cannot be read.
        done = ioctls.GET_MSRS(fd, table)
        found.update({int(one.index): int(one.data) for one in table.entries[0:done]})
        rest = rest[done + 1 :]
    return found


class Restored:
    """What of a vCPU's state goes on with the time, and is set last: its local APIC has a timer."""

    __slots__ = ("_deadline", "_events", "_fields", "_lapic", "_vcpu")

    def __init__(self, vcpu: Vcpu, fields: Fields, deadline: int) -> None:
        """Read it; StateError."""
        self._vcpu = vcpu
        self._fields = fields
        self._deadline = deadline
        self._lapic = ffi.new("struct kvm_lapic_state *")
        size = len(self._lapic.regs)
        ffi.memmove(self._lapic.regs, fields.data("lapic", size), size)
        self._events = ffi.new("struct kvm_vcpu_events *")
        structs.restore(self._events, fields.section("events"))

    def start_timer(self) -> None:
        """Set the local APIC, before the TSC; StateError."""
        _set(self._fields, "lapic", kvm.SET_LAPIC, self._vcpu.fd, self._lapic)

    def finish(self) -> None:
        """Set what its TSC is due for, and tell KVM that the guest stood still; KvmError."""
        fd = self._vcpu.fd
        if self._deadline:
            _write_msr(fd, _MSR_TSC_DEADLINE, self._deadline)
        ioctls.SET_VCPU_EVENTS(fd, self._events)
        try:
            ioctls.KVMCLOCK_CTRL(fd)
        except KvmError:
            # The guest has no kvmclock, or this KVM cannot tell it.
            return


def restore(vcpu: Vcpu, fields: Fields, kvm_fd: int, vm_fd: int) -> Restored:
    """Set the state of a vCPU that has not run; its CPUID is set. StateError, KvmError.

    Return what is still to be set.
    """
    fd = vcpu.fd
    mp = ffi.new("struct kvm_mp_state *")
    mp.mp_state = fields.integer("mp_state", 0, _MP_STATE_MAX)
    regs = ffi.new("struct kvm_regs *")
    structs.restore(regs, fields.section("regs"))
    debugregs = ffi.new("struct kvm_debugregs *")
    structs.restore(debugregs, fields.section("debugregs"))
    _set(fields, "mp_state", ioctls.SET_MP_STATE, fd, mp)
    _set(fields, "regs", kvm.SET_REGS, fd, regs)
    _restore_sregs(fd, fields, kvm_fd)
    _restore_fpu(fd, fields, kvm_fd, vm_fd)
    _set(fields, "debugregs", ioctls.SET_DEBUGREGS, fd, debugregs)
    return Restored(vcpu, fields, _restore_msrs(fd, fields))


def _set(fields: Fields, name: str, ioctl: kvm.Ioctl, fd: int, argument: Any) -> None:
    """Call an ioctl with what a field says; StateError when KVM has none of that."""
    try:
        ioctl(fd, argument)
    except KvmError as error:
        raise fields.wrong(name, f"is not what this KVM takes ({error})") from None


def _restore_sregs(fd: int, fields: Fields, kvm_fd: int) -> None:
    section, pdptrs = fields.section("sregs"), fields.optional("pdptrs")
    if kvm.extension(kvm_fd, "KVM_CAP_SREGS2"):
        sregs = ffi.new("struct kvm_sregs2 *")
        structs.restore(sregs, section, ("flags", "pdptrs"))
        if pdptrs is not None:
            values = pdptrs.integers("entries", 0, _U64_MAX, most=4)
            sregs.flags = lib.KVM_SREGS2_FLAGS_PDPTRS_VALID
            sregs.pdptrs = values + [0] * (4 - len(values))
        _set(fields, "sregs", ioctls.SET_SREGS2, fd, sregs)
        return
    if pdptrs is not None:
        raise fields.wrong("pdptrs", "takes KVM_CAP_SREGS2, which this KVM lacks; use a newer one")
    sregs = ffi.new("struct kvm_sregs *")
    structs.restore(sregs, section, ("interrupt_bitmap",))
    _set(fields, "sregs", kvm.SET_SREGS, fd, sregs)


def _restore_fpu(fd: int, fields: Fields, kvm_fd: int, vm_fd: int) -> None:
    xsave, xcrs = fields.optional("xsave"), fields.optional("xcrs")
    if xsave is not None:
        if not kvm.extension(kvm_fd, "KVM_CAP_XSAVE"):
            raise fields.wrong(
                "xsave", "takes KVM_CAP_XSAVE, which this KVM lacks; use a newer one"
            )
        # KVM reads as much as it would write.
        size = max(kvm.extension(vm_fd, "KVM_CAP_XSAVE2"), _XSAVE_MIN)
        area = xsave.data("area", most=size)
        _set(fields, "xsave", ioctls.SET_XSAVE, fd, ffi.new("char[]", area.ljust(size, b"\0")))
    fpu = ffi.new("struct kvm_fpu *")
    structs.restore(fpu, fields.section("fpu"))
    _set(fields, "fpu", kvm.SET_FPU, fd, fpu)
    if xcrs is not None:
        if not kvm.extension(kvm_fd, "KVM_CAP_XCRS"):
            raise fields.wrong("xcrs", "takes KVM_CAP_XCRS, which this KVM lacks; use a newer one")
        table = ffi.new("struct kvm_xcrs *")
        for place, one in enumerate(xcrs.items("registers", len(table.xcrs))):
            structs.restore(table.xcrs[place], one)
            table.nr_xcrs = place + 1
        _set(fields, "xcrs", ioctls.SET_XCRS, fd, table)


def _restore_msrs(fd: int, fields: Fields) -> int:
    """Set the MSRs but the timer's deadline; return that, 0 where there is none."""
    saved = {
        one.integer("index", 0, _U32_MAX): (one, one.integer("value", 0, _U64_MAX))
        for one in fields.items("msrs", _MSRS_MAX)
    }
    deadline = saved.pop(_MSR_TSC_DEADLINE, (fields, 0))[1]
    here = read_msrs(fd, list(saved))
    for index, (one, value) in saved.items():
        # What is the same here may be one that can only be read.
        if here.get(index) != value and not _write_msr(fd, index, value):
            raise one.wrong("value", f"MSR {index:#x} cannot have {value:#x} on this KVM")
    return deadline


def _write_msr(fd: int, index: int, value: int) -> bool:
    entries = [(index, 0, value)]
    table = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": entries})
    return kvm.SET_MSRS(fd, table) == 1


def read_tsc(vcpu: Vcpu) -> int:
    """Return the TSC of this moment."""
    return read_msrs(vcpu.fd, [_MSR_TSC])[_MSR_TSC]


def write_tsc(vcpu: Vcpu, value: int) -> None:
    """Let the TSC go on from a value."""
    _write_msr(vcpu.fd, _MSR_TSC, value)


def tsc_offset(vcpu: Vcpu) -> int | None:
    """Return how far the TSC is ahead of the host's, modulo 2^64; None where KVM does not tell."""
    value, attribute = _tsc_offset_attribute()
    try:
        ioctls.HAS_DEVICE_ATTR(vcpu.fd, attribute)
        ioctls.GET_DEVICE_ATTR(vcpu.fd, attribute)
    except KvmError:
        return None
    return int(value[0])


def set_tsc_offset(vcpu: Vcpu, offset: int) -> None:
    """Put the TSC so far ahead of the host's; KvmError."""
    value, attribute = _tsc_offset_attribute()
    value[0] = offset & _U64_MAX
    ioctls.SET_DEVICE_ATTR(vcpu.fd, attribute)


def _tsc_offset_attribute() -> tuple[Any, Any]:
    """Return a place for the offset, to be kept while the attribute is used, and that."""
    value = ffi.new("uint64_t *")
    address = int(ffi.cast("uintptr_t", value))
    return value, ffi.new(
        "struct kvm_device_attr *", (0, lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET, address)
    )
