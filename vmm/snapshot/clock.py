"""The guest's time: kvmclock and the TSCs, taken at one moment, and set going again.

Between the two the host's clock has gone on, and the guest's is put forward by as much: timers that
were due meanwhile are due at once, and the time of day is right. Source:
Documentation/virt/kvm/api.rst, KVM_GET_CLOCK and KVM_SET_CLOCK, and devices/vcpu.rst, 4.1.
"""

from __future__ import annotations

import time

from ...errors import StateError
from ...native import ffi, lib
from .. import kvm
from . import ioctls
from . import vcpu as vcpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from ..vm import Vm

_U64_MAX = (1 << 64) - 1
_NS_MAX = (1 << 63) - 1
_VCPUS_MAX = 254
_TSC_KHZ_MAX = 100_000_000
# NTP corrects what is within 500 ppm; half of that is left to it.
_TSC_PPM = 250


def save(vm: Vm) -> dict[str, Any]:
    """Return the clocks of a machine that stands; KvmError."""
    clock = _read(vm.fd)
    has_realtime = clock.flags & lib.KVM_CLOCK_REALTIME
    offsets = [vcpus.tsc_offset(vcpu) for vcpu in vm.vcpus]
    if clock.flags & lib.KVM_CLOCK_HOST_TSC and None not in offsets:
        tscs = [(clock.host_tsc + (offset or 0)) & _U64_MAX for offset in offsets]
    else:
        tscs = [vcpus.read_tsc(vcpu) for vcpu in vm.vcpus]
    return {
        "clock": int(clock.clock),
        "realtime": int(clock.realtime) if has_realtime else time.time_ns(),
        "tsc": tscs,
        "tsc_khz": kvm.GET_TSC_KHZ(vm.vcpus[0].fd),
    }


class State:
    """What `save` returned, read."""

    __slots__ = ("_clock", "_fields", "_khz", "_realtime", "_tscs")

    def __init__(self, fields: Fields) -> None:
        """Read it; StateError."""
        self._fields = fields
        self._clock = fields.integer("clock", 0, _NS_MAX)
        self._realtime = fields.integer("realtime", 0, _NS_MAX)
        self._tscs = fields.integers("tsc", 0, _U64_MAX, most=_VCPUS_MAX)
        self._khz = fields.integer("tsc_khz", 0, _TSC_KHZ_MAX)

    def set(self, vm: Vm, kvm_fd: int) -> None:
        """Set the clocks going, before the first vCPU runs; StateError, KvmError."""
        tscs, khz = self._tscs, self._khz
        if len(tscs) != len(vm.vcpus):
            raise self._fields.wrong(
                "tsc", f"has {len(tscs)} entries, and the machine {len(vm.vcpus)} vCPUs"
            )
        _set_frequency(vm, khz, kvm_fd)
        new = _set(vm.fd, self._clock, self._realtime)
        # Modulo 2^64, as far as kvmclock has come: both stay one time.
        ahead = (int(new.clock) - self._clock) * khz // 1_000_000
        has_offsets = all(vcpus.tsc_offset(vcpu) is not None for vcpu in vm.vcpus)
        for vcpu, tsc in zip(vm.vcpus, tscs, strict=True):
            if new.flags & lib.KVM_CLOCK_HOST_TSC and has_offsets:
                vcpus.set_tsc_offset(vcpu, tsc + ahead - int(new.host_tsc))
            else:
                vcpus.write_tsc(vcpu, (tsc + ahead) & _U64_MAX)


def _read(vm_fd: int) -> Any:
    clock = ffi.new("struct kvm_clock_data *")
    ioctls.GET_CLOCK(vm_fd, clock)
    return clock


def _set(vm_fd: int, clock: int, realtime: int) -> Any:
    """Let kvmclock go on from where it would be now; return what it says."""
    now = time.time_ns()
    given = {"clock": min(clock + max(0, now - realtime), _NS_MAX)}
    if _read(vm_fd).flags & lib.KVM_CLOCK_REALTIME:
        # Better: KVM adds what has passed, to the moment at which it looks.
        given = {"clock": clock, "realtime": realtime, "flags": lib.KVM_CLOCK_REALTIME}
    ioctls.SET_CLOCK(vm_fd, ffi.new("struct kvm_clock_data *", given))
    return _read(vm_fd)


def _set_frequency(vm: Vm, khz: int, kvm_fd: int) -> None:
    """Let the TSCs run as fast as they did; StateError where they cannot."""
    here = kvm.GET_TSC_KHZ(vm.vcpus[0].fd)
    if not khz or abs(here - khz) * 1_000_000 <= khz * _TSC_PPM:
        return
    if not kvm.extension(kvm_fd, "KVM_CAP_TSC_CONTROL"):
        raise StateError(
            f"state: the guest's TSC runs at {khz} kHz, and here at {here}; use a host with the "
            "same, or one whose KVM has KVM_CAP_TSC_CONTROL"
        )
    for vcpu in vm.vcpus:
        ioctls.SET_TSC_KHZ(vcpu.fd, khz)
