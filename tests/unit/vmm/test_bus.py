"""The bus: claims are checked by the C table, and each access reaches the device it is for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import BackendError
from pyvirt.native import ffi
from pyvirt.vmm.bus import MMIO, PIO, Bus


class Probe:
    """A device that notes what it is asked."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.calls: list[tuple[int, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append((offset, size))
        return self.answer

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append((offset, size, value))


def access(
    bus: Bus, space: int, address: int, size: int = 1, value: int = 0, *, write: bool = False
) -> int:
    """Serve one access as the vCPU loop hands it over; return its value afterwards."""
    it: Any = ffi.new("struct pv_access *", {"address": address, "value": value, "size": size,
                      "space": space, "is_write": write})  # fmt: skip
    bus.serve(it)
    return int(it.value)


def test_read_and_write_reach_the_device_with_its_offset() -> None:
    bus, device = Bus(), Probe(0x5A)
    bus.add(PIO, 0x600, 3, device)
    assert access(bus, PIO, 0x601) == 0x5A
    access(bus, PIO, 0x602, 1, 7, write=True)
    assert device.calls == [(1, 1), (2, 1, 7)]


@pytest.mark.parametrize(("size", "value"), [(1, 0x88), (2, 0x7788), (4, 0x5566_7788)])
def test_answer_is_cut_to_the_size_of_the_access(size: int, value: int) -> None:
    bus = Bus()
    bus.add(PIO, 0, 8, Probe(0x1122_3344_5566_7788))
    assert access(bus, PIO, 0, size) == value


def test_answer_of_eight_bytes_may_be_all_ones() -> None:
    bus = Bus()
    bus.add(MMIO, 0xD000_0000, 0x1000, Probe(-1))
    assert access(bus, MMIO, 0xD000_0FF8, 8) == 0xFFFF_FFFF_FFFF_FFFF


def test_spaces_are_apart() -> None:
    bus, port, memory = Bus(), Probe(1), Probe(2)
    bus.add(PIO, 0x100, 4, port)
    bus.add(MMIO, 0x100, 4, memory)
    assert access(bus, PIO, 0x103) == 1
    assert access(bus, MMIO, 0x103) == 2


def test_access_that_nobody_claimed_is_a_fault_of_ours() -> None:
    bus = Bus()
    bus.add(PIO, 0x100, 4, Probe())
    for address in (0xFF, 0x104):
        with pytest.raises(AssertionError):
            access(bus, PIO, address)


@pytest.mark.parametrize(
    ("space", "base", "size"),
    [(PIO, 0x10, 0), (PIO, 0xFFFF, 2), (PIO, 0x1_0000, 1), (MMIO, 2**64 - 1, 2), (2, 0, 1)],
)
def test_impossible_ranges(space: int, base: int, size: int) -> None:
    with pytest.raises((BackendError, IndexError)):
        Bus().add(space, base, size, Probe())


@pytest.mark.parametrize(
    ("space", "base", "size"), [(PIO, 0, 0x1_0000), (PIO, 0xFFFF, 1), (MMIO, 0, 2**64 - 1),
                                (MMIO, 2**64 - 1, 1)]
)  # fmt: skip
def test_ranges_may_reach_the_end_of_their_space(space: int, base: int, size: int) -> None:
    bus, device = Bus(), Probe(3)
    bus.add(space, base, size, device)
    assert access(bus, space, base + size - 1) == 3


def test_a_claim_over_another_names_the_place() -> None:
    bus = Bus()
    bus.add(PIO, 0x3F8, 8, Probe())
    with pytest.raises(BackendError, match=r"port 0x3ff: File exists"):
        bus.add(PIO, 0x3FF, 2, Probe())
    with pytest.raises(BackendError, match=r"port 0x3f7: File exists"):
        bus.add(PIO, 0x3F7, 2, Probe())
    bus.add(PIO, 0x3F7, 1, Probe())
    bus.add(MMIO, 0xD000_0000, 0x1000, Probe())
    with pytest.raises(BackendError, match=r"address 0xcffffff0: File exists"):
        bus.add(MMIO, 0xCFFF_FFF0, 0x20, Probe())


def test_refused_device_gets_no_access() -> None:
    bus, first, second = Bus(), Probe(1), Probe(2)
    bus.add(PIO, 0x100, 4, first)
    with pytest.raises(BackendError):
        bus.add(PIO, 0x102, 4, second)
    with pytest.raises(AssertionError):
        access(bus, PIO, 0x105)
    assert second.calls == []


def test_full_table() -> None:
    bus = Bus()
    for port in range(64):
        bus.add(PIO, port, 1, Probe(port))
    with pytest.raises(BackendError, match="port 0x40: No space left"):
        bus.add(PIO, 64, 1, Probe())
    bus.add(MMIO, 0, 1, Probe())
    assert access(bus, PIO, 63) == 63


ranges = st.lists(
    st.tuples(st.sampled_from([PIO, MMIO]), st.integers(0, 64), st.integers(1, 16)), max_size=20
)


@given(ranges)
def test_every_claimed_address_has_one_device(claims: list[tuple[int, int, int]]) -> None:
    bus = Bus()
    owner: dict[tuple[int, int], int] = {}
    for number, (space, base, size) in enumerate(claims):
        places = [(space, base + offset) for offset in range(size)]
        if any(place in owner for place in places):
            with pytest.raises(BackendError):
                bus.add(space, base, size, Probe(255))
        else:
            bus.add(space, base, size, Probe(number))
            owner |= dict.fromkeys(places, number)
    for (space, address), number in owner.items():
        assert access(bus, space, address) == number
