"""The ACPI tables of NUMA nodes: SRAT says what is in each, SLIT how far one is from another.

Proximity domains have the nodes' numbers. Sources: ACPI 6.4, 5.2.16 and 5.2.17;
drivers/acpi/numa/srat.c of Linux.
"""

from __future__ import annotations

from struct import pack

from . import acpi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..numa import Numa

_ENABLED = 1


def _processor(domain: int, apic_id: int) -> bytes:
    if apic_id >= acpi.X2APIC_FROM:
        return pack("<BBxxIIII4x", 2, 24, domain, apic_id, _ENABLED, 0)
    high = (domain >> 8).to_bytes(3, "little")
    return pack("<BBBBIB3sI", 0, 16, domain & 0xFF, apic_id, _ENABLED, 0, high, 0)


def _srat(numa: Numa, apic_ids: Sequence[int]) -> bytes:
    # Linux numbers nodes as it meets them here, processors first: they go by node.
    entries = [
        _processor(number, apic_ids[vcpu])
        for number, node in enumerate(numa.nodes)
        for vcpu in node.vcpus
    ]
    entries += [
        pack("<BBI2xQQ4xI8x", 1, 40, number, start, length, _ENABLED)
        for number, start, length in numa.ranges()
    ]
    return acpi.table(b"SRAT", 3, pack("<I8x", 1) + b"".join(entries))


def _slit(distances: Sequence[Sequence[int]]) -> bytes:
    rows = b"".join(bytes(row) for row in distances)
    return acpi.table(b"SLIT", 1, pack("<Q", len(distances)) + rows)


def tables(numa: Numa, apic_ids: Sequence[int]) -> list[bytes]:
    """Return the tables that tell of the nodes; `apic_ids` are all vCPUs', by index."""
    found = [_srat(numa, apic_ids)]
    if numa.distances:
        found.append(_slit(numa.distances))
    return found
