"""What KVM has of a machine, out of a state: read once, and set in any number of processes."""

from __future__ import annotations

from . import chips, clock, processor, vcpu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...state import Fields
    from ..vm import Vm

_VCPUS_MAX = 254


class KvmState:
    """VCPUs, interrupt controllers and clocks, as structures of KVM's.

    First `set_vcpus`, then, when all else is restored, `set_going`.
    """

    __slots__ = ("_chips", "_clock", "_fields", "_vcpus")

    def __init__(self, fields: Fields, kvm_fd: int) -> None:
        """Read it, for the KVM of a descriptor; StateError."""
        self._fields = fields
        saved = fields.items("vcpus", _VCPUS_MAX)
        self._vcpus = [(processor.read(one), vcpu.State(one, kvm_fd)) for one in saved]
        sections = fields.section("chips"), fields.section("clock")
        self._chips, self._clock = chips.State(sections[0]), clock.State(sections[1])
        for one in (*saved, *sections):
            one.done()

    def set_vcpus(self, vm: Vm) -> list[vcpu.Restored]:
        """Set what of the vCPUs' states does not go on with the time; StateError, KvmError."""
        if len(self._vcpus) != len(vm.vcpus):
            raise self._fields.wrong("vcpus", f"{len(self._vcpus)} of {len(vm.vcpus)} are there")
        pairs = list(zip(vm.vcpus, self._vcpus, strict=True))
        for one, (entries, _) in pairs:
            # The CPUID that the guest has seen, where this host has no less.
            processor.check(entries, one.cpuid)
            one.set_cpuid(entries)
        return [state.set(one, vm.fd) for one, (_, state) in pairs]

    def set_going(self, vm: Vm, restored: list[vcpu.Restored], kvm_fd: int) -> None:
        """Set the rest, right before the guest runs; StateError, KvmError."""
        for one in restored:
            one.start_timer()
        self._chips.set(vm)
        self._clock.set(vm, kvm_fd)
        for one in restored:
            one.finish()
