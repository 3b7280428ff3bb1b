"""Raw vmlinux.bin (`objcopy -O binary vmlinux`): StratoVirt's own format, entered at 16 MiB.

It has no header. What tells it from any other file is the banner that every Linux kernel
carries in its read-only data.
"""

from __future__ import annotations

import mmap

from .. import layout
from ..memory import GuestMemory
from .kernel import LINUX64, Kernel, KernelFile

_BANNER = b"Linux version "
# The file ends before the kernel's bss and early page tables do.
_BSS_ROOM = 32 << 20
_FORMATS = (
    (0, b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (0, b"\xfd7zXZ", "xz-compressed; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed; unpack it first"),
    (0x38, b"ARM\x64", "a kernel for arm64; name an x86-64 one"),
    (0x38, b"RSC\x05", "a kernel for RISC-V; name an x86-64 one"),
)


def _is_linux(file: KernelFile) -> bool:
    # Text that quotes a banner, a boot log say, has no zeros; code has.
    if b"\0" not in file.head:
        return False
    try:
        with mmap.mmap(file.fd, file.size, mmap.MAP_PRIVATE, mmap.PROT_READ) as data:
            return data.find(_BANNER) >= 0
    except OSError as error:
        raise file.unreadable(error) from None


def load(file: KernelFile, memory: GuestMemory) -> Kernel:
    """Put the whole file at 16 MiB; ConfigError when it is no Linux kernel."""
    for offset, magic, what in _FORMATS:
        if file.head[offset : offset + len(magic)] == magic:
            raise file.error(what)
    if not _is_linux(file):
        raise file.error("not a kernel; name a bzImage, an ELF vmlinux or a raw vmlinux.bin")
    end = layout.KERNEL + file.size + _BSS_ROOM
    if end > memory.regions[0][1]:
        raise file.needs(end)
    file.load(memory, layout.KERNEL, 0, file.size)
    return Kernel(LINUX64, layout.KERNEL, end)
