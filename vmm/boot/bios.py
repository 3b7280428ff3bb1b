"""The one thing that a guest may still want of a PC's BIOS: its reset vector.

Linux with EFI support built in, on hardware-reduced ACPI, resets through EFI; where there is
none it goes on to real mode and jumps to f000:fff0 (arch/x86/kernel/reboot.c), before it tries
the ACPI reset register.
"""

from __future__ import annotations

from struct import pack

from .. import layout


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
