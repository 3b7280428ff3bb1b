"""The guest-physical map: pieces in order, none over another, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm import layout

PAGE = 4096
sizes = st.integers(2 * layout.MIB // PAGE, 512 * layout.GIB // PAGE).map(lambda n: n * PAGE)


@given(sizes)
def test_ram_is_sorted_complete_and_outside_the_gap(size: int) -> None:
    regions = layout.ram_regions(size)
    end = 0
    for start, length in regions:
        assert start >= end
        assert length > 0
        end = start + length
        assert end <= layout.GAP_START or start >= layout.GAP_END
    assert sum(length for _, length in regions) == size


@given(sizes)
def test_e820_covers_ram_and_reserves_the_firmware_area(size: int) -> None:
    entries = layout.e820(size)
    end = 0
    for start, length, _ in entries:
        assert start >= end
        assert length > 0
        end = start + length
    ram = sum(length for _, length, kind in entries if kind == layout.E820_RAM)
    reserved = [entry for entry in entries if entry[2] == layout.E820_RESERVED]
    assert reserved == [(0x9FC00, 0x60400, layout.E820_RESERVED)]
    assert ram == size - 0x60400
    assert end == layout.ram_regions(size)[-1][0] + layout.ram_regions(size)[-1][1]


@pytest.mark.parametrize(
    ("size", "regions"),
    [
        (256 * layout.MIB, ((0, 0x1000_0000),)),
        (3 * layout.GIB, ((0, 0xC000_0000),)),
        (3 * layout.GIB + PAGE, ((0, 0xC000_0000), (0x1_0000_0000, PAGE))),
        (5 * layout.GIB, ((0, 0xC000_0000), (0x1_0000_0000, 2 * layout.GIB))),
    ],
)
def test_ram_at_the_edges_of_the_gap(size: int, regions: tuple[tuple[int, int], ...]) -> None:
    assert layout.ram_regions(size) == regions


def test_memory_areas_do_not_overlap() -> None:
    areas = [
        (layout.GDT, 0x20),
        (layout.IDT, 0x10),
        (layout.PVH_START_INFO, PAGE),
        (layout.ZERO_PAGE, PAGE),
        (layout.ZERO_PAGE + PAGE, layout.BOOT_STACK - layout.ZERO_PAGE - PAGE),
        (layout.PML4, PAGE),
        (layout.PDPT, PAGE),
        (layout.PAGE_DIRECTORIES, layout.PAGE_DIRECTORY_COUNT * PAGE),
        (layout.CMDLINE, layout.CMDLINE_ROOM),
        (layout.EBDA, 0x400),
        (layout.ACPI, layout.ACPI_END - layout.ACPI),
        (layout.MPTABLE, layout.RESET_VECTOR - layout.MPTABLE),
        (layout.RESET_VECTOR, 16),
        (layout.KERNEL, PAGE),
        (layout.VIRTIO_MMIO, 256 * layout.VIRTIO_MMIO_STEP),
        (layout.IOAPIC, PAGE),
        (layout.LAPIC, PAGE),
        (layout.KVM_IDENTITY_MAP, PAGE),
        (layout.KVM_TSS, 3 * PAGE),
    ]
    end = 0
    for start, length in areas:
        assert start >= end, f"{start:#x} lies in the area before it"
        end = start + length
    assert end <= layout.GAP_END


def test_devices_are_in_the_gap() -> None:
    for address in (layout.VIRTIO_MMIO, layout.IOAPIC, layout.LAPIC, layout.KVM_TSS):
        assert layout.GAP_START <= address < layout.GAP_END


def test_ports_do_not_overlap() -> None:
    ports = [
        (0x60, 5),  # i8042 and system control port B
        (layout.DEBUG_EXIT, 4),
        (layout.COM1, 8),
        (layout.BOOT_TIMER, 1),
        (layout.SLEEP_CONTROL, 1),
        (layout.SLEEP_STATUS, 1),
        (layout.RESET, 1),
        (layout.GED_SELECTOR, layout.GED_SELECTOR_SIZE),
    ]
    taken: set[int] = set()
    for start, count in ports:
        here = set(range(start, start + count))
        assert not here & taken
        taken |= here
    assert len({layout.COM1_IRQ, layout.GED_IRQ}) == 2


def test_virtio_devices_have_lines_of_their_own() -> None:
    lines = layout.VIRTIO_GSIS
    taken = {0, 1, 2, layout.COM1_IRQ, 8, layout.GED_IRQ, 13}
    assert len(set(lines)) == len(lines)
    assert not taken & set(lines)
    assert max(lines) < layout.IOAPIC_PINS
    end = layout.VIRTIO_MMIO + layout.DEMAND_SLOTS_MAX * layout.VIRTIO_MMIO_STEP
    assert len(lines) <= layout.DEMAND_SLOTS_MAX < layout.PLUG_LEAVER
    assert layout.GAP_START <= layout.VIRTIO_MMIO < end <= layout.IOAPIC
