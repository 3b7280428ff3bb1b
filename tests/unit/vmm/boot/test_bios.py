"""The BIOS's code, by its encoding (Intel SDM volume 2), and where real mode finds it."""

from __future__ import annotations

from struct import unpack

from pyvirt.vmm import layout
from pyvirt.vmm.boot import bios


def test_reset_code_writes_the_reset_register_and_stops() -> None:
    assert bios.reset_code() == bytes.fromhex("ba 0206 b0 01 ee f4 ebfd")


def test_reset_code_is_where_real_mode_jumps_and_fits() -> None:
    assert layout.RESET_VECTOR == (0xF000 << 4) + 0xFFF0
    assert layout.RESET_VECTOR + len(bios.reset_code()) <= layout.HIGH_MEMORY


def test_calls_come_back_with_the_carry_flag_and_all_registers() -> None:
    assert bios.calls() == bytes.fromhex("55 89e5 804e0601 5d cf")
    assert layout.MPTABLE + 0x2000 < layout.BIOS_CALLS
    assert layout.BIOS_CALLS + len(bios.calls()) <= layout.RESET_VECTOR


def test_every_vector_leads_to_code() -> None:
    words = iter(unpack("<512H", bios.low_memory()[:1024]))
    places = [offset + (segment << 4) for offset, segment in zip(words, words, strict=True)]
    code = bios.calls()
    for number, place in enumerate(places):
        start = place - layout.BIOS_CALLS
        is_call = not (number < 0x10 or 0x70 <= number < 0x78)
        assert code[start:] == (code if is_call else b"\xcf"), hex(number)


def test_bios_data_says_where_base_memory_ends() -> None:
    area = bios.low_memory()[0x400:]
    (segment,), (kib,) = unpack("<H", area[0x0E:0x10]), unpack("<H", area[0x13:0x15])
    assert (segment << 4, kib << 10) == (layout.EBDA, layout.EBDA)
    assert 0x400 + len(area) <= layout.GDT
