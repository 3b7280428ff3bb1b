"""The ACPI tables, walked as an operating system does and read back by ACPICA's tools."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices.watchdog import AcpiWatchdog
from pyvirt.vmm import layout
from pyvirt.vmm.boot import acpi, wdat

VCPUS = (1, 2, 8, 254)
SLOTS = [
    acpi.VirtioMmio(layout.VIRTIO_MMIO + i * layout.VIRTIO_MMIO_STEP, layout.VIRTIO_MMIO_STEP, gsi)
    for i, gsi in enumerate((5, 6, 7, 10, 16, 17, 22, 23))
]


class Memory:
    """The piece of guest memory that the tables are in."""

    def __init__(self, image: bytes, address: int) -> None:
        self.image = image
        self.address = address

    def read(self, address: int, length: int) -> bytes:
        offset = address - self.address
        assert 0 <= offset <= offset + length <= len(self.image)
        return self.image[offset : offset + length]

    def table(self, address: int) -> bytes:
        data = self.read(address, struct.unpack("<I", self.read(address + 4, 4))[0])
        assert sum(data) & 0xFF == 0
        return data


def walk(image: bytes, address: int, rsdp: int) -> dict[str, bytes]:
    """Return the tables by signature, from the RSDP on."""
    memory = Memory(image, address)
    root = memory.read(rsdp, 36)
    assert root[:8] == b"RSD PTR "
    assert sum(root[:20]) & 0xFF == 0
    assert sum(root) & 0xFF == 0
    assert root[15] == 2
    assert struct.unpack("<I", root[20:24]) == (36,)
    tables = {"XSDT": memory.table(*struct.unpack("<Q", root[24:32]))}
    entries = tables["XSDT"][36:]
    for entry in struct.unpack(f"<{len(entries) // 8}Q", entries):
        data = memory.table(entry)
        tables[data[:4].decode()] = data
    fadt = tables["FACP"]
    (dsdt,) = struct.unpack("<Q", fadt[140:148])
    assert struct.unpack("<I", fadt[40:44]) == (dsdt,)
    tables["DSDT"] = memory.table(dsdt)
    return tables


def madt_entries(madt: bytes) -> list[bytes]:
    entries = []
    rest = madt[44:]
    while rest:
        entries.append(rest[: rest[1]])
        rest = rest[rest[1] :]
    return entries


@given(
    vcpus=st.integers(1, layout.MAX_VCPUS),
    slots=st.integers(0, len(SLOTS)),
    address=st.integers(0, 0xFFFF).map(lambda n: n * 16),
)
def test_every_table_is_reached_and_sums_to_zero(vcpus: int, slots: int, address: int) -> None:
    if address < layout.ACPI_END:
        address = min(address, layout.ACPI_END - 0x2000)
    image, rsdp = acpi.build(apic_ids=range(vcpus), devices=SLOTS[:slots], address=address)
    tables = walk(image, address, rsdp)
    assert sorted(tables) == ["APIC", "DSDT", "FACP", "XSDT"]
    for signature, table in tables.items():
        assert table[:4].decode() == signature
        assert table[10:16] == b"PYVIRT"


def test_rsdp_is_where_a_scan_finds_it() -> None:
    image, rsdp = acpi.build(apic_ids=range(layout.MAX_VCPUS), devices=SLOTS)
    assert rsdp % 16 == 0
    assert 0xE0000 <= rsdp < 0x100000
    assert layout.ACPI + len(image) <= layout.MPTABLE


def test_the_generation_id_is_no_ram_and_no_table() -> None:
    first, last = layout.GENERATION_ID, layout.GENERATION_ID + layout.GENERATION_ID_SIZE
    assert first >= layout.ACPI_END
    assert last <= layout.MPTABLE
    assert first % 4096 == 0
    assert any(
        start <= first and last <= start + size and kind == layout.E820_RESERVED
        for start, size, kind in layout.e820(1 << 30)
    )


def test_fadt_is_hardware_reduced() -> None:
    fadt = walk(*_at_home(1))["FACP"]
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 4)
    (flags,) = struct.unpack("<I", fadt[112:116])
    assert flags & 1 << 20, "HW_REDUCED_ACPI"
    assert flags & 1 << 10, "RESET_REG_SUP"
    assert flags & 3 << 4 == 3 << 4, "no fixed buttons"
    (boot,) = struct.unpack("<H", fadt[109:111])
    assert boot == 0b111100, "no ISA devices, no 8042; no VGA, MSI, ASPM, CMOS RTC"
    io_byte = struct.Struct("<BBBBQ")
    assert io_byte.unpack(fadt[116:128]) == (1, 8, 0, 1, layout.RESET)
    assert fadt[128] == layout.RESET_VALUE
    assert io_byte.unpack(fadt[244:256]) == (1, 8, 0, 1, layout.SLEEP_CONTROL)
    assert io_byte.unpack(fadt[256:268]) == (1, 8, 0, 1, layout.SLEEP_STATUS)
    assert not any(fadt[46:109]), "fixed hardware"
    assert not any(fadt[148:244]), "fixed hardware, 64-bit"


def test_fadt_tells_of_a_clock_where_there_is_one() -> None:
    image, rsdp = acpi.build(apic_ids=range(1), rtc=True)
    century, boot = struct.unpack("<BH", walk(image, layout.ACPI, rsdp)["FACP"][108:111])
    assert (century, boot) == (0x32, 0b011100)


def _at_home(vcpus: int) -> tuple[bytes, int, int]:
    image, rsdp = acpi.build(apic_ids=range(vcpus), devices=SLOTS)
    return image, layout.ACPI, rsdp


@pytest.mark.parametrize("vcpus", VCPUS)
def test_madt_names_each_processor_the_ioapic_and_the_nmi(vcpus: int) -> None:
    madt = walk(*_at_home(vcpus))["APIC"]
    assert struct.unpack("<II", madt[36:44]) == (layout.LAPIC, 0)
    entries = madt_entries(madt)
    processors = [struct.unpack("<BBBBI", entry) for entry in entries if entry[0] == 0]
    assert processors == [(0, 8, cpu, cpu, 1) for cpu in range(vcpus)]
    ioapics = [struct.unpack("<BBBBII", entry) for entry in entries if entry[0] == 1]
    assert ioapics == [(1, 12, 0, 0, layout.IOAPIC, 0)]
    nmis = [struct.unpack("<BBBHB", entry) for entry in entries if entry[0] == 4]
    assert nmis == [(4, 6, 0xFF, 0, 1)]
    assert len(entries) == vcpus + 2


def test_madt_names_wide_apic_ids_by_x2apic_entries() -> None:
    image, rsdp = acpi.build(apic_ids=range(300))
    entries = madt_entries(walk(image, layout.ACPI, rsdp)["APIC"])
    assert sum(entry[0] == 0 for entry in entries) == 255
    wide = [struct.unpack("<BBHIII", entry) for entry in entries if entry[0] == 9]
    assert wide == [(9, 16, 0, cpu, 1, cpu) for cpu in range(255, 300)]
    assert [struct.unpack("<BBHIB3x", entry) for entry in entries if entry[0] == 10] == [
        (10, 12, 0, 0xFFFF_FFFF, 1)
    ]


def test_tables_may_not_reach_the_mp_table() -> None:
    with pytest.raises(ValueError, match="1000 devices"):
        acpi.build(apic_ids=range(1), devices=SLOTS * 125)


def _iasl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["iasl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def _round_trip(folder: Path, table: bytes, *, needs: str = "") -> str:
    """Have a table read and assembled again, to the same bytes; return its source in one line.

    It `needs` a method of another table.
    """
    (folder / "table.aml").write_bytes(table)
    _iasl(folder, "-d", "table.aml")
    source = (folder / "table.dsl").read_text()
    assert "Warning" not in source
    assert "External" not in source
    if needs:
        head, brace, rest = source.partition("\n{")
        (folder / "table.dsl").write_text(f"{head}{brace} External ({needs}, MethodObj){rest}")
    # -oa, -oe: no rewriting of the names, nothing that says what comes from elsewhere.
    # -vw: what is within a method is remarked on, which is on purpose.
    said = _iasl(folder, "-oa", "-oe", "-vw", "2089", "-p", "again", "table.dsl")
    assert "0 Errors, 0 Warnings, 0 Remarks" in said
    again = (folder / "again.aml").read_bytes()
    # The header's checksum and creator are the assembler's own.
    assert again[36:] == table[36:]
    assert again[:9] + again[10:28] == table[:9] + table[10:28]
    return " ".join(source.split())


@pytest.mark.parametrize("vcpus", VCPUS)
def test_acpica_reads_the_dsdt_and_writes_the_same_bytes(vcpus: int, tmp_path: Path) -> None:
    _round_trip(tmp_path, walk(*_at_home(vcpus))["DSDT"])


def test_acpica_sees_how_devices_are_taken(tmp_path: Path) -> None:
    image, rsdp = acpi.build(apic_ids=range(1), on_demand=True, devices=SLOTS[2:3])
    source = _round_trip(tmp_path, walk(image, layout.ACPI, rsdp)["DSDT"])
    for piece in (
        "OperationRegion (PTAB, SystemMemory, 0x000D0000, 0x1000)",
        "OperationRegion (PREG, SystemIO, 0x0620, 0x08)",
        "Field (PREG, DWordAcc, NoLock, WriteAsZeros) { POFR, 32, PANS, 32 }",
        "If ((Local0 & 0x04)) { Local1 = POFR",
        "Name (SEEN, Zero)",
        "While ((Local1 && !(Local1 & 0xFF))) { Load (PTAB, Local0) PANS = Local1",
        "If ((Local1 && (Local1 != SEEN))) { SEEN = Local1 Notify (\\_SB.EXIT, Zero)",
        'Device (EXIT) { Name (_HID, "ACPI0004"',
        "Method (_OST, 3, Serialized)",
        "If (Local2) { If ((Local1 == GONE)) { \\_SB.GED.PANS = Local1 } If ((Local1 != GONE))",
        "If ((Local2 == 0x40)) { \\_SB.M03F () } GONE = Local1 Notify (\\_SB.EXIT, Zero)",
        "Device (\\_SB.M002.V000)",
    ):
        assert piece in source
    assert "PTAB" not in _round_trip(tmp_path, walk(*_at_home(1))["DSDT"])


@pytest.mark.parametrize("number", [0, 1, acpi.PLUGS_MAX - 1])
def test_acpica_sees_a_device_that_comes(number: int, tmp_path: Path) -> None:
    table = acpi.plugged(number, SLOTS[5])
    assert len(table) <= layout.PLUG_TABLE_SIZE
    assert (table[:4], sum(table) & 0xFF) == (b"SSDT", 0)
    source = _round_trip(tmp_path, table, needs="\\_SB.M005")
    for piece in (
        f"Device (\\_SB.M005.P{number:03X})",
        'Name (_HID, "LNRO0005")',
        f"Name (_UID, 0x{0x1000 + number:04X})",
        f"ReadWrite, 0x{SLOTS[5].base:08X}, // Address Base",
        f"{{ 0x{SLOTS[5].gsi:08X}, }}",
    ):
        assert piece in source


def test_the_page_of_tables_is_no_ram_and_nothing_elses() -> None:
    first, last = layout.PLUG_TABLE, layout.PLUG_TABLE + layout.PLUG_TABLE_SIZE
    assert last <= layout.ACPI
    assert any(
        start <= first and last <= start + size and kind == layout.E820_RESERVED
        for start, size, kind in layout.e820(1 << 30)
    )


def test_acpica_sees_the_devices(tmp_path: Path) -> None:
    (tmp_path / "dsdt.aml").write_bytes(walk(*_at_home(2))["DSDT"])
    _iasl(tmp_path, "-d", "dsdt.aml")
    source = " ".join((tmp_path / "dsdt.dsl").read_text().split())
    for piece in (
        "Name (\\_S5, Package (0x04) // _S5_: S5 System State { 0x05, Zero, Zero, Zero })",
        'Name (_HID, EisaId ("PNP0501")',
        "IRQ (Edge, ActiveHigh, Exclusive, ) {4}",
        'Name (_HID, EisaId ("PNP0C0C")',
        'Name (_HID, "ACPI0013"',
        "OperationRegion (EREG, SystemIO, 0x0604, 0x04)",
        "Local0 = ESEL",
        "If ((Local0 & One)) { Notify (\\_SB.PWRB, 0x80)",
        "If ((Local0 & 0x02)) { Notify (\\_SB.VGEN, 0x80)",
        'Name (_CID, Package (0x02) // _CID: Compatible ID { "VM_Gen_Counter", "VMGENCTR" })',
        "Name (ADDR, Package (0x02) { 0x000EF000, Zero })",
    ):
        assert piece in source
    assert source.count('"LNRO0005"') == source.count("_CCA, One") == len(SLOTS)
    for index, slot in enumerate(SLOTS):
        uid = ("Zero", "One")[index] if index < 2 else f"0x{index:02X}"
        device = source[source.index(f"Device (V{index:03X})") :]
        device = device[: device.index("}) }")]
        assert f"Name (_UID, {uid})" in device
        assert f"ReadWrite, 0x{slot.base:08X}, // Address Base 0x{slot.size:08X}," in device
        interrupt = "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )"
        assert f"{interrupt} {{ 0x{slot.gsi:08X}, }}" in device


def test_acpica_sees_the_clock(tmp_path: Path) -> None:
    image, rsdp = acpi.build(apic_ids=range(1), rtc=True)
    (tmp_path / "dsdt.aml").write_bytes(walk(image, layout.ACPI, rsdp)["DSDT"])
    _iasl(tmp_path, "-d", "dsdt.aml")
    source = " ".join((tmp_path / "dsdt.dsl").read_text().split())
    device = source[source.index('EisaId ("PNP0B00")') :]
    assert "IO (Decode16, 0x0070, // Range Minimum 0x0070, // Range Maximum" in device
    assert "IRQ (Edge, ActiveHigh, Exclusive, ) {8}" in device


def test_the_watchdogs_table_names_its_registers() -> None:
    image, rsdp = acpi.build(apic_ids=range(1), others=[wdat.build()])
    table = walk(image, layout.ACPI, rsdp)["WDAT"]
    size, *pci, period, most, least, flags, count = struct.unpack("<IHBBB3xIIIB3xI", table[36:68])
    assert (size, pci, flags) == (32, [0xFF] * 4, 1)
    assert (period, most, least) == (100, 0xFFFF, 1)
    found = {}
    for at in range(68, len(table), 24):
        action, instruction, space, bits, shift, width, place, value, mask = struct.unpack(
            "<BB2xBBBBQII", table[at : at + 24]
        )
        assert (space, bits, shift, width, mask) == (1, 8 * width, 0, width, (1 << bits) - 1)
        found[action] = (instruction, place - layout.ACPI_WATCHDOG, width, value)
    assert len(found) == count == 10
    # Linux runs the first, and goes without those that it does not find.
    assert (found[1], found[6]) == ((2, AcpiWatchdog.KICK, 1, 1), (3, AcpiWatchdog.COUNTDOWN, 2, 0))
    assert (found[9], found[11]) == ((2, AcpiWatchdog.RUN, 1, 1), (2, AcpiWatchdog.RUN, 1, 0))


@pytest.mark.parametrize("signature", ["FACP", "APIC", "WDAT"])
def test_acpica_decodes_the_data_tables(signature: str, tmp_path: Path) -> None:
    image, rsdp = acpi.build(apic_ids=range(3), devices=SLOTS, others=[wdat.build()])
    (tmp_path / "table.aml").write_bytes(walk(image, layout.ACPI, rsdp)[signature])
    _iasl(tmp_path, "-d", "table.aml")
    decoded = (tmp_path / "table.dsl").read_text()
    assert "Unknown" not in decoded
    assert "Invalid" not in decoded
    again = _iasl(tmp_path, "-p", "again", "table.dsl")
    assert "0 Errors" in again
    assert (tmp_path / "again.aml").read_bytes()[36:] == (tmp_path / "table.aml").read_bytes()[36:]
