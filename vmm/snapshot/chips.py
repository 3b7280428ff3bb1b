"""The interrupt controllers and the timer of a VM, which KVM has in the kernel.

Source: Documentation/virt/kvm/api.rst; linux/kvm.h for the layouts.
"""

from __future__ import annotations

import struct
import time

from ...native import ffi, lib
from .. import layout
from . import ioctls, structs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from ..vm import Vm

_PIC = (
    *("last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll"),
    *("special_mask", "init_state", "auto_eoi", "rotate_on_auto_eoi"),
    *("special_fully_nested_mode", "init4", "elcr", "elcr_mask"),
)
_PICS = {"pic_master": lib.KVM_IRQCHIP_PIC_MASTER, "pic_slave": lib.KVM_IRQCHIP_PIC_SLAVE}
_CHIP_OFFSET = 8  # of what follows the number of a chip
_IOAPIC = struct.Struct(f"<Q4I{layout.IOAPIC_PINS}Q")
_U8_MAX, _U32_MAX, _U64_MAX = 0xFF, (1 << 32) - 1, (1 << 64) - 1


def save(vm: Vm, *, pit: bool) -> dict[str, object]:
    """Return the state of the chips of a machine that stands; KvmError."""
    state: dict[str, object] = {}
    for name, number in _PICS.items():
        values = _read(vm.fd, number)[: len(_PIC)]
        state[name] = dict(zip(_PIC, values, strict=True))
    base, select, number, irr, _, *entries = _IOAPIC.unpack_from(
        _read(vm.fd, lib.KVM_IRQCHIP_IOAPIC)
    )
    state["ioapic"] = {
        "base_address": base,
        "ioregsel": select,
        "id": number,
        "irr": irr,
        "redirection": list(entries),
    }
    state["pit"] = _save_pit(vm.fd) if pit else None
    return state


class State:
    """What `save` returned, read."""

    __slots__ = ("_chips", "_pit")

    def __init__(self, fields: Fields) -> None:
        """Read it; StateError."""
        self._chips = {number: _pic(fields.section(name)) for name, number in _PICS.items()}
        self._chips[lib.KVM_IRQCHIP_IOAPIC] = _ioapic(fields.section("ioapic"))
        pit = fields.optional("pit")
        self._pit: Any = None
        if pit is not None:
            self._pit = ffi.new("struct kvm_pit_state2 *")
            structs.restore(self._pit, pit)

    def set(self, vm: Vm) -> None:
        """Set it; the local APICs are restored. KvmError."""
        for number, values in self._chips.items():
            _write(vm.fd, number, values)
        if self._pit is not None:
            pit = ffi.new("struct kvm_pit_state2 *", self._pit[0])
            _shift_loads(pit, lambda age: max(0, time.monotonic_ns() - age))
            ioctls.SET_PIT2(vm.fd, pit)


def _pic(fields: Fields) -> bytes:
    return bytes([fields.integer(one, 0, _U8_MAX) for one in _PIC])


def _ioapic(fields: Fields) -> bytes:
    head = [fields.integer("base_address", 0, _U64_MAX)]
    head += [fields.integer(name, 0, _U32_MAX) for name in ("ioregsel", "id", "irr")]
    entries = fields.integers("redirection", 0, _U64_MAX, most=layout.IOAPIC_PINS)
    if len(entries) != layout.IOAPIC_PINS:
        raise fields.wrong("redirection", f"has {len(entries)} entries, not {layout.IOAPIC_PINS}")
    return _IOAPIC.pack(*head, 0, *entries)


def _read(vm_fd: int, number: int) -> bytes:
    chip = ffi.new("struct kvm_irqchip *", {"chip_id": number})
    ioctls.GET_IRQCHIP(vm_fd, chip)
    return bytes(ffi.buffer(chip)[_CHIP_OFFSET:])


def _write(vm_fd: int, number: int, values: bytes) -> None:
    chip = ffi.new("struct kvm_irqchip *", {"chip_id": number})
    ffi.buffer(chip)[_CHIP_OFFSET : _CHIP_OFFSET + len(values)] = values
    ioctls.SET_IRQCHIP(vm_fd, chip)


def _save_pit(vm_fd: int) -> dict[str, object]:
    pit = ffi.new("struct kvm_pit_state2 *")
    ioctls.GET_PIT2(vm_fd, pit)
    # When a counter was loaded is in the host's time, which means nothing elsewhere.
    _shift_loads(pit, lambda load: time.monotonic_ns() - load)
    return structs.save(pit)


def _shift_loads(pit: Any, change: Any) -> None:
    for channel in pit.channels:
        if channel.count_load_time:
            channel.count_load_time = change(channel.count_load_time)
