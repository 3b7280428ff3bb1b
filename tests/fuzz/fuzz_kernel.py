"""What `-kernel` names: a bzImage, an ELF file, a multiboot kernel or an EFI image, all damaged.

The first byte chooses a good one, or none; then come changes of it, each a place (2 bytes), a
length (1) and so many bytes; the place 0xffff cuts the file there, by the next 2 bytes.
"""

from __future__ import annotations

import functools
from struct import pack

from pyvirt.errors import ConfigError
from pyvirt.vmm.boot import loader
from pyvirt.vmm.memory import GuestMemory

from ..unit.vmm.boot import images
from ..unit.vmm.boot.images import MIB, PT_NOTE, BzImage, Elf, Segment
from .input import Input, check_line

_CUT = 0xFFFF
_MAGIC = 0x1BADB002
_PAYLOAD = bytes(range(256))


def multiboot(flags: int, *more: int) -> bytes:
    return pack(f"<{3 + len(more)}I", _MAGIC, flags, -(_MAGIC + flags) & 0xFFFF_FFFF, *more)


def elf32() -> bytes:
    data = multiboot(0) + _PAYLOAD
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, 4 * MIB + 12, 52, 0, 0, 52, 32, 1, 40, 0, 0
    )
    return head + pack("<8I", 1, 84, 0xC000_0000, 4 * MIB, len(data), 0x3000, 7, 4096) + data


def efi() -> bytes:
    dos = b"MZ".ljust(0x3C, b"\0") + pack("<I", 0x40)
    header = b"PE\0\0" + pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 0xF0, 0x22)
    return dos + header + bytes(68) + pack("<H", 10) + bytes(170) + b".linux\0\0".ljust(40, b"\0")


@functools.cache
def kernels() -> tuple[bytes, ...]:
    segment = Segment(data=_PAYLOAD)
    note = Segment(0, images.pvh_note(16 * MIB), PT_NOTE)
    flat = multiboot(1 << 16, 2 * MIB + 16, 2 * MIB, 0, 0, 2 * MIB + 64)
    return (
        b"",
        BzImage(payload=_PAYLOAD * 4).build(),
        Elf((segment,)).build(),
        Elf((segment, note)).build(),
        bytes(16) + flat + _PAYLOAD,
        elf32(),
        Elf((Segment(data=multiboot(3) + _PAYLOAD),)).build(),
        efi(),
        images.raw(8 << 10),
    )


@functools.cache
def memory() -> GuestMemory:
    return GuestMemory(64 * MIB)


def damaged(source: Input) -> bytes:
    known = kernels()
    image = bytearray(known[source.take(1) % len(known)])
    while source:
        place = source.take(2)
        if place == _CUT:
            del image[source.take(2) :]
            continue
        change = source.data(source.take(1) % 32)
        place = min(place, len(image))
        image[place : place + len(change)] = change
    return bytes(image)


def fuzz(data: bytes) -> None:
    with images.stored(damaged(Input(data))) as path:
        try:
            kernel = loader._load_kernel(path, memory())
        except ConfigError as error:
            check_line(error, f"-kernel {path}: ")
            return
    assert 0 <= kernel.entry < kernel.end <= memory().size
    assert all(0x1000 <= start < end <= memory().size for start, end in kernel.pieces)
