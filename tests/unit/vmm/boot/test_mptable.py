"""The MP table, read as the MultiProcessor Specification 1.4 describes it."""

from __future__ import annotations

import struct

import pytest
from pyvirt.vmm import layout
from pyvirt.vmm.boot import mptable

SIZES = (20, 8, 8, 8, 8)  # of an entry, by type


def parse(image: bytes, address: int) -> tuple[bytes, list[bytes]]:
    """Check the floating pointer and the table; return its header and its entries."""
    pointer = image[:16]
    assert sum(pointer) & 0xFF == 0
    signature, physical, paragraphs, revision = struct.unpack("<4sIBB", pointer[:10])
    assert (signature, paragraphs, revision) == (b"_MP_", 1, 4)
    assert pointer[11] == 0, "no default configuration: there is a table"
    assert pointer[12] & 0x80 == 0, "virtual wire mode"
    table = image[physical - address :]
    length, revision = struct.unpack("<HB", table[4:7])
    assert (table[:4], length, revision) == (b"PCMP", len(table), 4)
    assert sum(table) & 0xFF == 0
    entries = []
    rest = table[44:]
    while rest:
        size = SIZES[rest[0]]
        assert len(rest) >= size
        entries.append(rest[:size])
        rest = rest[size:]
    return table[:44], entries


@pytest.mark.parametrize("vcpus", range(1, layout.MAX_VCPUS + 1))
def test_table_for_every_processor_count(vcpus: int) -> None:
    image = mptable.build(range(vcpus))
    assert layout.MPTABLE + len(image) <= layout.RESET_VECTOR
    header, entries = parse(image, layout.MPTABLE)
    assert struct.unpack("<HI", header[34:40]) == (len(entries), layout.LAPIC)
    kinds = [entry[0] for entry in entries]
    assert kinds == sorted(kinds), "entries come in the order of their type"

    processors = [entry for entry in entries if entry[0] == 0]
    assert [entry[1] for entry in processors] == list(range(vcpus))
    assert [entry[3] for entry in processors] == [3] + [1] * (vcpus - 1), "CPU 0 boots"
    assert {entry[2] for entry in processors} == {0x14}

    (ioapic,) = (entry for entry in entries if entry[0] == 2)
    assert ioapic[1] == vcpus
    assert ioapic[1] not in {entry[1] for entry in processors} | {0xFF}
    assert struct.unpack("<BI", ioapic[3:8]) == (1, layout.IOAPIC)

    assert [entry for entry in entries if entry[0] == 1] == [b"\x01\x00ISA   "]
    lines = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == 3]
    assert lines == [(3, 0, 0 if line < 16 else 0b0101, 0, line, vcpus, line) for line in range(24)]
    local = [struct.unpack("<BBHBBBB", entry) for entry in entries if entry[0] == 4]
    assert local == [(4, 3, 0, 0, 0, 0, 0), (4, 1, 0, 0, 0, 0xFF, 1)]


def test_pointer_follows_the_address() -> None:
    image = mptable.build(range(3), address=0xF_8000, lines=16)
    _, entries = parse(image, 0xF_8000)
    assert sum(entry[0] == 3 for entry in entries) == 16
    assert struct.unpack("<I", image[4:8]) == (0xF_8010,)


@pytest.mark.parametrize("vcpus", [0, 255, 1000])
def test_processor_count_out_of_range(vcpus: int) -> None:
    with pytest.raises(ValueError, match="0 to 253"):
        mptable.build(range(vcpus))


def test_ids_with_gaps() -> None:
    _, entries = parse(mptable.build([0, 1, 4, 5]), layout.MPTABLE)
    assert [entry[1] for entry in entries if entry[0] == 0] == [0, 1, 4, 5]
    assert [entry[1] for entry in entries if entry[0] == 2] == [6], "the IOAPIC has the next"
