"""Can this KVM run a stock kernel? A guest of ten instructions tells.

Some hosts offer a KVM that emulates a guest's kernel mode and cannot deliver an exception in
64-bit mode; a stock kernel dies there without a word. The probe takes one: it executes int3,
its handler writes 1 to the debug-exit port and returns, and the code behind writes 2.
"""

from __future__ import annotations

import os
import threading
from struct import pack

from ..errors import KvmError
from ..native import ffi, lib
from . import bus, kvm, layout, report
from .boot import entry
from .boot.kernel import LINUX64, Kernel
from .groundwork import Making
from .memory import GuestMemory
from .vcpu import Vcpu

_MEMORY = 2 << 20
_SECONDS = 2.0
_CODE, _HANDLER, _IDT = 0x10_0000, 0x10_0100, 0x10_1000
_PROGRAM = bytes.fromhex("cc b002 e6f4 f4")  # int3; mov al, 2; out 0xf4, al; hlt
_INT3 = bytes.fromhex("b001 e6f4 48cf")  # mov al, 1; out 0xf4, al; iretq
_CODE_SELECTOR, _INTERRUPT_GATE = 0x10, 0x8E00
_EXPECTED = [1, 2]


class _Recorder:
    """The port that the probe writes to; the last value ends it."""

    __slots__ = ("values", "vcpu")

    def __init__(self) -> None:
        self.values: list[int] = []
        self.vcpu: Vcpu | None = None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)
        if self.vcpu is not None and value == _EXPECTED[-1]:
            self.vcpu.kick()


def _prepare(memory: GuestMemory, vcpu: Vcpu) -> None:
    memory.write(_CODE, _PROGRAM)
    memory.write(_HANDLER, _INT3)
    gate = pack("<HHHHII", _HANDLER & 0xFFFF, _CODE_SELECTOR, _INTERRUPT_GATE, _HANDLER >> 16, 0, 0)
    memory.write(_IDT + 3 * len(gate), gate)
    entry.prepare(memory, vcpu.fd, Kernel(LINUX64, _CODE, _MEMORY))
    sregs = ffi.new("struct kvm_sregs *")
    kvm.GET_SREGS(vcpu.fd, sregs)
    sregs.idt.base, sregs.idt.limit = _IDT, 4 * len(gate) - 1
    kvm.SET_SREGS(vcpu.fd, sregs)


def _run(vcpu: Vcpu, recorder: _Recorder) -> str:
    """Run the prepared guest; return "" when it did what it should, else what it did."""
    timer = threading.Timer(_SECONDS, vcpu.kick)
    timer.start()
    try:
        reason = vcpu.run()
    except KvmError as error:
        return str(error)
    finally:
        timer.cancel()
        timer.join()
    if recorder.values == _EXPECTED:
        return ""
    if reason == lib.KVM_EXIT_INTR:
        return "the probe guest hangs in its first exception"
    return report.describe_exit(vcpu, reason)


def exception_failure(kvm_fd: int) -> str:
    """Return "" when KVM delivers an exception in 64-bit mode, else one line on what it does.

    Takes a few milliseconds, at most 2 s. KvmError when not even a VM can be made.
    """
    memory = GuestMemory(_MEMORY)
    vm_fd, vcpu = -1, None
    try:
        vm_fd = Making(kvm_fd, memory, pit=False).take()
        recorder = _Recorder()
        ports = bus.Bus()
        ports.add(bus.PIO, layout.DEBUG_EXIT, 1, recorder)
        run_size = kvm.GET_VCPU_MMAP_SIZE(kvm_fd)
        vcpu = recorder.vcpu = Vcpu(vm_fd, 0, run_size, ports)
        _prepare(memory, vcpu)
        return _run(vcpu, recorder)
    finally:
        if vcpu is not None:
            vcpu.close()
        if vm_fd >= 0:
            os.close(vm_fd)
        memory.close()
