"""bzImage: the compressed kernel that distributions ship, by its 64-bit entry.

The kernel decompresses itself, whatever its payload. Source: Documentation/arch/x86/boot.rst,
boot protocol 2.12 and later.
"""

from __future__ import annotations

from struct import unpack_from

from ..memory import GuestMemory
from .kernel import LINUX64, Kernel, KernelFile

_VERSION_MIN = 0x020C
_XLF_KERNEL_64 = 1
_ENTRY_64 = 0x200
_MIB = 1 << 20


def recognises(file: KernelFile) -> bool:
    """Tell whether the file has the setup header's two magic numbers."""
    return file.head[0x1FE:0x200] == b"\x55\xaa" and file.head[0x202:0x206] == b"HdrS"


def _place(file: KernelFile, memory: GuestMemory, header: bytes) -> int:
    """Return the load address: the preferred one, or a lower one where RAM ends before it."""
    alignment, relocatable = unpack_from("<IB", header, 0x230)
    preferred, init_size = unpack_from("<QI", header, 0x258)
    low_end = memory.regions[0][1]
    if preferred >= _MIB and preferred + init_size <= low_end:
        return int(preferred)
    if relocatable and alignment and not alignment & (alignment - 1):
        address = max(alignment, _MIB)
        if address + init_size <= low_end:
            return int(address)
    if preferred < _MIB:
        raise file.error(f"header says address {preferred:#x}: damaged; copy it again")
    raise file.needs(preferred + init_size)


def load(file: KernelFile, memory: GuestMemory) -> Kernel:
    """Check the header and put the protected-mode part into memory."""
    header = file.head
    if len(header) < 0x268:
        raise file.truncated(0x268)
    version: int = unpack_from("<H", header, 0x206)[0]
    if version < _VERSION_MIN:
        raise file.error(
            f"boot protocol {version >> 8}.{version & 0xFF:02d}, 2.12 is the oldest accepted; "
            "use Linux 3.8 or later"
        )
    if not unpack_from("<H", header, 0x236)[0] & _XLF_KERNEL_64:
        raise file.error("a 32-bit kernel; build it with CONFIG_64BIT")
    setup = ((header[0x1F1] or 4) + 1) * 512
    length = unpack_from("<I", header, 0x1F4)[0] * 16
    if file.size < setup + length:
        raise file.truncated(setup + length)
    address = _place(file, memory, header)
    init_size: int = unpack_from("<I", header, 0x260)[0]
    if not _ENTRY_64 < length <= init_size:
        raise file.error(f"header says {length} bytes in {init_size}: damaged; copy it again")
    file.load(memory, address, setup, length)
    initrd_max, _, _, _, cmdline_max = unpack_from("<IIBBxxI", header, 0x22C)
    return Kernel(
        LINUX64,
        address + _ENTRY_64,
        address + init_size,
        header=header[0x1F1 : 0x202 + header[0x201]],
        cmdline_max=cmdline_max,
        initrd_max=initrd_max,
    )
