"""What symbols of a kernel are read from: a vmlinux, /proc/kallsyms, a System.map, a bzImage.

The first byte chooses; of a vmlinux and a bzImage the rest is changes, as fuzz_kernel.py has them.
"""

from __future__ import annotations

import functools
import zlib
from pathlib import Path
from struct import pack

from pyvirt.errors import ConfigError
from pyvirt.harness.guest import vmlinux
from pyvirt.harness.judge.symbols import Symbols

from ..unit.vmm.boot import images
from .input import Input, check_line

_TEXT = 0xFFFF_FFFF_8100_0000


@functools.cache
def an_elf() -> bytes:
    """Return an ELF file with two functions."""
    names = b"\0first\0second\0"
    symbols = bytes(24) + b"".join(
        pack("<I2BH2Q", at, 2, 0, 1, _TEXT + 16 * number, 16) for number, at in enumerate((1, 7))
    )
    sections = (
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (0, 1, 6, _TEXT, 0, 64, 0, 0, 16, 0),
        (0, 2, 0, 0, 64, len(symbols), 3, 0, 8, 24),
        (0, 3, 0, 0, 64 + len(symbols), len(names), 0, 0, 1, 0),
    )
    start = 64 + len(symbols) + len(names)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + pack(
        "<2HI3QI6H", 2, 62, 1, _TEXT, 0, start, 0, 64, 0, 0, 64, 4, 3
    )
    return head + symbols + names + b"".join(pack("<2I4Q2I2Q", *one) for one in sections)


@functools.cache
def a_bzimage() -> bytes:
    """Return a bzImage with an ELF file, packed."""
    content = an_elf()
    packer = zlib.compressobj(wbits=31)
    payload = packer.compress(content) + packer.flush()
    image = bytearray(images.BzImage(payload=payload).build())
    image[0x248:0x250] = pack("<II", 0, len(payload))
    return bytes(image)


def damaged(image: bytes, source: Input) -> bytes:
    changed = bytearray(image)
    while source:
        place, change = source.take(2) % len(changed), source.data(source.take(1) % 16)
        changed[place : place + len(change)] = change
    return bytes(changed)


def use(symbols: Symbols) -> None:
    for address in (0, _TEXT, _TEXT + 20, (1 << 64) - 1):
        assert (symbols.name_of(address) is not None) <= symbols.is_text(address)
        symbols.name_of_caller(address)


def fuzz(data: bytes) -> None:
    source = Input(data)
    choice = source.take(1) % 4
    try:
        if choice == 0:
            with images.stored(damaged(an_elf(), source)) as path:
                use(Symbols.from_vmlinux(Path(path)))
        elif choice == 1:
            use(Symbols.from_kallsyms(source.rest().decode("ascii", "replace")))
        elif choice == 2:
            use(Symbols.from_system_map(source.rest().decode("ascii", "replace")))
        else:
            vmlinux.extract(damaged(a_bzimage(), source))
    except ConfigError as error:
        check_line(error)
