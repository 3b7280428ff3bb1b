"""Long mode's page tables, walked from outside: virtual addresses to guest-physical ones.

The tables are the guest's own: any bytes are answered by an address or by IndexError, after at
most five reads. Source: Intel SDM volume 3A, chapter "Paging" (4-level and 5-level paging).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Read = Callable[[int, int], bytes]  # of `length` bytes at an address; IndexError outside

PAGE = 4096
_ADDRESSES = 1 << 64
_CR0_PG, _CR4_LA57, _EFER_LMA = 1 << 31, 1 << 12, 1 << 10
_PRESENT, _LARGE = 1 << 0, 1 << 7
_FRAME = 0x000F_FFFF_FFFF_F000
_LARGE_LEVELS = (2, 3)  # 2 MiB, 1 GiB


def translate(registers: Mapping[str, int], read: Read, address: int) -> tuple[int, int]:
    """Return the guest-physical address, and how many bytes from there on its page has.

    `registers` has cr0, cr3, cr4 and efer of a vCPU, `read` reads guest-physical memory.
    IndexError says what is wrong: the address, a table of the guest's, or a mode not known here.
    """
    if not registers["cr0"] & _CR0_PG:
        return address, PAGE - address % PAGE
    if not registers["efer"] & _EFER_LMA:
        raise IndexError(f"{address:#x}: the vCPU is in a 32-bit mode, whose tables are not read")
    levels = 5 if registers["cr4"] & _CR4_LA57 else 4
    width = 12 + 9 * levels
    if address >> (width - 1) not in {0, (_ADDRESSES - 1) >> (width - 1)}:
        raise IndexError(f"{address:#x} is no canonical address")
    table = registers["cr3"] & _FRAME
    for level in range(levels, 0, -1):
        size = 1 << (3 + 9 * level)  # bytes that an entry stands for
        entry = _entry(read, table, address // size % 512)
        if not entry & _PRESENT:
            break
        if level == 1 or (level in _LARGE_LEVELS and entry & _LARGE):
            offset = address % size
            return (entry & _FRAME & -size) + offset, size - offset
        table = entry & _FRAME
    raise IndexError(f"{address:#x} is not mapped")


def _entry(read: Read, table: int, index: int) -> int:
    try:
        return int.from_bytes(read(table + 8 * index, 8), "little")
    except IndexError:
        raise IndexError(f"the page table at {table:#x} is not in guest memory") from None


def pieces(
    registers: Mapping[str, int], read: Read, address: int, length: int
) -> Iterator[tuple[int, int]]:
    """Yield the (guest-physical address, length) that `length` bytes consist of; IndexError."""
    while length > 0:
        physical, room = translate(registers, read, address % _ADDRESSES)
        size = min(room, length)
        yield physical, size
        address += size
        length -= size


def reader(registers: Mapping[str, int], read: Read) -> Read:
    """Return what reads virtual memory as a vCPU with these registers sees it."""

    def read_virtual(address: int, length: int) -> bytes:
        return b"".join(read(*piece) for piece in pieces(registers, read, address, length))

    return read_virtual
