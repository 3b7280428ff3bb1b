"""Multiboot 1: the way into small kernels, kvm-unit-tests among them.

The header is found in the file's first 8 KiB; it gives the load addresses itself or leaves them
to ELF, 32-bit or 64-bit. Source: Multiboot Specification 0.6.96.
"""

from __future__ import annotations

from struct import pack, unpack_from

from ...errors import ConfigError
from .. import layout
from ..memory import GuestMemory
from . import elf
from .kernel import MULTIBOOT, Kernel, KernelFile

IN_EAX = 0x2BAD_B002  # what tells the kernel that a multiboot loader entered it

_MAGIC = 0x1BAD_B002.to_bytes(4, "little")
_SEARCHED = 8192
_HEADER = 12
_ADDRESSES = 20
# Flags of the header. Modules are aligned and the memory map is given, asked for or not.
_ALIGN_MODULES, _MEMORY_MAP, _VIDEO, _HAS_ADDRESSES = 1 << 0, 1 << 1, 1 << 2, 1 << 16
_REQUIREMENTS = 0xFFFF

# Flags of the boot information.
_INFO_MEMORY, _INFO_CMDLINE, _INFO_MODULES = 1 << 0, 1 << 2, 1 << 3
_INFO_MEMORY_MAP, _INFO_LOADER_NAME = 1 << 6, 1 << 9
_INFO = "<4I 3I 16x 2I 12x I 20x"  # 88 bytes
_INFO_SIZE = 88
_LOADER_NAME = b"pyvirt\0\0"
_PAGE = 4096
_NO_VIDEO = "it asks for a video mode; there is no display, use its serial console"


def _header(file: KernelFile) -> tuple[int, int] | None:
    """Return where in the file the header is, and its flags."""
    data = file.head + file.read(len(file.head), _SEARCHED - len(file.head))
    at = data.find(_MAGIC)
    while 0 <= at <= len(data) - _HEADER:
        _, flags, checksum = unpack_from("<III", data, at)
        if at % 4 == 0 and (0x1BAD_B002 + flags + checksum) & 0xFFFF_FFFF == 0:
            return at, flags
        at = data.find(_MAGIC, at + 1)
    return None


def recognises(file: KernelFile) -> bool:
    """Tell whether the file has a multiboot header."""
    return _header(file) is not None


def load(file: KernelFile, memory: GuestMemory) -> Kernel:
    """Put the kernel where its header, or else its ELF segments, ask for it."""
    found = _header(file)
    assert found is not None
    at, flags = found
    unknown = flags & _REQUIREMENTS & ~(_ALIGN_MODULES | _MEMORY_MAP | _VIDEO)
    if unknown:
        raise file.error(
            f"its multiboot header requires {unknown:#x}, which is not here; build it without"
        )
    load_pieces = _load_flat if flags & _HAS_ADDRESSES else _load_elf
    entry, pieces = load_pieces(file, memory, at)
    elf.check_entry(file, entry, pieces)
    # As QEMU does: most kernels that ask for a mode do without, or use the serial port.
    notes = [f"{file.option} {file.path}: {_NO_VIDEO}"] if flags & _VIDEO else []
    return Kernel(MULTIBOOT, entry, max(end for _, end in pieces), pieces=pieces, notes=notes)


def _load_flat(file: KernelFile, memory: GuestMemory, at: int) -> tuple[int, list[tuple[int, int]]]:
    """Load by the header's addresses; return the entry point and where the kernel is."""
    data = file.read(at + _HEADER, _ADDRESSES)
    if len(data) < _ADDRESSES:
        raise file.truncated(at + _HEADER + _ADDRESSES)
    header, start, data_end, bss_end, entry = unpack_from("<5I", data)
    offset = at - (header - start)
    length = data_end - start if data_end else file.size - offset
    end = max(bss_end, start + length)
    if offset < 0 or start > header or length <= 0:
        raise file.error("its multiboot header contradicts itself: damaged; copy it again")
    if offset + length > file.size:
        raise file.truncated(offset + length)
    if start < layout.HIGH_MEMORY:
        file.check_low(start, end)
    if end > memory.regions[0][1]:
        raise file.needs(end)
    file.load(memory, start, offset, length)
    return entry, [(start, end)]


def _load_elf(file: KernelFile, memory: GuestMemory, _: int) -> tuple[int, list[tuple[int, int]]]:
    """Load by the ELF segments; return the entry point and where the kernel is."""
    machines = {elf.ELFCLASS32: elf.EM_386, elf.ELFCLASS64: elf.EM_X86_64}
    kind = file.head[4:5]
    if not elf.recognises(file) or not kind or kind[0] not in machines:
        raise file.error("a multiboot header without addresses in a file that is not ELF")
    entry, segments = elf.headers(file, machines[kind[0]])
    pieces = elf.place(file, memory, segments, low=True)
    # As QEMU and GRUB have it; GNU Mach's is where its own page tables will have it.
    return elf.physical(entry, segments), pieces


def _free_page(kernel: Kernel) -> int:
    """Return a page below 1 MiB that the kernel leaves free; ConfigError."""
    pages: list[int] = [
        layout.MULTIBOOT_INFO,
        *range(layout.LOW_MEMORY, layout.EBDA - _PAGE, _PAGE),
    ]
    for page in pages:
        if not any(start < page + _PAGE and page < end for start, end in kernel.pieces):
            return page
    raise ConfigError("-kernel: it leaves no room for the boot information; link it higher")


def boot_information(
    memory: GuestMemory, kernel: Kernel, cmdline: bytes, initrd: tuple[int, int], module: bytes
) -> None:
    """Write what EBX points to into a page of its own, and note where that is.

    `cmdline` and `module` end in zero; `initrd`, as (address, size), is the one module if there is
    one, and `module` its own command line. ConfigError when there is no such page.
    """
    address, size = initrd
    place = kernel.info = _free_page(kernel)
    modules = place + _INFO_SIZE
    name = modules + 16
    memory_map = name + len(_LOADER_NAME)
    regions = b"".join(pack("<IQQI", 20, *entry) for entry in layout.e820(memory.size))
    words = memory_map + len(regions)
    flags = _INFO_MEMORY | _INFO_CMDLINE | _INFO_MODULES | _INFO_MEMORY_MAP | _INFO_LOADER_NAME
    info = pack(
        _INFO,
        flags,
        layout.EBDA // layout.KIB,
        (memory.regions[0][1] - layout.HIGH_MEMORY) // layout.KIB,
        0,
        words,
        1 if size else 0,
        modules,
        len(regions),
        memory_map,
        name,
    )
    modules_table = pack("<4I", address, address + size, words + len(cmdline), 0)
    everything = info + modules_table + _LOADER_NAME + regions + cmdline + module
    assert len(everything) <= _PAGE
    memory.write(place, everything)
