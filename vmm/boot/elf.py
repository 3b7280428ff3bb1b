"""ELF vmlinux: entered by its PVH note, else by Linux's 64-bit entry.

Sources: System V ABI (ELF-64), xen/include/public/elfnote.h for the note.
"""

from __future__ import annotations

from struct import unpack, unpack_from

from ..memory import GuestMemory
from .kernel import LINUX64, PVH, Kernel, KernelFile

_ELFCLASS64 = 2
_LITTLE_ENDIAN = 1
_ET_EXEC, _ET_DYN = 2, 3
_EM_X86_64 = 62
_MACHINES = {3: "i386", 40: "ARM", 183: "arm64", 243: "RISC-V", 21: "PowerPC", 22: "S/390"}
_PT_LOAD, _PT_INTERP, _PT_NOTE, _PT_TLS = 1, 3, 4, 7
_PHENTSIZE = 56
_NOTE_MAX = 1 << 20
_XEN_ELFNOTE_PHYS32_ENTRY = 18
_LOW_LIMIT = 1 << 20


def recognises(file: KernelFile) -> bool:
    """Tell whether the file begins as ELF files do."""
    return file.head.startswith(b"\x7fELF")


def _headers(file: KernelFile) -> tuple[int, list[tuple[int, int, int, int, int]]]:
    """Return the entry point and (type, offset, paddr, filesz, memsz) of each segment."""
    head = file.head
    if len(head) < 64:
        raise file.truncated(64)
    if head[4] != _ELFCLASS64 or head[5] != _LITTLE_ENDIAN:
        raise file.error("not a 64-bit little-endian ELF file; name an x86-64 vmlinux")
    kind, machine = unpack_from("<HH", head, 16)
    if machine != _EM_X86_64:
        name = _MACHINES.get(machine, f"ELF machine {machine}")
        raise file.error(f"a file for {name}; name an x86-64 vmlinux")
    if kind not in (_ET_EXEC, _ET_DYN):
        raise file.error("an ELF file that is not executable; name a vmlinux")
    entry, table = unpack_from("<QQ", head, 24)
    size, count = unpack_from("<HH", head, 54)
    if size != _PHENTSIZE or count == 0:
        raise file.error("an ELF file without program headers; name a vmlinux")
    data = file.read(table, size * count)
    if len(data) < size * count:
        raise file.truncated(table + size * count)
    segments = []
    for at in range(0, len(data), size):
        kind, offset, paddr, filesz, memsz = unpack_from("<I4xQ8xQQQ", data, at)
        if kind in (_PT_INTERP, _PT_TLS):
            raise file.error("a program, not a kernel; name a vmlinux")
        segments.append((kind, offset, paddr, filesz, memsz))
    return entry, segments


def _pvh_entry(file: KernelFile, offset: int, length: int) -> int | None:
    """Return the 32-bit entry point that a note segment holds, if it does."""
    notes = file.read(offset, min(length, _NOTE_MAX))
    at = 0
    while at + 12 <= len(notes):
        namesz, descsz, kind = unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + namesz]
        at += 12 + (namesz + 3 & ~3)
        desc = notes[at : at + descsz]
        at += descsz + 3 & ~3
        if kind == _XEN_ELFNOTE_PHYS32_ENTRY and name == b"Xen\0" and len(desc) in (4, 8):
            return int(unpack("<I" if len(desc) == 4 else "<Q", desc)[0])
    return None


def load(file: KernelFile, memory: GuestMemory) -> Kernel:
    """Put the loadable segments at their physical addresses."""
    entry, segments = _headers(file)
    pvh: int | None = None
    start, end = memory.size, 0
    for kind, offset, paddr, filesz, memsz in segments:
        if kind == _PT_NOTE and pvh is None:
            pvh = _pvh_entry(file, offset, filesz)
        if kind != _PT_LOAD or memsz == 0:
            continue
        if filesz > memsz:
            raise file.error("a segment larger in the file than in memory: damaged; copy it again")
        if offset + filesz > file.size:
            raise file.truncated(offset + filesz)
        if paddr < _LOW_LIMIT:
            raise file.error(f"a segment at {paddr:#x}, below 1 MiB: no kernel; name a vmlinux")
        if paddr + memsz > memory.regions[0][1]:
            raise file.needs(paddr + memsz)
        file.load(memory, paddr, offset, filesz)
        start, end = min(start, paddr), max(end, paddr + memsz)
    if end == 0:
        raise file.error("an ELF file with nothing to load; name a vmlinux")
    protocol, entry = (LINUX64, entry) if pvh is None else (PVH, pvh)
    if not start <= entry < end:
        raise file.error(f"entered at {entry:#x}, outside its segments: no kernel; name a vmlinux")
    return Kernel(protocol, entry, end)
