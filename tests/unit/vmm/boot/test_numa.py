"""SRAT and SLIT, read back field by field and by ACPICA's tools."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm import layout
from pyvirt.vmm.boot import acpi, numa
from pyvirt.vmm.numa import Node, Numa

from .test_acpi import SLOTS, walk

MIB = 1 << 20
GIB = 1 << 30


def entries(table: bytes) -> list[bytes]:
    """Return the structures of an SRAT."""
    assert table[:4] == b"SRAT"
    assert table[8] == 3
    assert table[36:48] == struct.pack("<IQ", 1, 0)
    found, rest = [], table[48:]
    while rest:
        found.append(rest[: rest[1]])
        rest = rest[rest[1] :]
    return found


def processors(table: bytes) -> list[tuple[int, int]]:
    """Return (domain, APIC id) of each."""
    found = []
    for entry in entries(table):
        if entry[0] == 0:
            _, size, low, apic_id, flags, eid, high, clock = struct.unpack("<BBBBIB3sI", entry)
            assert (size, flags, eid, clock) == (16, 1, 0, 0)
            found.append((low | int.from_bytes(high, "little") << 8, apic_id))
        elif entry[0] == 2:
            _, size, domain, apic_id, flags, clock = struct.unpack("<BBxxIIII4x", entry)
            assert (size, flags, clock) == (24, 1, 0)
            found.append((domain, apic_id))
    return found


def memory(table: bytes) -> list[tuple[int, int, int]]:
    """Return (domain, base, length) of each."""
    found = []
    for entry in entries(table):
        if entry[0] == 1:
            _, size, domain, base, length, flags = struct.unpack("<BBI2xQQ4xI8x", entry)
            assert (size, flags) == (40, 1)
            found.append((domain, base, length))
    return found


def two(low: int, high: int) -> Numa:
    return Numa([Node((0, 2), low), Node((1, 3), high)])


def test_each_node_has_its_processors_and_memory() -> None:
    (srat,) = numa.tables(two(128 * MIB, 64 * MIB), (0, 1, 4, 5))
    assert processors(srat) == [(0, 0), (0, 4), (1, 1), (1, 5)]
    assert memory(srat) == [
        (0, 0, layout.EBDA),
        (0, MIB, 127 * MIB),
        (1, 128 * MIB, 64 * MIB),
    ]


def test_a_node_on_both_sides_of_the_gap() -> None:
    (srat,) = numa.tables(two(2 * GIB, 2 * GIB), range(4))
    assert memory(srat)[1:] == [
        (0, MIB, 2 * GIB - MIB),
        (1, 2 * GIB, GIB),
        (1, layout.GAP_END, GIB),
    ]
    (srat,) = numa.tables(two(3 * GIB, 2 * GIB), range(4))
    assert memory(srat)[1:] == [(0, MIB, 3 * GIB - MIB), (1, layout.GAP_END, 2 * GIB)]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=128).filter(lambda one: sum(one) > 1))
def test_memory_is_what_the_e820_map_has(sizes: list[int]) -> None:
    nodes = Numa([Node((), size * MIB) for size in sizes])
    (srat,) = numa.tables(nodes, ())
    joined: list[tuple[int, int]] = []
    for _, base, length in sorted(memory(srat), key=lambda one: one[1]):
        if joined and sum(joined[-1]) == base:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((base, length))
    ram = [entry[:2] for entry in layout.e820(sum(sizes) * MIB) if entry[2] == layout.E820_RAM]
    assert joined == ram
    hole = layout.HIGH_MEMORY - layout.EBDA
    for number, size in enumerate(sizes):
        has = sum(length for domain, _, length in memory(srat) if domain == number)
        assert size * MIB - has in {0, hole}


def test_wide_apic_ids_and_the_largest_domain() -> None:
    nodes = Numa([*(Node((), MIB) for _ in range(127)), Node((0, 1), 2 * MIB)])
    (srat,) = numa.tables(nodes, (254, 300))
    assert processors(srat) == [(127, 254), (127, 300)]


def test_distances() -> None:
    nodes = Numa([Node((0,), 256 * MIB), Node((), 0)], ((10, 21), (33, 10)))
    _, slit = numa.tables(nodes, (0,))
    assert (slit[:4], slit[8]) == (b"SLIT", 1)
    assert slit[36:] == struct.pack("<Q4B", 2, 10, 21, 33, 10)


def test_the_largest_tables_fit() -> None:
    """The most nodes, vCPUs and devices there can be."""
    nodes = Numa(
        [Node(range(n, 254, 128), 40 * MIB) for n in range(128)],
        [[10 if a == b else 20 for b in range(128)] for a in range(128)],
    )
    others = numa.tables(nodes, range(254))
    slots = SLOTS * 2
    image, rsdp = acpi.build(apic_ids=range(254), devices=slots, others=others)
    tables = walk(image, layout.ACPI, rsdp)
    assert sorted(tables) == ["APIC", "DSDT", "FACP", "SLIT", "SRAT", "XSDT"]
    assert nodes.node_of(130) == 2


@pytest.mark.parametrize("index", [0, 1])
def test_acpica_decodes_them(index: int, tmp_path: Path) -> None:
    nodes = Numa([Node((0, 2), 2 * GIB), Node((1, 3), 2 * GIB)], ((10, 20), (20, 10)))
    table = numa.tables(nodes, (0, 1, 254, 300))[index]
    (tmp_path / "table.aml").write_bytes(table)
    for words in (("-d", "table.aml"), ("-p", "again", "table.dsl")):
        subprocess.run(["iasl", *words], cwd=tmp_path, capture_output=True, timeout=60, check=True)
    decoded = (tmp_path / "table.dsl").read_text()
    assert "Unknown" not in decoded
    assert "Invalid" not in decoded
    assert (tmp_path / "again.aml").read_bytes()[36:] == table[36:]
