"""The reset vector's code, by its encoding (Intel SDM volume 2: MOV, OUT, HLT, JMP)."""

from __future__ import annotations

from pyvirt.vmm import layout
from pyvirt.vmm.boot import bios


def test_reset_code_writes_the_reset_register_and_stops() -> None:
    assert bios.reset_code() == bytes.fromhex("ba 0206 b0 01 ee f4 ebfd")


def test_reset_code_is_where_real_mode_jumps_and_fits() -> None:
    assert layout.RESET_VECTOR == (0xF000 << 4) + 0xFFF0
    assert layout.RESET_VECTOR + len(bios.reset_code()) <= layout.HIGH_MEMORY
