"""Raw vmlinux.bin: known by its banner; everything else is named for what it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm.boot import raw
from pyvirt.vmm.boot.kernel import LINUX64, Kernel, KernelFile

from ...refusal import refusal
from . import images
from .images import BANNER, MIB, stored

if TYPE_CHECKING:
    from pyvirt.vmm.memory import GuestMemory

NO_KERNEL = "not a kernel; name a bzImage, an ELF vmlinux or a raw vmlinux.bin"


def load(data: bytes, memory: GuestMemory) -> Kernel:
    with stored(data) as path, KernelFile("-kernel", path) as file:
        return raw.load(file, memory)


def test_file_lies_at_16_mib_and_is_entered_there(memory: GuestMemory) -> None:
    data = images.raw()
    kernel = load(data, memory)
    assert (kernel.protocol, kernel.entry, kernel.header) == (LINUX64, 16 * MIB, b"")
    assert memory.read(16 * MIB, len(data)) == data
    assert kernel.end > 16 * MIB + len(data), "the bss lies behind the file"


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd", "lz4"])
def test_compressed_kernel_is_named(name: str, memory: GuestMemory) -> None:
    packed = {
        "gzip": gzip.compress(images.raw(), mtime=0),
        "xz": lzma.compress(images.raw()),
        "zstd": b"\x28\xb5\x2f\xfd" + images.raw(),
        "lz4": b"\x02\x21\x4c\x18" + images.raw(),
    }
    message = refusal(lambda: load(packed[name], memory))
    assert message.endswith(f": {name}-compressed; unpack it first")


@pytest.mark.parametrize(("magic", "name"), [(b"ARM\x64", "arm64"), (b"RSC\x05", "RISC-V")])
def test_kernel_for_another_machine(magic: bytes, name: str, memory: GuestMemory) -> None:
    data = bytes(0x38) + magic + images.raw()
    message = refusal(lambda: load(data, memory))
    assert message.endswith(f": a kernel for {name}; name an x86-64 one")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"\0",
        b"#!/bin/sh\nexec true\n",
        b"[    0.000000] Linux version 6.1.0-amd64 (gcc-12) #1 SMP\n" * 300,
        bz2.compress(images.raw()),
        bytes(1 << 16),
        images.raw()[: -len(BANNER)],
    ],
    ids=["empty", "byte", "zero", "script", "boot-log", "bzip2", "zeros", "cut"],
)
def test_what_is_no_kernel(data: bytes, memory: GuestMemory) -> None:
    assert refusal(lambda: load(data, memory)).endswith(NO_KERNEL)


def test_source_text_is_no_kernel(memory: GuestMemory) -> None:
    assert refusal(lambda: load(Path(__file__).read_bytes(), memory)).endswith(NO_KERNEL)


def test_larger_than_memory(memory: GuestMemory) -> None:
    room = 128 * MIB - 16 * MIB - (load(images.raw(), memory).end - 16 * MIB - len(images.raw()))
    assert load(images.raw(room), memory).end == 128 * MIB
    message = refusal(lambda: load(images.raw(room + 1), memory))
    assert message.endswith("needs memory up to 129 MiB; raise -m")


@given(st.binary(max_size=200).filter(lambda data: BANNER[:14] not in data))
def test_bytes_without_a_banner_are_refused(data: bytes) -> None:
    # Refused before memory is touched, so there need not be any.
    refusal(lambda: load(data, None))  # type: ignore[arg-type]
