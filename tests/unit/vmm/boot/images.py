"""Kernel images made to measure: every field of a header can be set, right or wrong."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import pack, pack_into
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
PT_LOAD, PT_NOTE = 1, 4
PAYLOAD = bytes(range(1, 252)) * 16 + b"the payload ends"  # no period that a page or sector has
BANNER = b"Linux version 6.1.0 (a@b) #1 SMP"


@dataclass(frozen=True)
class BzImage:
    """A bzImage; the defaults are those of a distribution's kernel. Offsets: boot.rst."""

    payload: bytes = PAYLOAD
    setup_sects: int = 3
    syssize: int | None = None  # in 16-byte units; None: what the payload has
    boot_flag: int = 0xAA55
    jump: int = 0x6A
    magic: bytes = b"HdrS"
    version: int = 0x020F
    initrd_max: int = 0x7FFF_FFFF
    alignment: int = 0x20_0000
    relocatable: int = 1
    xloadflags: int = 1
    cmdline_max: int = 2047
    preferred: int = 16 * MIB
    init_size: int = 8 * MIB

    def build(self) -> bytes:
        """Return the file."""
        setup = bytearray(((self.setup_sects or 4) + 1) * 512)
        units = len(self.payload) // 16 if self.syssize is None else self.syssize
        pack_into("<B", setup, 0x1F1, self.setup_sects)
        pack_into("<I", setup, 0x1F4, units)
        pack_into("<HBB", setup, 0x1FE, self.boot_flag, 0xEB, self.jump)
        pack_into("<4sH", setup, 0x202, self.magic, self.version)
        pack_into("<B", setup, 0x211, 1)  # loadflags: LOADED_HIGH
        pack_into("<IIBBH", setup, 0x22C, self.initrd_max, self.alignment, self.relocatable, 21,
                  self.xloadflags)  # fmt: skip
        pack_into("<I", setup, 0x238, self.cmdline_max)
        pack_into("<QI", setup, 0x258, self.preferred, self.init_size)
        return bytes(setup) + self.payload


class Segment(NamedTuple):
    """One program header and its bytes."""

    paddr: int = 16 * MIB
    data: bytes = PAYLOAD
    kind: int = PT_LOAD
    memsz: int | None = None  # None: as in the file
    filesz: int | None = None  # None: what `data` has
    offset: int | None = None  # None: where `data` is put


@dataclass(frozen=True)
class Elf:
    """An ELF file with its program headers behind the ELF header, then the segments' bytes."""

    segments: tuple[Segment, ...] = (Segment(),)
    entry: int = 16 * MIB + 0x40
    ident: bytes = b"\x7fELF\x02\x01\x01"
    kind: int = 2
    machine: int = 62
    phoff: int = 64
    phentsize: int = 56
    phnum: int | None = None
    tail: bytes = field(default=b"")

    def build(self) -> bytes:
        """Return the file."""
        count = len(self.segments) if self.phnum is None else self.phnum
        header = self.ident.ljust(16, b"\0") + pack(
            "<HHIQQQIHHHHHH", self.kind, self.machine, 1, self.entry, self.phoff, 0, 0,
            64, self.phentsize, count, 64, 0, 0,
        )  # fmt: skip
        table, data = b"", b""
        start = 64 + 56 * len(self.segments)
        for one in self.segments:
            offset = start + len(data) if one.offset is None else one.offset
            filesz = len(one.data) if one.filesz is None else one.filesz
            memsz = filesz if one.memsz is None else one.memsz
            table += pack("<IIQQQQQQ", one.kind, 5, offset, 0, one.paddr, filesz, memsz, 0x1000)
            data += one.data
        return header + table + data + self.tail


def note(name: bytes, kind: int, desc: bytes) -> bytes:
    """Return one ELF note."""
    padded = [part + bytes(-len(part) % 4) for part in (name, desc)]
    return pack("<III", len(name), len(desc), kind) + b"".join(padded)


def pvh_note(entry: int, width: int = 8) -> bytes:
    """Return the note that gives a PVH entry point."""
    return note(b"Xen\0", 18, entry.to_bytes(width, "little"))


def raw(size: int = 64 << 10) -> bytes:
    """Return a raw vmlinux.bin."""
    return (PAYLOAD + bytes(64)).ljust(size - len(BANNER), b"\x90") + BANNER


@contextmanager
def stored(data: bytes) -> Iterator[str]:
    """Keep `data` in a regular file for the time of the context; yield its path."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
