"""AML constructs against the encodings that ACPI 6.4, chapter 20 and section 6.4 give."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyvirt.vmm.boot import aml


def decode_length(data: bytes) -> tuple[int, int]:
    """Return a PkgLength's value and its own size (section 20.2.4)."""
    follow = data[0] >> 6
    if follow == 0:
        return data[0] & 0x3F, 1
    assert data[0] & 0x30 == 0
    value = data[0] & 0xF
    for i in range(follow):
        value |= data[1 + i] << (4 + 8 * i)
    return value, 1 + follow


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_CRS", b"_CRS"),
        ("GED", b"GED_"),
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("^^A", b"^^A___"),
        ("\\_SB.PWRB", b"\\\x2e_SB_PWRB"),
        ("\\_SB.GED.ESEL", b"\\\x2f\x03_SB_GED_ESEL"),
    ],
)
def test_path(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


def test_while_and_load() -> None:
    assert aml.while_(aml.LOCAL1, aml.ZERO) == b"\xa2\x03\x61\x00"
    assert aml.load("TAB", aml.LOCAL0) == b"\x5b\x20TAB_\x60"


def test_regions() -> None:
    assert aml.memory_region("TAB", 0xD0000, 0x1000) == (
        b"\x5b\x80TAB_\x00\x0c\x00\x00\x0d\x00\x0b\x00\x10"
    )
    assert aml.io_region("REG", 0x620, 8) == b"\x5b\x80REG_\x01\x0b\x20\x06\x0a\x08"


@pytest.mark.parametrize("text", ["ABCDE", "_SB..PWRB", "\\_SB.TOOLONG"])
def test_path_refuses_what_no_name_can_be(text: str) -> None:
    with pytest.raises(ValueError, match="one to four"):
        aml.path(text)


@given(st.integers(0, 2**64 - 1))
@example(0)
@example(1)
@example(2**8 - 1)
@example(2**8)
@example(2**16 - 1)
@example(2**16)
@example(2**32 - 1)
@example(2**32)
def test_integer_is_exact_and_shortest(value: int) -> None:
    data = aml.integer(value)
    if data[0] in {0, 1}:
        assert (data[0], len(data)) == (value, 1)
        return
    width = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[data[0]]
    assert len(data) == 1 + width
    assert int.from_bytes(data[1:], "little") == value
    shorter = {1: 1, 2: 1, 4: 2, 8: 4}[width]
    assert value >= (2 if width == 1 else 1 << (8 * shorter))


@given(st.integers(0, 70_000))
@example(57)
@example(58)
@example(59)
@example(0xFF8)
@example(0xFF9)
def test_package_length_counts_itself_and_is_shortest(filler: int) -> None:
    data = aml.scope("ABCD", bytes(filler))
    assert data[0] == 0x10
    value, size = decode_length(data[1:])
    assert value == len(data) - 1
    assert data[1 + size : 5 + size] == b"ABCD"
    limits = {1: 1 << 6, 2: 1 << 12, 3: 1 << 20}
    assert value < limits[size]
    if size > 1:
        assert value - 1 >= limits[size - 1]


def test_package_length_over_28_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="28 bits"):
        aml.dword_field("REGN", ("WIDE", 1 << 28))


def test_eisa_id_is_the_published_one() -> None:
    assert aml.eisa_id("PNP0A03") == bytes.fromhex("0c41d00a03")
    assert aml.eisa_id("PNP0C0C") == bytes.fromhex("0c41d00c0c")


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (aml.name("_UID", aml.integer(1)), "08 5f554944 01"),
        (aml.string("LNRO0005"), "0d 4c4e524f30303035 00"),
        (aml.package(aml.integer(5), aml.ZERO), "12 05 02 0a05 00"),
        (aml.buffer(b"\xaa\xbb"), "11 05 0a02 aabb"),
        (aml.device("GED"), "5b82 05 4745445f"),
        (aml.method("_EVT", 1, serialized=True), "14 06 5f455654 09"),
        (aml.method("_EVT", 2), "14 06 5f455654 02"),
        (aml.io_region("EREG", 0x604, 4), "5b80 45524547 01 0b0406 0a04"),
        (aml.dword_field("EREG", ("ESEL", 32)), "5b81 0b 45524547 43 4553454c 20"),
        (aml.dword_field("EREG", ("WIDE", 128)), "5b81 0c 45524547 43 57494445 4008"),
        (aml.store(aml.path("ESEL"), aml.LOCAL0), "70 4553454c 60"),
        (aml.bit_and(aml.LOCAL0, aml.integer(1)), "7b 60 01 00"),
        (aml.if_(aml.LOCAL0, aml.ZERO), "a0 03 60 00"),
        (aml.notify("PWRB", 0x80), "86 50575242 0a80"),
        (aml.resource_template(), "11 05 0a02 7900"),
        (aml.io(0x3F8, 8), "47 01 f803 f803 01 08"),
        (aml.irq(4), "23 1000 01"),
        (aml.memory32_fixed(0xD000_0000, 0x1000), "86 0900 01 000000d0 00100000"),
        (aml.interrupt(5), "89 0600 03 01 05000000"),
        (aml.interrupt(16, level=True), "89 0600 01 01 10000000"),
        (aml.interrupt(16, level=True, low=True), "89 0600 05 01 10000000"),
        (aml.interrupt(16, low=True), "89 0600 07 01 10000000"),
    ],
)
def test_construct(data: bytes, encoded: str) -> None:
    assert data == bytes.fromhex(encoded)
