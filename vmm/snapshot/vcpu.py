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
_XSAVE_MIN, _XSAVE_MAX = 4096, 1 << 20  # bytes
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

    __slots__ = ("_state", "_vcpu")

    def __init__(self, vcpu: Vcpu, state: State) -> None:
        self._vcpu = vcpu
        self._state = state

    def start_timer(self) -> None:
        """Set the local APIC, before the TSC; StateError."""
        self._state.set_lapic(self._vcpu.fd)

    def finish(self) -> None:
        """Set what its TSC is due for, and tell KVM that the guest stood still; KvmError."""
        fd = self._vcpu.fd
        self._state.set_last(fd)
        try:
            ioctls.KVMCLOCK_CTRL(fd)
        except KvmError:
            # The guest has no kvmclock, or this KVM cannot tell it.
            return


class State:
    """What `save` returned, read for a KVM."""

    __slots__ = (
        *("_area", "_deadline", "_debugregs", "_events", "_fields", "_fpu", "_lapic", "_mp"),
        *("_msrs", "_regs", "_sregs", "_xcrs", "_xsave"),
    )

    def __init__(self, fields: Fields, kvm_fd: int) -> None:
        """Read it; StateError."""
        self._fields = fields
        self._mp = ffi.new("struct kvm_mp_state *")
        self._mp.mp_state = fields.integer("mp_state", 0, _MP_STATE_MAX)
        self._regs = _read(fields, "regs", "struct kvm_regs *")
        self._debugregs = _read(fields, "debugregs", "struct kvm_debugregs *")
        self._sregs = _read_sregs(fields, kvm_fd)
        self._xsave = fields.optional("xsave")
        self._area = b""
        if self._xsave is not None:
            _check_capability(fields, "xsave", kvm_fd)
            self._area = self._xsave.data("area", most=_XSAVE_MAX)
        self._fpu = _read(fields, "fpu", "struct kvm_fpu *")
        self._xcrs = _read_xcrs(fields, kvm_fd)
        self._msrs = {
            one.integer("index", 0, _U32_MAX): (one, one.integer("value", 0, _U64_MAX))
            for one in fields.items("msrs", _MSRS_MAX)
        }
        self._deadline = self._msrs.pop(_MSR_TSC_DEADLINE, (fields, 0))[1]
        self._lapic = ffi.new("struct kvm_lapic_state *")
        size = len(self._lapic.regs)
        ffi.memmove(self._lapic.regs, fields.data("lapic", size), size)
        self._events = _read(fields, "events", "struct kvm_vcpu_events *")

    def set(self, vcpu: Vcpu, vm_fd: int) -> Restored:
        """Set it to a vCPU that has not run, whose CPUID is set; StateError, KvmError.

        Return what is still to be set.
        """
        fd, fields = vcpu.fd, self._fields
        _set(fields, "mp_state", ioctls.SET_MP_STATE, fd, self._mp)
        _set(fields, "regs", kvm.SET_REGS, fd, self._regs)
        _set(fields, "sregs", self._sregs[0], fd, self._sregs[1])
        if self._xsave is not None:
            self._set_xsave(fd, self._xsave, vm_fd)
        _set(fields, "fpu", kvm.SET_FPU, fd, self._fpu)
        if self._xcrs is not None:
            _set(fields, "xcrs", ioctls.SET_XCRS, fd, self._xcrs)
        _set(fields, "debugregs", ioctls.SET_DEBUGREGS, fd, self._debugregs)
        self._set_msrs(fd)
        return Restored(vcpu, self)

    def _set_xsave(self, fd: int, xsave: Fields, vm_fd: int) -> None:
        # KVM reads as much as it would write.
        size = max(kvm.extension(vm_fd, "KVM_CAP_XSAVE2"), _XSAVE_MIN)
        if len(self._area) > size:
            raise xsave.wrong("area", f"has {len(self._area)} bytes, and {size} are the most")
        area = ffi.new("char[]", self._area.ljust(size, b"\0"))
        _set(self._fields, "xsave", ioctls.SET_XSAVE, fd, area)

    def _set_msrs(self, fd: int) -> None:
        """Set the MSRs but the timer's deadline."""
        here = read_msrs(fd, list(self._msrs))
        # What is the same here may be one that can only be read.
        others = [
            (index, one, value)
            for index, (one, value) in self._msrs.items()
            if here.get(index) != value
        ]
        done = _write_msrs(fd, [(index, 0, value) for index, _, value in others])
        if done < len(others):
            index, one, value = others[done]
            raise one.wrong("value", f"MSR {index:#x} cannot have {value:#x} on this KVM")

    def set_lapic(self, fd: int) -> None:
        """Set the local APIC; StateError."""
        _set(self._fields, "lapic", kvm.SET_LAPIC, fd, self._lapic)

    def set_last(self, fd: int) -> None:
        """Set what its TSC is due for, and what is pending; KvmError."""
        if self._deadline:
            _write_msrs(fd, [(_MSR_TSC_DEADLINE, 0, self._deadline)])
        ioctls.SET_VCPU_EVENTS(fd, self._events)


def _read(fields: Fields, name: str, kind: str) -> Any:
    struct = ffi.new(kind)
    structs.restore(struct, fields.section(name))
    return struct


def _set(fields: Fields, name: str, ioctl: kvm.Ioctl, fd: int, argument: Any) -> None:
    """Call an ioctl with what a field says; StateError when KVM has none of that."""
    try:
        ioctl(fd, argument)
    except KvmError as error:
        raise fields.wrong(name, f"is not what this KVM takes ({error})") from None


def _check_capability(fields: Fields, name: str, kvm_fd: int) -> None:
    """Refuse what takes the capability of that name on a KVM without it; StateError."""
    capability = f"KVM_CAP_{name.upper()}"
    if not kvm.extension(kvm_fd, capability):
        raise fields.wrong(name, f"takes {capability}, which this KVM lacks; use a newer one")


def _read_sregs(fields: Fields, kvm_fd: int) -> tuple[kvm.Ioctl, Any]:
    """Return the special registers, and the ioctl that takes them."""
    section, pdptrs = fields.section("sregs"), fields.optional("pdptrs")
    if kvm.extension(kvm_fd, "KVM_CAP_SREGS2"):
        sregs = ffi.new("struct kvm_sregs2 *")
        structs.restore(sregs, section, ("flags", "pdptrs"))
        if pdptrs is not None:
            values = pdptrs.integers("entries", 0, _U64_MAX, most=4)
            sregs.flags = lib.KVM_SREGS2_FLAGS_PDPTRS_VALID
            sregs.pdptrs = values + [0] * (4 - len(values))
        return ioctls.SET_SREGS2, sregs
    if pdptrs is not None:
        raise fields.wrong("pdptrs", "takes KVM_CAP_SREGS2, which this KVM lacks; use a newer one")
    sregs = ffi.new("struct kvm_sregs *")
    structs.restore(sregs, section, ("interrupt_bitmap",))
    return kvm.SET_SREGS, sregs


def _read_xcrs(fields: Fields, kvm_fd: int) -> Any:
    xcrs = fields.optional("xcrs")
    if xcrs is None:
        return None
    _check_capability(fields, "xcrs", kvm_fd)
    table = ffi.new("struct kvm_xcrs *")
    for place, one in enumerate(xcrs.items("registers", len(table.xcrs))):
        structs.restore(table.xcrs[place], one)
        table.nr_xcrs = place + 1
    return table


def _write_msrs(fd: int, entries: list[tuple[int, int, int]]) -> int:
    """Set MSRs (index, 0, value) up to the first that cannot be; return how many were."""
    if not entries:
        return 0
    table = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
    return kvm.SET_MSRS(fd, table)


def read_tsc(vcpu: Vcpu) -> int:
    """Return the TSC of this moment."""
    return read_msrs(vcpu.fd, [_MSR_TSC])[_MSR_TSC]


def write_tsc(vcpu: Vcpu, value: int) -> None:
    """Let the TSC go on from a value."""
    _write_msrs(vcpu.fd, [(_MSR_TSC, 0, value)])


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
