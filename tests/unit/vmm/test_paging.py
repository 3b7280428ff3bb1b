"""Walking page tables: well-formed ones of every shape, and any bytes at all."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.vmm import paging

SIZE = 64 << 10  # of the physical memory
PRESENT, LARGE, NX = 1, 0x80, 1 << 63
LONG = {"cr0": 1 << 31, "cr3": 0x1000, "cr4": 0x20, "efer": 0x500}


class Memory:
    """Physical memory with page tables in it."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(size)
        self.reads = 0

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        if address + length > len(self.data):
            raise IndexError(address)
        return bytes(self.data[address : address + length])

    def put(self, table: int, index: int, entry: int) -> None:
        at = table + 8 * index
        self.data[at : at + 8] = entry.to_bytes(8, "little")


def mapped(address: int, *entries: int, first: int) -> Memory:
    """Return memory in which `address` leads through tables at 0x1000, 0x2000 and so on."""
    memory = Memory()
    for depth, entry in enumerate(entries):
        level = first - depth
        memory.put(0x1000 * (depth + 1), address >> (3 + 9 * level) & 511, entry)
    return memory


HIGH = 0xFFFF_FFFF_8123_4567


@pytest.mark.parametrize(
    ("cr4", "address", "entries", "physical", "room"),
    [
        (0x20, HIGH, (0x2003, 0x3003, 0x4003, NX | 0x7_7003), 0x7_7567, 0x1000 - 0x567),
        (0x20, HIGH, (0x2003, 0x3003, 0x4020_0083), 0x4023_4567, (2 << 20) - 0x3_4567),
        # The attribute bit (PAT) of a large page is no part of its address.
        (0x20, HIGH, (0x2003, 0x3003, 0x4020_1083), 0x4023_4567, (2 << 20) - 0x3_4567),
        (0x20, HIGH, (0x2003, 0x8000_0083), 0x8123_4567, (1 << 30) - 0x123_4567),
        (0x1020, HIGH, (0x2003, 0x3003, 0x4003, 0x5003, 0x9003), 0x9567, 0x1000 - 0x567),
        (0x1020, 1 << 48, (0x2003, 0x3003, 0x4003, 0x5003, 0x9003), 0x9000, 0x1000),
    ],
)
def test_pages_of_every_size(
    cr4: int, address: int, entries: tuple[int, ...], physical: int, room: int
) -> None:
    memory = mapped(address, *entries, first=5 if cr4 & 0x1000 else 4)
    registers = LONG | {"cr4": cr4, "cr3": 0x1000 | 0x18}
    assert paging.translate(registers, memory.read, address) == (physical, room)


@pytest.mark.parametrize(
    ("registers", "address", "entries", "text"),
    [
        (LONG, HIGH, (), f"{HIGH:#x} is not mapped"),
        (LONG, HIGH, (0x2003, 0x3003, 0x4003, 0x9002), f"{HIGH:#x} is not mapped"),
        # A top entry cannot be a page.
        (LONG, HIGH, (0x83,), f"{HIGH:#x} is not mapped"),
        (LONG, HIGH, (0xF000_0003,), "the page table at 0xf0000000 is not in guest memory"),
        (LONG, 1 << 47, (), "0x800000000000 is no canonical address"),
        (LONG | {"efer": 0}, 0x1000, (),
         "0x1000: the vCPU is in a 32-bit mode, whose tables are not read"),
    ],
)  # fmt: skip
def test_what_leads_nowhere(
    registers: dict[str, int], address: int, entries: tuple[int, ...], text: str
) -> None:
    memory = mapped(address, *entries, first=4)
    with pytest.raises(IndexError) as info:
        paging.translate(registers, memory.read, address)
    assert str(info.value) == text


def test_without_paging_an_address_is_itself() -> None:
    assert paging.translate(LONG | {"cr0": 0x11}, Memory().read, 0x1234) == (0x1234, 0xDCC)


def test_reading_over_a_page_s_end() -> None:
    memory = mapped(0, 0x2003, 0x3003, 0x4003, 0x7003, first=4)
    memory.put(0x4000, 1, 0x5003)
    memory.data[0x7FFE:0x8000] = b"ab"
    memory.data[0x5000:0x5002] = b"cd"
    read = paging.reader(LONG, memory.read)
    assert read(0xFFE, 4) == b"abcd"
    assert read(0xFFE, 0) == b""
    with pytest.raises(IndexError, match="0x2000 is not mapped"):
        read(0x1FFF, 2)


def test_an_address_wraps_at_the_top() -> None:
    with pytest.raises(IndexError, match="0x0 is not mapped"):
        paging.reader(LONG, mapped((1 << 64) - 1, *(0x2003, 0x3003, 0x4003, 0x7003), first=4).read)(
            (1 << 64) - 1, 2
        )


@settings(max_examples=200)
@given(
    entries=st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, SIZE), min_size=1, max_size=9),
    cr3=st.integers(0, SIZE),
    cr4=st.sampled_from([0x20, 0x1020]),
    address=st.integers(0, (1 << 64) - 1),
)
def test_any_tables_end(entries: list[int], cr3: int, cr4: int, address: int) -> None:
    memory = Memory()
    for index in range(SIZE // 8):
        memory.put(0, index, entries[index % len(entries)])
    with suppress(IndexError):
        physical, room = paging.translate(LONG | {"cr3": cr3, "cr4": cr4}, memory.read, address)
        assert 0 <= physical < 1 << 52
        assert 0 < room <= 1 << 30
    assert memory.reads <= 5


def test_a_table_that_is_its_own_page() -> None:
    memory = Memory()
    for index in range(512):
        memory.put(0x1000, index, 0x1003)
    assert paging.translate(LONG, memory.read, 0x1234) == (0x1234, 0xDCC)
    assert memory.reads == 4
