"""The MP table, for guests without ACPI: processors, the IOAPIC and how lines reach it.

Source: Intel MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

from struct import pack

from .. import layout
from ..topology import APIC_ID_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_SPEC_1_4 = 4
_PROCESSOR, _BUS, _IOAPIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _, _EXTINT = range(4)
_CONFORMS = 0
_ACTIVE_HIGH_EDGE = 0b0101
_ISA_BUS = 0
_FLOATING_POINTER_SIZE = 16
_HEADER_SIZE = 44

_LAPIC_VERSION = 0x14  # as KVM's local APIC and IOAPIC answer in their version registers
_IOAPIC_VERSION = 0x11
_ENABLED = 1
_BOOTSTRAP = 2
_SIGNATURE = 0x600  # family 6; guests ask CPUID for the rest
_FEATURES = 1 << 0 | 1 << 9  # an FPU and a local APIC on the chip
_ALL_APICS = 0xFF


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _interrupt(line: int, ioapic: int) -> bytes:
    # KVM's default routing wires GSI n to IOAPIC pin n for every n, the timer's 0 included (a PC
    # has its timer on pin 2). The lines above ISA's have no bus standard to conform to.
    flags = _CONFORMS if line < layout.ISA_IRQS else _ACTIVE_HIGH_EDGE
    return pack("<BBHBBBB", _IO_INTERRUPT, _INT, flags, _ISA_BUS, line, ioapic, line)


def build(
    apic_ids: Sequence[int], *, address: int = layout.MPTABLE, lines: int = layout.IOAPIC_PINS
) -> bytes:
    """Return the floating pointer, to be placed at `address`, and the table that follows it.

    `apic_ids` are the vCPUs', ascending from 0 to 253 at most; the IOAPIC has the next. `lines` is
    how many interrupt lines there are, each on the IOAPIC pin of its number. `address` is a
    multiple of 16 within 0xf0000..0xfffff, where guests look. ValueError when ids are out of range.
    """
    if not apic_ids or apic_ids[-1] > APIC_ID_MAX:
        raise ValueError(f"an MP table names APIC ids 0 to {APIC_ID_MAX}")
    ioapic = apic_ids[-1] + 1
    entries = [
        pack(
            "<BBBBII8x",
            _PROCESSOR,
            cpu,
            _LAPIC_VERSION,
            _ENABLED if cpu else _ENABLED | _BOOTSTRAP,
            _SIGNATURE,
            _FEATURES,
        )
        for cpu in apic_ids
    ]
    entries.append(pack("<BB6s", _BUS, _ISA_BUS, b"ISA   "))
    entries.append(pack("<BBBBI", _IOAPIC, ioapic, _IOAPIC_VERSION, _ENABLED, layout.IOAPIC))
    entries += [_interrupt(line, ioapic) for line in range(lines)]
    # The 8259s reach the boot processor's LINT0, NMIs everyone's LINT1.
    entries.append(pack("<BBHBBBB", _LOCAL_INTERRUPT, _EXTINT, _CONFORMS, _ISA_BUS, 0, 0, 0))
    entries.append(pack("<BBHBBBB", _LOCAL_INTERRUPT, _NMI, _CONFORMS, _ISA_BUS, 0, _ALL_APICS, 1))
    body = b"".join(entries)

    head = pack("<4sHB", b"PCMP", _HEADER_SIZE + len(body), _SPEC_1_4)
    tail = pack("<8s12sIHHI4x", b"PYVIRT  ", b"MICROVM     ", 0, 0, len(entries), layout.LAPIC)
    table = head + bytes((_checksum(head + tail + body),)) + tail + body
    start = pack("<4sIBB", b"_MP_", address + _FLOATING_POINTER_SIZE, 1, _SPEC_1_4)
    return start + bytes((_checksum(start),)) + bytes(5) + table
