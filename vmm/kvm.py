"""KVM's ioctls, declared once.

An `Ioctl` is called with a descriptor and its argument (an integer, or a cffi pointer to the
structure that linux/kvm.h names) and returns KVM's answer or raises KvmError. Any thread may
call one; the GIL is released for the time of the call. Source: Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import os

from ..errors import KvmError, PyvirtError
from ..native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

API_VERSION = 12
DEVICE = "/dev/kvm"


class Ioctl:
    """One ioctl of KVM: its name in linux/kvm.h, from which the compiler knows the number."""

    __slots__ = ("name", "number")

    def __init__(self, name: str) -> None:
        self.name = name
        self.number: int = getattr(lib, name)

    def __call__(self, fd: int, argument: Any = 0) -> int:
        """Return KVM's answer (>= 0); raise KvmError with its errno."""
        if isinstance(argument, int):
            argument = ffi.cast("void *", argument)
        result: int = lib.pv_ioctl(fd, self.number, argument)
        if result < 0:
            raise KvmError(self.name, -result)
        return result


# Of /dev/kvm.
GET_API_VERSION = Ioctl("KVM_GET_API_VERSION")
CREATE_VM = Ioctl("KVM_CREATE_VM")
CHECK_EXTENSION = Ioctl("KVM_CHECK_EXTENSION")
GET_VCPU_MMAP_SIZE = Ioctl("KVM_GET_VCPU_MMAP_SIZE")
GET_SUPPORTED_CPUID = Ioctl("KVM_GET_SUPPORTED_CPUID")
# Of a VM.
CREATE_VCPU = Ioctl("KVM_CREATE_VCPU")
SET_USER_MEMORY_REGION = Ioctl("KVM_SET_USER_MEMORY_REGION")
SET_TSS_ADDR = Ioctl("KVM_SET_TSS_ADDR")
SET_IDENTITY_MAP_ADDR = Ioctl("KVM_SET_IDENTITY_MAP_ADDR")
CREATE_IRQCHIP = Ioctl("KVM_CREATE_IRQCHIP")
CREATE_PIT2 = Ioctl("KVM_CREATE_PIT2")
IRQFD = Ioctl("KVM_IRQFD")
IRQ_LINE = Ioctl("KVM_IRQ_LINE")
IOEVENTFD = Ioctl("KVM_IOEVENTFD")
# Of a vCPU. KVM_RUN is not here: only the loop in native/vcpu/vcpu.c calls it.
SET_CPUID2 = Ioctl("KVM_SET_CPUID2")
GET_REGS = Ioctl("KVM_GET_REGS")
SET_REGS = Ioctl("KVM_SET_REGS")
GET_SREGS = Ioctl("KVM_GET_SREGS")
SET_SREGS = Ioctl("KVM_SET_SREGS")
SET_FPU = Ioctl("KVM_SET_FPU")
SET_MSRS = Ioctl("KVM_SET_MSRS")
GET_LAPIC = Ioctl("KVM_GET_LAPIC")
SET_LAPIC = Ioctl("KVM_SET_LAPIC")
GET_MP_STATE = Ioctl("KVM_GET_MP_STATE")
GET_TSC_KHZ = Ioctl("KVM_GET_TSC_KHZ")
NMI = Ioctl("KVM_NMI")

# Capabilities without which pyvirt cannot run a guest, by what each is needed for.
REQUIRED = (
    ("KVM_CAP_IRQCHIP", "the in-kernel interrupt controllers"),
    ("KVM_CAP_USER_MEMORY", "guest memory"),
    ("KVM_CAP_SET_TSS_ADDR", "real mode on Intel processors"),
    ("KVM_CAP_EXT_CPUID", "CPUID"),
    ("KVM_CAP_MP_STATE", "more than one vCPU"),
    ("KVM_CAP_IRQFD", "interrupts from threads outside Python"),
    ("KVM_CAP_IOEVENTFD", "queue notifications without an exit"),
    ("KVM_CAP_PIT2", "the timer that calibrates old kernels"),
    ("KVM_CAP_IMMEDIATE_EXIT", "pausing a vCPU without losing an exit"),
)


def extension(fd: int, name: str) -> int:
    """Return what KVM (or a VM) answers for the capability `name`: 0 where it lacks it."""
    return CHECK_EXTENSION(fd, getattr(lib, name))


def missing(fd: int) -> list[str]:
    """Return a line for each required capability that KVM lacks."""
    return [f"{name} ({use})" for name, use in REQUIRED if not extension(fd, name)]


def open_device(path: str = DEVICE) -> int:
    """Open KVM and check its API; return the descriptor, which the caller owns."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise PyvirtError(
            f"{path}: not there; load kvm_intel or kvm_amd, or use -accel lab"
        ) from None
    except PermissionError:
        raise PyvirtError(
            f"{path}: no permission; add yourself to the group kvm, or use -accel lab"
        ) from None
    except OSError as error:
        raise PyvirtError(f"{path}: {error.strerror}; run pyvirt doctor") from None
    try:
        version = GET_API_VERSION(fd)
        if version != API_VERSION:
            raise PyvirtError(f"{path}: KVM API {version}, pyvirt speaks {API_VERSION}")
    except PyvirtError:
        os.close(fd)
        raise
    return fd
