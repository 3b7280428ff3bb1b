"""ELF files, and the vmlinux among them.

A file with a PVH note is entered by that, any other, and Linux, by Linux's 64-bit entry. Linux has
such a note too, but by that way it asks 256 leaves of CPUID for Xen first, an exit each.

Sources: System V ABI (ELF-32 and ELF-64), xen/include/public/elfnote.h for the note;
include/linux/elfnote.h, by which Linux leaves notes of its own.
"""

from __future__ import annotations

from struct import unpack, unpack_from

from .. import layout
from ..memory import GuestMemory
from .kernel import LINUX64, PVH, Kernel, KernelFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ELFCLASS32, ELFCLASS64 = 1, 2
_LITTLE_ENDIAN = 1
_ET_EXEC, _ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
_MACHINES = {3: "i386", 40: "ARM", 183: "arm64", 243: "RISC-V", 21: "PowerPC", 22: "S/390"}
_PT_LOAD, _PT_INTERP, _PT_NOTE, _PT_TLS = 1, 3, 4, 7
# By class: size of the ELF header, entry and place of the program headers (from 24), where their
# size and number are, their size, and type, offset, vaddr, paddr, filesz, memsz in each.
_LAYOUTS = {
    ELFCLASS32: (52, "<II", 42, 32, "<6I"),
    ELFCLASS64: (64, "<QQ", 54, 56, "<I4xQQQQQ"),
}
_NOTE_MAX = 1 << 20
_XEN, _XEN_ELFNOTE_PHYS32_ENTRY = b"Xen\0", 18
_LINUX = b"Linux\0"


def recognises(file: KernelFile) -> bool:
    """Tell whether the file begins as ELF files do."""
    return file.head.startswith(b"\x7fELF")


def headers(
    file: KernelFile, machine: int = EM_X86_64
) -> tuple[int, list[tuple[int, int, int, int, int, int]]]:
    """Return the entry point and (type, offset, vaddr, paddr, filesz, memsz) of each segment.

    The class is to be checked before.
    """
    head = file.head
    head_size, entry_format, counts_at, phentsize, phdr = _LAYOUTS[head[4]]
    if len(head) < head_size:
        raise file.truncated(head_size)
    kind, found = unpack_from("<HH", head, 16)
    if found != machine:
        name = _MACHINES.get(found, f"ELF machine {found}")
        raise file.error(f"a file for {name}; name an x86-64 vmlinux")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise file.error("an ELF file that is not executable; name a vmlinux")
    entry, table = unpack_from(entry_format, head, 24)
    size, count = unpack_from("<HH", head, counts_at)
    if size != phentsize or count == 0:
        raise file.error("an ELF file without program headers; name a vmlinux")
    data = file.read(table, size * count)
    if len(data) < size * count:
        raise file.truncated(table + size * count)
    segments = []
    for at in range(0, len(data), size):
        segment = unpack_from(phdr, data, at)
        if segment[0] in (_PT_INTERP, _PT_TLS):
            raise file.error("a program, not a kernel; name a vmlinux")
        segments.append(segment)
    return entry, segments


def _notes(file: KernelFile, offset: int, length: int) -> Iterable[tuple[bytes, int, bytes]]:
    """Yield the name, type and descriptor of each note of a segment."""
    notes = file.read(offset, min(length, _NOTE_MAX))
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, kind = unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + namesz]
        at += 12 + (namesz + 3 & ~3)
        yield name, kind, notes[at : at + descsz]
        at += descsz + 3 & ~3


def _pvh_entry(notes: Iterable[tuple[bytes, int, bytes]]) -> int | None:
    """Return the 32-bit entry point that notes have for other kernels than Linux, if they do."""
    entry = None
    for name, kind, desc in notes:
        if name == _LINUX:
            return None
        is_entry = name == _XEN and kind == _XEN_ELFNOTE_PHYS32_ENTRY and len(desc) in (4, 8)
        if is_entry and entry is None:
            entry = int(unpack("<I" if len(desc) == 4 else "<Q", desc)[0])
    return entry


def place(
    file: KernelFile,
    memory: GuestMemory,
    segments: Iterable[tuple[int, int, int, int, int, int]],
    *,
    low: bool = False,
) -> list[tuple[int, int]]:
    """Put the loadable segments at their physical addresses; return (start, end) of each.

    `low` allows those below 1 MiB where memory is free there.
    """
    pieces = []
    for kind, offset, _, paddr, filesz, memsz in segments:
        if kind != _PT_LOAD or memsz == 0:
            continue
        if filesz > memsz:
            raise file.error("a segment larger in the file than in memory: damaged; copy it again")
        if offset + filesz > file.size:
            raise file.truncated(offset + filesz)
        if paddr < layout.HIGH_MEMORY:
            if not low:
                raise file.error(f"a segment at {paddr:#x}, below 1 MiB: no kernel; name a vmlinux")
            file.check_low(paddr, paddr + memsz)
        if paddr + memsz > memory.regions[0][1]:
            raise file.needs(paddr + memsz)
        file.load(memory, paddr, offset, filesz)
        pieces.append((paddr, paddr + memsz))
    if not pieces:
        raise file.error("an ELF file with nothing to load; name a vmlinux")
    return pieces


def physical(entry: int, segments: Iterable[tuple[int, int, int, int, int, int]]) -> int:
    """Return the physical address of an entry point, which may be a virtual one in a segment."""
    loaded = [segment for segment in segments if segment[0] == _PT_LOAD]
    if any(paddr <= entry < paddr + memsz for _, _, _, paddr, _, memsz in loaded):
        return entry
    for _, _, vaddr, paddr, _, memsz in loaded:
        if vaddr <= entry < vaddr + memsz:
            return entry - vaddr + paddr
    return entry


def check_entry(file: KernelFile, entry: int, pieces: Sequence[tuple[int, int]]) -> None:
    """Raise ConfigError when a kernel is not entered where it is."""
    if not any(start <= entry < end for start, end in pieces):
        raise file.error(f"entered at {entry:#x}, outside its segments: no kernel; name a vmlinux")


def load(file: KernelFile, memory: GuestMemory) -> Kernel:
    """Put a 64-bit kernel into memory."""
    if len(file.head) < _LAYOUTS[ELFCLASS64][0]:
        raise file.truncated(_LAYOUTS[ELFCLASS64][0])
    if file.head[4] != ELFCLASS64 or file.head[5] != _LITTLE_ENDIAN:
        raise file.error("not a 64-bit little-endian ELF file; name an x86-64 vmlinux")
    entry, segments = headers(file)
    pvh = _pvh_entry(
        note
        for kind, offset, _, _, filesz, _ in segments
        if kind == _PT_NOTE
        for note in _notes(file, offset, filesz)
    )
    pieces = place(file, memory, segments)
    protocol, entry = (LINUX64, entry) if pvh is None else (PVH, pvh)
    check_entry(file, entry, pieces)
    return Kernel(protocol, entry, max(end for _, end in pieces))
