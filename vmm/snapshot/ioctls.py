"""The ioctls of KVM by which state is read and set, and the capabilities behind them.

Source: Documentation/virt/kvm/api.rst and devices/vcpu.rst.
"""

from __future__ import annotations

from .. import kvm
from ..kvm import Ioctl

# Of /dev/kvm.
GET_MSR_INDEX_LIST = Ioctl("KVM_GET_MSR_INDEX_LIST")
# Of a VM.
GET_IRQCHIP = Ioctl("KVM_GET_IRQCHIP")
SET_IRQCHIP = Ioctl("KVM_SET_IRQCHIP")
GET_PIT2 = Ioctl("KVM_GET_PIT2")
SET_PIT2 = Ioctl("KVM_SET_PIT2")
GET_CLOCK = Ioctl("KVM_GET_CLOCK")
SET_CLOCK = Ioctl("KVM_SET_CLOCK")
# Of a vCPU; those of the start are in `kvm`.
GET_SREGS2 = Ioctl("KVM_GET_SREGS2")
SET_SREGS2 = Ioctl("KVM_SET_SREGS2")
GET_FPU = Ioctl("KVM_GET_FPU")
GET_XSAVE = Ioctl("KVM_GET_XSAVE")
GET_XSAVE2 = Ioctl("KVM_GET_XSAVE2")
SET_XSAVE = Ioctl("KVM_SET_XSAVE")
GET_XCRS = Ioctl("KVM_GET_XCRS")
SET_XCRS = Ioctl("KVM_SET_XCRS")
GET_DEBUGREGS = Ioctl("KVM_GET_DEBUGREGS")
SET_DEBUGREGS = Ioctl("KVM_SET_DEBUGREGS")
GET_VCPU_EVENTS = Ioctl("KVM_GET_VCPU_EVENTS")
SET_VCPU_EVENTS = Ioctl("KVM_SET_VCPU_EVENTS")
SET_MP_STATE = Ioctl("KVM_SET_MP_STATE")
SET_TSC_KHZ = Ioctl("KVM_SET_TSC_KHZ")
GET_MSRS = Ioctl("KVM_GET_MSRS")
KVMCLOCK_CTRL = Ioctl("KVM_KVMCLOCK_CTRL")
GET_DEVICE_ATTR = Ioctl("KVM_GET_DEVICE_ATTR")
SET_DEVICE_ATTR = Ioctl("KVM_SET_DEVICE_ATTR")
HAS_DEVICE_ATTR = Ioctl("KVM_HAS_DEVICE_ATTR")

# Without these a machine cannot be saved and restored.
REQUIRED = (
    ("KVM_CAP_VCPU_EVENTS", "pending exceptions and interrupts"),
    ("KVM_CAP_DEBUGREGS", "debug registers"),
    ("KVM_CAP_PIT_STATE2", "the timer of old"),
    ("KVM_CAP_ADJUST_CLOCK", "the guest's clock"),
)
# Without these it can, less well, or where the guest does not use them.
OPTIONAL = (
    ("KVM_CAP_XSAVE", "registers beyond those of SSE are kept in a snapshot"),
    ("KVM_CAP_XCRS", "XCR0 is kept in a snapshot"),
    ("KVM_CAP_SREGS2", "the page directory pointers of PAE are kept in a snapshot"),
    ("KVM_CAP_KVMCLOCK_CTRL", "a restored guest's watchdogs are told that it stood still"),
    ("KVM_CAP_VCPU_ATTRIBUTES", "the TSCs of restored vCPUs are exactly as far apart as before"),
)


def missing(kvm_fd: int) -> list[str]:
    """Return a line for each required capability that KVM lacks."""
    return [f"{name} ({use})" for name, use in REQUIRED if not kvm.extension(kvm_fd, name)]
