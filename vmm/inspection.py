"""What can be told of a machine from outside: registers, memory, counters of all that counts.

Off the start-up path; imported where somebody asks.
"""

from __future__ import annotations

from ..devices.virtio.python import PythonDevice
from ..native import ffi, lib
from . import dump, kvm, paging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .machine import Machine
    from .memory import GuestMemory
    from .vcpu import Vcpu

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
_EXITS = ("io", "hlt", "mmio", "shutdown", "intr", "internal_error", "system_event")
_SPECIAL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


def registers(machine: Machine, vcpu: int) -> dict[str, int]:
    """Return the registers of a vCPU by their names, segments by their selectors.

    The machine stands meanwhile. IndexError: there is no such vCPU; PyvirtError: it has ended.
    """

    def read() -> dict[str, int]:
        return _read(machine.vcpus[vcpu])

    values: dict[str, int] = machine.standing(read)
    return values


def all_registers(machine: Machine) -> list[dict[str, int]]:
    """Return the registers of every vCPU at one moment; as `registers`."""

    def read() -> list[dict[str, int]]:
        return [_read(vcpu) for vcpu in machine.vcpus]

    values: list[dict[str, int]] = machine.standing(read)
    return values


def read_memory(machine: Machine, address: int, length: int, vcpu: int | None = None) -> bytes:
    """Return guest memory by guest-physical address, or as vCPU `vcpu` sees it.

    The machine stands meanwhile. IndexError outside of RAM, or where nothing is mapped.
    """

    def read() -> bytes:
        memory = _memory(machine)
        return b"".join(memory.read(*one) for one in _pieces(machine, address, length, vcpu))

    data: bytes = machine.standing(read)
    return data


def save_memory(
    machine: Machine, path: str, address: int, length: int, vcpu: int | None = None
) -> None:
    """Write what `read_memory` would return to a file; BackendError as well."""

    def save() -> None:
        dump.save(path, _memory(machine), _pieces(machine, address, length, vcpu))

    machine.standing(save)


def save_core(machine: Machine, path: str) -> None:
    """Write an ELF core of the machine (see dump.py); it stands meanwhile. BackendError."""

    def save() -> None:
        dump.save_core(path, _memory(machine), [_read(vcpu) for vcpu in machine.vcpus])

    machine.standing(save)


def _memory(machine: Machine) -> GuestMemory:
    assert machine.memory is not None
    return machine.memory


def _pieces(
    machine: Machine, address: int, length: int, vcpu: int | None
) -> Iterable[tuple[int, int]]:
    memory = _memory(machine)
    if length > memory.size:
        raise IndexError(f"{length} bytes are more than the guest's memory has")
    if vcpu is None:
        return [(address, length)]
    return paging.pieces(_read(machine.vcpus[vcpu]), memory.read, address, length)


def _read(vcpu: Vcpu) -> dict[str, int]:
    regs, sregs = ffi.new("struct kvm_regs *"), ffi.new("struct kvm_sregs *")
    kvm.GET_REGS(vcpu.fd, regs)
    kvm.GET_SREGS(vcpu.fd, sregs)
    values = {name: int(getattr(regs, name)) for name in _GENERAL}
    values |= {name: int(getattr(sregs, name)) for name in _SPECIAL}
    values |= {name: int(getattr(sregs, name).selector) for name in _SEGMENTS}
    values |= {f"{name}_base": int(getattr(sregs, name).base) for name in _SEGMENTS}
    values |= {f"{name}_base": int(getattr(sregs, name).base) for name in ("gdt", "idt")}
    return values


def _numbers(structure: Any) -> dict[str, int]:
    if isinstance(structure, dict):
        return structure
    fields = ffi.typeof(structure[0]).fields
    return {
        name: int(getattr(structure, name)) for name, field in fields if field.type.kind != "array"
    }


def counters(machine: Machine) -> list[tuple[str, str, dict[str, int]]]:
    """Return (whose, its name, counters by name) of machine, vCPUs and devices, while they run on.

    Whose is "vm", "vcpu", named by its index, or "device". What a vCPU counts begins anew with a
    reset, what a device's backend counts with the backend. The machine has the sums over its
    vCPUs, and `memory`, the bytes of its RAM.
    """
    machine_wide = {"memory": machine.config.memory}
    found: list[tuple[str, str, dict[str, int]]] = [("vm", "", machine_wide)]
    reasons = {getattr(lib, f"KVM_EXIT_{name.upper()}"): name for name in _EXITS}
    stats = ffi.new("struct pv_vcpu_stats *")
    for vcpu in machine.vcpus:
        lib.pv_vcpu_read_stats(vcpu.handle, stats)
        exits = {
            f"exits-{reasons.get(reason, reason)}": int(count)
            for reason, count in enumerate(stats.exits)
            if count
        }
        values = {**_numbers(stats), **exits}
        found.append(("vcpu", str(vcpu.index), values))
        for name, value in values.items():
            if name != "first_run_ns":
                machine_wide[name] = machine_wide.get(name, 0) + value
    for transport in machine.slots.transports if machine.slots else ():
        values = {
            "register-reads": transport.reads,
            "register-writes": transport.writes,
            "raised-interrupts": transport.interrupts(),
            "given-up": int(transport.is_given_up),
        }
        read = getattr(transport.device, "stats", None)
        # What a user's class calls so is something else.
        if read is not None and not isinstance(transport.device, PythonDevice):
            values |= _numbers(read())
        found.append(("device", transport.device.name, values))
    return found
