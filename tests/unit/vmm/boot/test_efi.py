"""EFI images are told from kernels, and their refusal says what to take instead."""

from __future__ import annotations

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm.boot import loader
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.memory import GuestMemory

from ...refusal import attempt, refusal
from .images import MIB, BzImage, stored
from .test_multiboot import header

EFI_APPLICATION, EFI_ROM, WINDOWS_CONSOLE = 10, 13, 3


def image(*sections: bytes, subsystem: int = EFI_APPLICATION, at: int = 0x80) -> bytes:
    """Return the head of a 64-bit PE file, with a multiboot header as xen.efi has one."""
    optional = pack("<H66xH", 0x20B, subsystem).ljust(240, b"\0")
    coff = b"PE\0\0" + pack("<HH12xHH", 0x8664, len(sections), len(optional), 0x22)
    table = b"".join(name.ljust(40, b"\0") for name in sections)
    start = (b"MZ".ljust(0x3C, b"\0") + pack("<I", at)).ljust(at, b"\0")
    return (start + coff + optional + table).ljust(4096, b"\0") + header(3) + bytes(4096)


def refused(data: bytes, memory: GuestMemory) -> str:
    with stored(data) as path:
        return refusal(lambda: loader.load(MachineConfig(path), memory, -1))


def test_an_application(memory: GuestMemory) -> None:
    message = refused(image(b".text", b".data"), memory)
    assert "an EFI image; there is no firmware to start it, so name what it was made" in message


@pytest.mark.parametrize("at", [0x40, 0x80, 3000, 5000])
def test_a_unified_kernel_image(at: int, memory: GuestMemory) -> None:
    message = refused(image(b".text", b".osrel", b".linux", b".initrd", at=at), memory)
    assert "objcopy -O binary --only-section=.linux FILE bzImage" in message


@pytest.mark.parametrize(
    "data",
    [
        image(b".text", subsystem=WINDOWS_CONSOLE)[:4096],
        image(b".text", at=1 << 20)[:4096],
        image(b".text")[:0x90].ljust(4096, b"\0"),
        b"MZ",
    ],
)
def test_what_is_none(data: bytes, memory: GuestMemory) -> None:
    assert "not a kernel; name a bzImage" in refused(data, memory)


def test_a_bzimage_with_an_efi_stub_is_a_bzimage(memory: GuestMemory) -> None:
    data = bytearray(BzImage().build())
    data[0:2] = b"MZ"
    data[0x3C:0x40] = pack("<I", 0x80)
    data[0x80:0x84] = b"PE\0\0"
    data[0x80 + 24 + 68] = EFI_APPLICATION
    with stored(bytes(data)) as path:
        assert loader.place(MachineConfig(path), memory).entry == 16 * MIB + 0x200


@given(st.binary(max_size=400), st.integers(0, 512))
def test_damaged_images_are_refused(damage: bytes, at: int) -> None:
    data = bytearray(image(b".linux"))
    data[at : at + len(damage)] = damage
    memory = GuestMemory(128 * MIB)
    try:
        with stored(bytes(data)) as path:
            attempt(lambda: loader.place(MachineConfig(path), memory))
    finally:
        memory.close()
