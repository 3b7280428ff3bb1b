"""ELF vmlinux: segments where they ask to be, the right entry, and what is no vmlinux refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm.boot import elf
from pyvirt.vmm.boot.kernel import LINUX64, PVH, Kernel, KernelFile
from pyvirt.vmm.memory import GuestMemory

from ...refusal import attempt, refusal
from .images import MIB, PAYLOAD, PT_LOAD, PT_NOTE, Elf, Segment, note, pvh_note, stored

ENTRY32 = 16 * MIB + 0x500
GOOD = Elf((Segment(), Segment(20 * MIB, b"data", memsz=0x8000), Segment(0, pvh_note(ENTRY32),
           PT_NOTE)))  # fmt: skip


def load(image: Elf | bytes, memory: GuestMemory) -> Kernel:
    data = image.build() if isinstance(image, Elf) else image
    with stored(data) as path, KernelFile("-kernel", path) as file:
        assert elf.recognises(file)
        return elf.load(file, memory)


def notes(*parts: bytes) -> Elf:
    return Elf((Segment(), Segment(0, b"".join(parts), PT_NOTE)))


def test_segments_lie_at_their_physical_addresses(memory: GuestMemory) -> None:
    kernel = load(GOOD, memory)
    assert memory.read(16 * MIB, len(PAYLOAD) + 1) == PAYLOAD + b"\0"
    assert memory.read(20 * MIB, 6) == b"data\0\0"
    assert kernel.end == 20 * MIB + 0x8000


def test_end_is_that_of_the_highest_segment(memory: GuestMemory) -> None:
    image = Elf((Segment(30 * MIB, b"high", memsz=MIB), Segment()))
    assert load(image, memory).end == 31 * MIB


@pytest.mark.parametrize("width", [4, 8])
def test_pvh_note_gives_the_entry(width: int, memory: GuestMemory) -> None:
    kernel = load(notes(pvh_note(ENTRY32, width)), memory)
    assert (kernel.protocol, kernel.entry) == (PVH, ENTRY32)


def test_without_a_note_the_64_bit_entry_is_used(memory: GuestMemory) -> None:
    kernel = load(Elf(), memory)
    assert (kernel.protocol, kernel.entry) == (LINUX64, 16 * MIB + 0x40)


def test_note_behind_other_notes_is_found(memory: GuestMemory) -> None:
    image = notes(
        note(b"GNU\0", 3, bytes(20)), note(b"Xen\0", 6, b"odd"), note(b"Linu\0", 18, bytes(8)),
        pvh_note(ENTRY32),
    )  # fmt: skip
    assert load(image, memory).entry == ENTRY32


@pytest.mark.parametrize("linux_first", [True, False])
def test_linux_is_entered_in_64_bits_all_the_same(linux_first: bool, memory: GuestMemory) -> None:
    """Through its PVH entry it looks for Xen in 256 leaves of CPUID."""
    both = [note(b"Linux\0", 0x101, bytes(1)), pvh_note(ENTRY32)]
    kernel = load(notes(*(both if linux_first else both[::-1])), memory)
    assert (kernel.protocol, kernel.entry) == (LINUX64, 16 * MIB + 0x40)


@pytest.mark.parametrize(
    "other",
    [
        note(b"Xen\0", 17, bytes(8)),
        note(b"XenX", 18, bytes(8)),
        note(b"Xen\0", 18, bytes(6)),
        pvh_note(ENTRY32)[:-1],
        pvh_note(ENTRY32)[:11],
        b"",
    ],
)
def test_note_that_is_no_entry_is_passed_over(other: bytes, memory: GuestMemory) -> None:
    assert load(notes(other), memory).protocol == LINUX64


def test_limits_are_those_of_linux(memory: GuestMemory) -> None:
    kernel = load(GOOD, memory)
    assert (kernel.cmdline_max, kernel.initrd_max, kernel.header) == (2047, 0x7FFF_FFFF, b"")


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (3, "i386"),
        (40, "ARM"),
        (183, "arm64"),
        (243, "RISC-V"),
        (22, "S/390"),
        (258, "ELF machine 258"),
    ],
)
def test_another_machine(machine: int, name: str, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, machine=machine), memory))
    assert message.endswith(f": a file for {name}; name an x86-64 vmlinux")


@pytest.mark.parametrize("ident", [b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x02\x01"])
def test_32_bit_or_big_endian(ident: bytes, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, ident=ident), memory))
    assert "not a 64-bit little-endian ELF file; name an x86-64 vmlinux" in message


@pytest.mark.parametrize("kind", [0, 1, 4])
def test_object_and_core_files(kind: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, kind=kind), memory))
    assert message.endswith("not executable; name a vmlinux")


def test_position_independent_kernel(memory: GuestMemory) -> None:
    assert load(replace(GOOD, kind=3), memory).entry == ENTRY32


@pytest.mark.parametrize("image", [Elf(()), Elf(phnum=0), Elf(phentsize=32)])
def test_no_program_headers(image: Elf, memory: GuestMemory) -> None:
    assert "without program headers; name a vmlinux" in refusal(lambda: load(image, memory))


@pytest.mark.parametrize("segment", [Segment(data=b""), Segment(kind=PT_NOTE), Segment(kind=0)])
def test_nothing_to_load(segment: Segment, memory: GuestMemory) -> None:
    assert "nothing to load; name a vmlinux" in refusal(lambda: load(Elf((segment,)), memory))


@pytest.mark.parametrize("address", [0, 0x1000, MIB - 1])
def test_segment_below_one_mib(address: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(Elf((Segment(address),)), memory))
    assert f"a segment at {address:#x}, below 1 MiB: no kernel; name a vmlinux" in message


def test_lowest_segment_accepted(memory: GuestMemory) -> None:
    assert load(Elf((Segment(MIB),), entry=MIB), memory).entry == MIB


@pytest.mark.parametrize("kind", [3, 7])
def test_program_of_the_host(kind: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(Elf((Segment(4 * MIB), Segment(kind=kind))), memory))
    assert message.endswith("a program, not a kernel; name a vmlinux")


def test_shell_of_this_machine_is_no_kernel(memory: GuestMemory) -> None:
    message = refusal(lambda: load(Path("/bin/sh").read_bytes(), memory))
    assert message.endswith("a program, not a kernel; name a vmlinux")


@pytest.mark.parametrize("entry", [0, 16 * MIB - 1, 16 * MIB + len(PAYLOAD), 0xFFFF_FFFF_8100_0000])
def test_entry_outside_the_segments(entry: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(Elf(entry=entry), memory))
    assert f"entered at {entry:#x}, outside its segments: no kernel" in message
    message = refusal(lambda: load(notes(pvh_note(entry)), memory))
    assert f"entered at {entry:#x}, outside its segments: no kernel" in message


def test_segment_fits_exactly(memory: GuestMemory) -> None:
    image = Elf((Segment(), Segment(100 * MIB, b"x", memsz=28 * MIB)))
    assert load(image, memory).end == 128 * MIB
    image = Elf((Segment(), Segment(100 * MIB, b"x", memsz=28 * MIB + 1)))
    assert refusal(lambda: load(image, memory)).endswith("memory up to 129 MiB; raise -m")


@pytest.mark.parametrize("address", [3 << 30, 5 << 30, 2**64 - 1])
def test_segment_where_memory_never_is(address: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(Elf((Segment(address, b"x"),)), memory))
    assert "where there is none" in message
    assert "raise -m" not in message


def test_segment_larger_in_the_file(memory: GuestMemory) -> None:
    message = refusal(lambda: load(Elf((Segment(memsz=1),)), memory))
    assert "larger in the file than in memory: damaged; copy it again" in message


@pytest.mark.parametrize("size", [4, 5, 63])
def test_truncated_in_the_header(size: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(GOOD.build()[:size], memory))
    assert f"truncated: {size} bytes where its header says 64; copy it again" in message


@pytest.mark.parametrize("size", [64, 65, 64 + 56, 64 + 3 * 56 - 1])
def test_truncated_in_the_program_headers(size: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(GOOD.build()[:size], memory))
    assert f"truncated: {size} bytes where its header says {64 + 3 * 56};" in message


@pytest.mark.parametrize("missing", [1, 2, 100])
def test_truncated_in_a_segment(missing: int, memory: GuestMemory) -> None:
    data = Elf().build()
    message = refusal(lambda: load(data[:-missing], memory))
    assert f"{len(data) - missing} bytes where its header says {len(data)};" in message


@pytest.mark.parametrize("phoff", [1 << 20, 2**63 - 1, 2**63, 2**64 - 1])
def test_program_headers_behind_the_end(phoff: int, memory: GuestMemory) -> None:
    message = refusal(lambda: load(replace(GOOD, phoff=phoff), memory))
    assert f"header says {phoff + 3 * 56}; copy it again" in message


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("kind", [PT_LOAD, PT_NOTE])
def test_segment_behind_the_end(offset: int, kind: int, memory: GuestMemory) -> None:
    image = Elf((Segment(), Segment(20 * MIB, b"1234", kind=kind, offset=offset)))
    if kind == PT_NOTE:
        assert load(image, memory).protocol == LINUX64
    else:
        assert "truncated" in refusal(lambda: load(image, memory))


def test_every_truncation_is_refused(memory: GuestMemory) -> None:
    data = GOOD.build()
    for size in range(4, len(data) - len(pvh_note(ENTRY32)), 7):
        assert "truncated" in refusal(partial(load, data[:size], memory))


words = st.sampled_from([0, 1, 2, 3, 4, 7, 56, 64, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
mutations = st.lists(
    st.tuples(st.integers(0, 64 + 3 * 56), words | st.integers(0, 128 * MIB)),
    min_size=1,
    max_size=6,
)


@given(mutations, st.none() | st.integers(0, 300))
def test_mutated_file_is_loaded_into_memory_or_refused(
    changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(GOOD.build())
    for at, value in changes:
        pack_into("<Q", data, at, value)
    data[:4] = b"\x7fELF"
    data = data[: None if cut is None else 4 + cut]
    memory = GuestMemory(128 * MIB)
    kernel = attempt(lambda: load(bytes(data), memory))
    if kernel is not None:
        assert MIB <= kernel.entry < kernel.end <= 128 * MIB
    memory.close()


@given(st.binary(max_size=400))
def test_any_bytes_behind_the_magic_are_refused(data: bytes) -> None:
    memory = GuestMemory(128 * MIB)
    try:
        refusal(lambda: load(b"\x7fELF" + data, memory))
    finally:
        memory.close()


@given(st.binary(max_size=400) | st.lists(st.builds(note, st.binary(max_size=8), words.filter(
    lambda n: n < 2**32), st.binary(max_size=16))).map(b"".join))  # fmt: skip
def test_any_notes_are_read(data: bytes) -> None:
    memory = GuestMemory(128 * MIB)
    try:
        assert load(notes(data), memory).protocol == LINUX64
    finally:
        memory.close()
