"""What a guest may still want of a PC's BIOS: reset vector, data area, and calls that say no.

Linux with EFI support built in, on hardware-reduced ACPI, resets through EFI; where there is
none it goes on to real mode and jumps to f000:fff0 (arch/x86/kernel/reboot.c), before it tries
the ACPI reset register. Xen puts its real-mode code below the end of base memory, as the data area
has it, asks from there for memory, disks and video modes, and goes on by itself when a call comes
back with the carry flag (xen/arch/x86/boot).
"""

from __future__ import annotations

from struct import pack

from .. import layout

_SEGMENT = 0xF000


def reset_code() -> bytes:
    """Return the real-mode code, to be placed at `layout.RESET_VECTOR`: it resets the machine."""
    return b"".join(
        (
            pack("<BH", 0xBA, layout.RESET),  # mov dx, RESET
            pack("<BB", 0xB0, layout.RESET_VALUE),  # mov al, RESET_VALUE
            b"\xee",  # out dx, al
            b"\xf4",  # 1: hlt
            b"\xeb\xfd",  # jmp 1b
        )
    )


def calls() -> bytes:
    """Return the real-mode code, to be placed at `layout.BIOS_CALLS`: nothing is there to call."""
    return b"".join(
        (
            b"\x55",  # push bp
            b"\x89\xe5",  # mov bp, sp
            b"\x80\x4e\x06\x01",  # or byte [bp + 6], 1: the caller's carry flag
            b"\x5d",  # pop bp
            b"\xcf",  # iret
        )
    )


def low_memory() -> bytes:
    """Return real mode's interrupt table and BIOS data, to be placed at `layout.REAL_MODE`.

    The vectors of exceptions and of the interrupt controllers are not calls: they just return. The
    data is what says where base memory ends.
    """
    at = layout.BIOS_CALLS - (_SEGMENT << 4)
    call = pack("<HH", at, _SEGMENT)
    hardware = pack("<HH", at + len(calls()) - 1, _SEGMENT)
    table = hardware * 0x10 + call * 0x60 + hardware * 8 + call * 0x88
    return table + pack("<14xH3xH", layout.EBDA >> 4, layout.EBDA // layout.KIB)
