"""KVM's part of a machine: the VM, its interrupt controllers and lines, and its vCPUs.

A reset makes another around the same memory, devices and lines, so that nothing of the guest
before it stays: no register, no pending interrupt, no page that KVM keeps a clock in.
"""

from __future__ import annotations

import os

from ..native import ffi
from . import cpuid, kvm
from .vcpu import Vcpu, supported_cpuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .bus import Bus
    from .config import MachineConfig
    from .groundwork import Making


class InterruptLine:
    """One GSI: an eventfd that KVM's interrupt controllers are wired to (KVM_IRQFD); owns it.

    A write of 1 to the descriptor, from any thread and any language, is one edge.
    """

    __slots__ = ("fd", "gsi")

    def __init__(self, vm_fd: int, gsi: int) -> None:
        self.gsi = gsi
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.connect(vm_fd)
        except BaseException:
            os.close(self.fd)
            raise

    def connect(self, vm_fd: int) -> None:
        """Wire the line to a VM; one that it was wired to before is closed."""
        kvm.IRQFD(vm_fd, ffi.new("struct kvm_irqfd *", {"fd": self.fd, "gsi": self.gsi}))

    def clear(self) -> None:
        """Forget the edges that no VM has taken."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the eventfd; KVM lets go of it by itself."""
        os.close(self.fd)


class Vm:
    """One VM; owns its descriptor and vCPUs."""

    __slots__ = ("fd", "vcpus")

    def __init__(self, kvm_fd: int, making: Making, config: MachineConfig, bus: Bus) -> None:
        """Take the VM that is being made, and give it vCPUs at reset.

        KvmError, or ConfigError for a processor that this KVM does not have; nothing stays behind.
        """
        self.vcpus: list[Vcpu] = []
        self.fd = making.take()
        try:
            self._create_vcpus(kvm_fd, config, bus)
        except BaseException:
            self.close()
            raise

    def _create_vcpus(self, kvm_fd: int, config: MachineConfig, bus: Bus) -> None:
        supported: Sequence[cpuid.Entry] = supported_cpuid(kvm_fd)
        if config.cpu is not None:
            supported = config.cpu.with_vendor(supported)
        deadline = kvm.extension(kvm_fd, "KVM_CAP_TSC_DEADLINE_TIMER") != 0
        run_size = kvm.GET_VCPU_MMAP_SIZE(kvm_fd)
        topology = config.topology
        for index, apic_id in enumerate(topology.apic_ids):
            vcpu = Vcpu(self.fd, index, run_size, bus, apic_id=apic_id)
            self.vcpus.append(vcpu)
            tsc_khz = kvm.GET_TSC_KHZ(vcpu.fd)
            entries = cpuid.for_vcpu(
                supported, vcpu=index, topology=topology, tsc_khz=tsc_khz, deadline=deadline
            )
            if config.cpu is not None:
                entries = config.cpu.with_features(entries)
            vcpu.set_cpuid(entries)
            vcpu.reset()

    def close(self) -> None:
        """Give everything back; no vCPU runs any more."""
        while self.vcpus:
            self.vcpus.pop().close()
        os.close(self.fd)
