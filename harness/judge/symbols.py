"""Names for addresses in a kernel, from wherever the kernel's symbols can be had.

Addresses hold for a kernel that runs where it was linked: `nokaslr`.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from ... import files
from ...errors import BackendError, ConfigError
from .. import cache
from ..guest import vmlinux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ..guest.kernel import Kernel

IN_A_MODULE = "(in a module)"
_SIZE_MAX = 1 << 20  # bytes of a function; what is further behind a symbol is not its
_ADDRESS_END = 1 << 64
_MAP_MAX = 256 << 20  # bytes of a System.map
# Where x86-64 puts modules (Documentation/arch/x86/x86_64/mm.rst): with RANDOMIZE_BASE from
# 0xffffffffc0000000 on, and no kernel's own text is above either.
_MODULES = range(0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FF00_0000)
# A line of /proc/kallsyms or System.map: address, type, name, and the module for one of a module.
_ROW = re.compile(
    r"^([0-9a-f]{8,16}) (\w) ([!-~]{1,512})(?:[ \t]+\[([\w-]{1,64})\])?$", re.MULTILINE
)
_TEXT_TYPES = frozenset("tTwWi")

_EHDR = struct.Struct("<16s2HI3QI6H")
_SHDR = struct.Struct("<2I4Q2I2Q")
_SYM = struct.Struct("<I2BH2Q")
_SHT_SYMTAB, _SHF_EXECINSTR = 2, 4
_NAMELESS = (3, 4)  # types of symbols that stand for sections and files


class Symbols:
    """The functions of one kernel, by address."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        """Take (address, name) of functions; one without a name only ends what is before it."""
        self._starts = array("Q")
        self._names: list[str] = []
        for address, name in sorted(rows, key=lambda row: row[0]):
            # Of several names for an address the first counts, as in the kernel's own reports.
            if not self._starts or self._starts[-1] != address:
                self._starts.append(address)
                self._names.append(name)
            elif not self._names[-1]:
                self._names[-1] = name

    def __bool__(self) -> bool:
        """Return whether there is a name at all."""
        return any(self._names)

    @classmethod
    def from_kallsyms(cls, text: str, *, modules: bool = True) -> Symbols:
        """Read the text of /proc/kallsyms; ConfigError where it hides the addresses.

        What it says of `modules` holds for the boot that it comes from and no other.
        """
        symbols = cls(_rows(text, modules=modules))
        if not symbols:
            raise ConfigError(
                "/proc/kallsyms: no function has an address; read it as root, with "
                "kernel.kptr_restrict 0 or 1, from a kernel with CONFIG_KALLSYMS"
            )
        return symbols

    @classmethod
    def from_system_map(cls, text: str) -> Symbols:
        """Read the text of a System.map; it may hold nothing, as Debian's does."""
        return cls(_rows(text))

    @classmethod
    def from_vmlinux(cls, path: Path) -> Symbols:
        """Read an ELF file's symbol table; a stripped one has none. ConfigError."""
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                return cls(_elf_rows(data))
        except (struct.error, IndexError, OverflowError, ValueError):
            raise ConfigError(f"{path}: it is no ELF file of a 64-bit kernel") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None

    def _find(self, address: int) -> int | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or not self._names[index]:
            return None
        return index if address - self._starts[index] < self._size(index) else None

    def _size(self, index: int) -> int:
        after = self._starts[index + 1] if index + 1 < len(self._starts) else _ADDRESS_END
        return min(after - self._starts[index], _SIZE_MAX)

    def is_text(self, address: int) -> bool:
        """Return whether there is a function at an address, or can be: that of a module."""
        return address in _MODULES or self._find(address) is not None

    def name_of(self, address: int) -> str | None:
        """Return function, offset and size, as "vfs_write+0xb5/0x290"; None in no function.

        An address in a module whose functions are not known is called that: `IN_A_MODULE`.
        """
        return self._name(address, self._find(address))

    def name_of_caller(self, address: int) -> str | None:
        """Return the same for a return address, which may be just behind its function's end."""
        return self._name(address, self._find(address - 1))

    def _name(self, address: int, index: int | None) -> str | None:
        if index is None:
            return IN_A_MODULE if address in _MODULES else None
        name, _, module = self._names[index].partition(" ")
        place = f"{name}+{address - self._starts[index]:#x}/{self._size(index):#x}"
        return f"{place} {module}" if module else place


def _rows(text: str, *, modules: bool = True) -> Iterator[tuple[int, str]]:
    for digits, kind, name, module in _ROW.findall(text):
        address = int(digits, 16)
        if address and (modules or not module):
            is_text = kind in _TEXT_TYPES
            yield address, (f"{name} [{module}]" if module else name) if is_text else ""


def _elf_rows(data: mmap.mmap) -> Iterator[tuple[int, str]]:
    ident, *_, shoff, _, _, _, _, shentsize, shnum, _ = _EHDR.unpack_from(data)
    if ident[:6] != b"\x7fELF\x02\x01" or shentsize != _SHDR.size:
        raise ValueError
    sections = [_SHDR.unpack_from(data, shoff + number * shentsize) for number in range(shnum)]
    code = {number for number, (_, _, flags, *_) in enumerate(sections) if flags & _SHF_EXECINSTR}
    for number in code:
        _, _, _, address, _, size, *_ = sections[number]
        yield address + size, ""
    for _, kind, _, _, offset, size, link, *_ in sections:
        if kind != _SHT_SYMTAB:
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, _SYM.size):
            name, info, _, section, value, _ = _SYM.unpack_from(data, at)
            if section in code and info & 15 not in _NAMELESS:
                text = data[names + name : data.find(b"\0", names + name)].decode(
                    "ascii", "replace"
                )
                if text:
                    yield value, text


def for_kernel(kernel: Kernel, fetch: Callable[[], str]) -> Symbols:
    """Return the symbols of a kernel, without those of modules, which each boot puts elsewhere.

    They come from `kernel.symbols`, a vmlinux or System.map; else from one beside the image or at
    the root of the tree that it was built in; else from `fetch`, which returns the /proc/kallsyms
    of that kernel, running with nokaslr, and is called once for each image. ConfigError,
    BackendError, and what `fetch` raises.
    """
    if kernel.symbols is not None:
        symbols = _of_file(kernel.symbols)
        if not symbols:
            raise ConfigError(f"{kernel.symbols}: it has no symbols; name an unstripped vmlinux")
        return symbols
    for path in _beside(kernel):
        if path.is_file() and _is_of(path, kernel.release):
            symbols = _of_file(path)
            if symbols:
                return symbols

    def save(place: Path) -> None:
        text = fetch()
        Symbols.from_kallsyms(text, modules=False)  # before it stays in the cache
        place.write_text(text, encoding="utf-8")

    entry = cache.entry(f"kallsyms-{cache.digest(vmlinux.read(kernel.image))}", save)
    return Symbols.from_kallsyms(entry.read_text(encoding="utf-8"), modules=False)


def _beside(kernel: Kernel) -> Iterator[Path]:
    if kernel.vmlinux is not None:
        yield kernel.vmlinux
    folders = [kernel.image.parent]
    if kernel.image.parts[-4:-1] == ("arch", "x86", "boot"):
        folders.append(kernel.image.parents[3])
    for folder in folders:
        yield folder / "vmlinux"
        yield folder / f"System.map-{kernel.release}"
        yield folder / "System.map"


def _is_of(path: Path, release: str) -> bool:
    """Return whether a file is not the vmlinux of some other kernel."""
    if path.name != "vmlinux":
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(f"Linux version {release} ".encode()) >= 0


def _of_file(path: Path) -> Symbols:
    try:
        with open(files.open_regular(str(path), os.O_RDONLY), "rb") as file:
            is_elf = file.read(4) == b"\x7fELF"
        if is_elf:
            return Symbols.from_vmlinux(path)
        text = files.read(str(path), _MAP_MAX).decode("ascii", "replace")
        return Symbols.from_system_map(text)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}; name another file") from None
