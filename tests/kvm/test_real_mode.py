"""What is left of a PC in real mode: the BIOS's data and calls, and the timer of old."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import unpack

import pytest
from pyvirt.vmm import layout
from pyvirt.vmm.config import MachineConfig

from .conftest import Make
from .support import Guest
from .test_access import carry_out

ANSWERS = 0x600
CARRY = 1
SPEAKER_AND_GATE, ABSENT = 0x61, 0xFF


def test_base_memory_and_calls(machine: Make) -> None:
    guest = machine("real_mode")
    assert guest.run() == ("debug-exit", 0)
    answers = unpack("<6H", guest.read(ANSWERS, 12))
    ebda, kib, after_call, ax, bx, after_timer = answers
    assert (ebda << 4, kib << 10) == (layout.EBDA, layout.EBDA)
    assert (after_call & CARRY, ax, bx) == (CARRY, 0xE820, 0x1234)
    assert after_timer & CARRY == 0


@pytest.mark.parametrize("pit", [True, False])
def test_the_timer_of_old(pit: bool, kernel: Callable[[str], Path], tmp_path: Path) -> None:
    guest = Guest(MachineConfig(str(kernel("script")), memory=128 << 20, pit=pit), tmp_path / "log")
    try:
        guest.load()
        (value,) = carry_out(guest, ("in1", SPEAKER_AND_GATE, 0))
    finally:
        guest.close()
    assert (value == ABSENT) is not pit
