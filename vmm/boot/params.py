"""What a kernel reads about its machine: Linux's zero page, or PVH's start info.

Sources: Documentation/arch/x86/zero-page.rst and boot.rst;
xen/include/public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

from struct import pack, pack_into

from .. import layout
from ..memory import GuestMemory
from .kernel import Kernel

_PAGE = 4096
_LOADER_UNDEFINED = 0xFF
_BOOT_FLAG = 0xAA55
_HDRS = int.from_bytes(b"HdrS", "little")
_KERNEL_ALIGNMENT = 0x100_0000

_START_MAGIC = 0x336EC578
_START_VERSION = 1


def zero_page(
    memory: GuestMemory, kernel: Kernel, initrd: tuple[int, int], cmdline_size: int, rsdp: int
) -> None:
    """Write the zero page; `initrd` is (address, size), `rsdp` 0 where there is no ACPI."""
    page = bytearray(_PAGE)
    if kernel.header:
        page[0x1F1 : 0x1F1 + len(kernel.header)] = kernel.header
    else:
        pack_into("<H", page, 0x1FE, _BOOT_FLAG)
        pack_into("<I", page, 0x202, _HDRS)
        pack_into("<I", page, 0x230, _KERNEL_ALIGNMENT)
        pack_into("<I", page, 0x238, cmdline_size)
    address, size = initrd
    pack_into("<Q", page, 0x070, rsdp)
    pack_into("<II", page, 0x0C0, address >> 32, size >> 32)
    pack_into("<B", page, 0x210, _LOADER_UNDEFINED)
    pack_into("<II", page, 0x218, address & 0xFFFF_FFFF, size & 0xFFFF_FFFF)
    pack_into("<I", page, 0x228, layout.CMDLINE)
    entries = layout.e820(memory.size)
    page[0x1E8] = len(entries)
    for i, entry in enumerate(entries):
        pack_into("<QQI", page, 0x2D0 + 20 * i, *entry)
    memory.write(layout.ZERO_PAGE, bytes(page))


def start_info(memory: GuestMemory, initrd: tuple[int, int], rsdp: int) -> None:
    """Write PVH's start info with its module list and memory map behind it."""
    address, size = initrd
    entries = layout.e820(memory.size)
    modules = layout.PVH_START_INFO + 56
    memory_map = modules + 32
    memory.write(
        layout.PVH_START_INFO,
        pack(
            "<IIIIQQQQII",
            _START_MAGIC,
            _START_VERSION,
            0,
            1 if size else 0,
            modules if size else 0,
            layout.CMDLINE,
            rsdp,
            memory_map,
            len(entries),
            0,
        )
        + pack("<QQQQ", address, size, 0, 0)
        + b"".join(pack("<QQII", *entry, 0) for entry in entries),
    )
