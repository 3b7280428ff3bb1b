"""EFI images, which need a firmware: recognised to say what to name instead.

Source: the PE/COFF specification (headers and section table), and the Unified Kernel Image
specification for the sections of one.
"""

from __future__ import annotations

from struct import unpack_from

from .kernel import KernelFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...errors import ConfigError

_PE_AT = 0x3C
_COFF = 24  # of signature and header; the optional header follows
_SUBSYSTEM = 68  # in the optional header, 32-bit or 64-bit
_EFI_SUBSYSTEMS = range(10, 14)  # application, two kinds of driver, ROM
_SECTION = 40
_SECTIONS_MAX = 96  # as Windows' loader has it


def _header(file: KernelFile) -> bytes:
    """Return the PE header up to the subsystem, b"" where there is none."""
    if file.head[:2] != b"MZ" or len(file.head) < _PE_AT + 4:
        return b""
    header = file.read(unpack_from("<I", file.head, _PE_AT)[0], _COFF + _SUBSYSTEM + 2)
    is_whole = header[:4] == b"PE\0\0" and len(header) == _COFF + _SUBSYSTEM + 2
    return header if is_whole else b""


def recognises(file: KernelFile) -> bool:
    """Tell whether the file is an EFI image."""
    header = _header(file)
    return bool(header) and unpack_from("<H", header, _COFF + _SUBSYSTEM)[0] in _EFI_SUBSYSTEMS


def _sections(file: KernelFile) -> set[bytes]:
    header = _header(file)
    count, size = unpack_from("<H12xH", header, 6)
    at = unpack_from("<I", file.head, _PE_AT)[0] + _COFF + size
    table = file.read(at, min(count, _SECTIONS_MAX) * _SECTION)
    return {table[i : i + 8].rstrip(b"\0") for i in range(0, len(table), _SECTION)}


def refusal(file: KernelFile) -> ConfigError:
    """Return the error for one, which says what would do."""
    if b".linux" in _sections(file):
        return file.error(
            "an EFI image with a Linux kernel in it; there is no firmware to start it, so take "
            "the kernel out: objcopy -O binary --only-section=.linux FILE bzImage, and so .initrd"
        )
    return file.error(
        "an EFI image; there is no firmware to start it, so name what it was made from: a bzImage, "
        "an ELF vmlinux or a multiboot kernel"
    )
