"""What of a machine takes the kernel longest: KVM opened, guest memory mapped, a VM made of them.

What KVM waits in (for readers of its tables, by synchronize_srcu) is on a thread in C. Whoever is
to have the machine goes on meanwhile, most of all with the imports that it takes; so this module
has few of its own.
"""

from __future__ import annotations

import os

from ..errors import ConfigError, KvmError, PyvirtError
from ..native import check, ffi, lib
from . import kvm, layout
from .memory import GuestMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .config import MachineConfig
    from .log import Log


def check_kvm(kvm_fd: int, vcpus: int) -> None:
    """Refuse a KVM that cannot run a machine of `vcpus`: PyvirtError, ConfigError."""
    lacking = kvm.missing(kvm_fd)
    if lacking:
        raise PyvirtError(f"this KVM lacks {', '.join(lacking)}; run pyvirt doctor")
    limit = kvm.extension(kvm_fd, "KVM_CAP_MAX_VCPUS") or 4
    if vcpus > limit:
        raise ConfigError(f"-smp {vcpus}: this KVM runs at most {limit}; lower it")


class Making:
    """A VM with interrupt controllers and memory that is being made; owns it until `take`."""

    __slots__ = ("_fd", "_handle", "_steps")

    def __init__(self, kvm_fd: int, memory: GuestMemory, *, pit: bool) -> None:
        """Begin; the memory is there until `take` or `close`. KvmError, BackendError."""
        steps: list[tuple[kvm.Ioctl, Any]] = [(kvm.CREATE_IRQCHIP, 0)]
        if pit:
            config = ffi.new("struct kvm_pit_config *", {"flags": lib.KVM_PIT_SPEAKER_DUMMY})
            steps.append((kvm.CREATE_PIT2, config))
        steps += [(kvm.SET_USER_MEMORY_REGION, region) for region in memory.memslots()]
        self._steps = steps  # which have the arguments
        self._handle: Any = None
        self._fd = kvm.CREATE_VM(kvm_fd)
        try:
            kvm.SET_IDENTITY_MAP_ADDR(self._fd, ffi.new("uint64_t *", layout.KVM_IDENTITY_MAP))
            kvm.SET_TSS_ADDR(self._fd, layout.KVM_TSS)
            calls = [(ioctl.number, int(ffi.cast("uintptr_t", word))) for ioctl, word in steps]
            words = ffi.new("struct pv_call[]", calls)
            out = ffi.new("struct pv_calls **")
            check(lib.pv_calls_begin(self._fd, words, len(calls), out), "VM")
            self._handle = ffi.gc(out[0], lib.pv_calls_free)
        except BaseException:
            self.close()
            raise

    def take(self) -> int:
        """Wait until it is made, and return its descriptor; KvmError."""
        failed = ffi.new("uint32_t *")
        result: int = lib.pv_calls_wait(self._handle, failed)
        if result < 0:
            self.close()
            raise KvmError(self._steps[failed[0]][0].name, -result)
        fd, self._fd = self._fd, -1
        self.close()
        return fd

    def close(self) -> None:
        """Wait until it is made, and give it back."""
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Groundwork:
    """All of it; owned until it is taken by a Core. A context manager that closes what is not."""

    __slots__ = ("kvm_fd", "making", "memory")

    def __init__(self, config: MachineConfig, log: Log, device: str = kvm.DEVICE) -> None:
        """Begin; ConfigError, PyvirtError, and nothing stays."""
        self.kvm_fd = kvm.open_device(device)
        self.memory: GuestMemory | None = None
        self.making: Making | None = None
        try:
            check_kvm(self.kvm_fd, config.vcpus)
            self.memory = GuestMemory(
                config.memory,
                shared=config.share,
                dumped=config.dump_guest_core,
                memdevs=config.memdevs,
                content=config.content,
            )
            self.memory.preallocate(config.memdevs, log.notice, everything=config.prealloc)
            self.making = Making(self.kvm_fd, self.memory, pit=config.pit)
        except BaseException:
            self.close()
            raise

    def take(self) -> tuple[int, GuestMemory, Making]:
        """Return the descriptor of /dev/kvm, the memory and the VM; the caller owns them then."""
        assert self.memory is not None
        assert self.making is not None
        taken = (self.kvm_fd, self.memory, self.making)
        self.kvm_fd, self.memory, self.making = -1, None, None
        return taken

    def __enter__(self) -> Groundwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back what is not taken."""
        if self.making is not None:
            self.making.close()
            self.making = None
        if self.kvm_fd >= 0:
            os.close(self.kvm_fd)
            self.kvm_fd = -1
        if self.memory is not None:
            self.memory.close()
            self.memory = None
