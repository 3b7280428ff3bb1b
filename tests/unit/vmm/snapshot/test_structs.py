"""Structures of the kernel as fields and back, whatever is in them."""

from __future__ import annotations

import json
import random

import pytest
from pyvirt.errors import StateError
from pyvirt.native import ffi
from pyvirt.state import Fields
from pyvirt.vmm.snapshot import structs

KINDS = (
    *("kvm_regs", "kvm_sregs", "kvm_sregs2", "kvm_fpu", "kvm_xcrs", "kvm_debugregs"),
    *("kvm_vcpu_events", "kvm_pit_state2", "kvm_clock_data", "kvm_lapic_state"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_comes_back(kind: str) -> None:
    one, other = (ffi.new(f"struct {kind} *") for _ in range(2))
    noise = random.Random(kind).randbytes(ffi.sizeof(one[0]))
    ffi.buffer(one)[:] = noise
    saved = structs.save(one)
    fields = Fields(json.loads(json.dumps(saved)))
    structs.restore(other, fields)
    fields.done()
    assert structs.save(other) == saved
    assert any(bytes(ffi.buffer(other)))


def test_what_is_left_out_is_not_read() -> None:
    sregs = ffi.new("struct kvm_sregs2 *", {"cr3": 5, "flags": 7})
    saved = structs.save(sregs, ("flags", "pdptrs"))
    assert "flags" not in saved
    structs.restore(sregs, Fields(saved), ("flags", "pdptrs"))
    assert (sregs.cr3, sregs.flags) == (5, 7)


def test_what_does_not_fit_is_refused_by_name() -> None:
    good = structs.save(ffi.new("struct kvm_pit_state2 *"))
    channels = good["channels"]
    assert isinstance(channels, list)
    for change, text in (
        ({"flags": 1 << 32}, "flags: 4294967296 is not between"),
        ({"flags": -1}, "flags: -1 is not between"),
        ({"channels": channels[:2]}, "channels: has 2 entries, not 3"),
        ({"channels": [*channels[:2], channels[2] | {"gate": 256}]}, "channels.2.gate: 256"),
    ):
        with pytest.raises(StateError, match=text):
            structs.restore(ffi.new("struct kvm_pit_state2 *"), Fields(good | change))
    fpu = ffi.new("struct kvm_fpu *")
    with pytest.raises(StateError, match="fpr: has 1 bytes, not 128"):
        structs.restore(fpu, Fields(structs.save(fpu) | {"fpr": "00"}))
    registers = ffi.new("struct kvm_debugregs *")
    with pytest.raises(StateError, match="db: has 3 entries, not 4"):
        structs.restore(registers, Fields(structs.save(registers) | {"db": [0, 0, 0]}))
