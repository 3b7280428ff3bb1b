"""Guest memory: one file, addressed as the guest does, and nothing outside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.vmm import layout
from pyvirt.vmm.memory import MIB, SIZE_MAX, SIZE_MIN, GuestMemory

from ..refusal import refusal

LOW = 1 << 20
SPLIT = 5 << 30  # 3 GiB below the gap, 2 GiB above it


def addresses(memory: GuestMemory) -> st.SearchStrategy[int]:
    """Addresses near every edge of the map, and some between."""
    edges = [edge for start, size in memory.regions for edge in (start, start + size)]
    near = st.builds(lambda edge, off: max(edge + off, 0), st.sampled_from(edges),
                     st.integers(-64, 64))  # fmt: skip
    return near | st.integers(0, memory.regions[-1][0] + memory.regions[-1][1])


@pytest.fixture(scope="module", params=[False, True], ids=["private", "shared"])
def split(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    memory = GuestMemory(SPLIT, shared=request.param)
    yield memory
    memory.close()


@given(st.data(), st.binary(min_size=1, max_size=128))
def test_what_is_written_is_read(split: GuestMemory, data: st.DataObject, content: bytes) -> None:
    address = data.draw(addresses(split))
    inside = any(
        start <= address and address + len(content) <= start + size for start, size in split.regions
    )
    if not inside:
        with pytest.raises(IndexError, match=f"{address:#x}"):
            split.write(address, content)
        with pytest.raises(IndexError):
            split.read(address, len(content))
        return
    split.write(address, content)
    assert split.read(address, len(content)) == content
    with split.view(address, len(content)) as view:
        view[:] = bytes(len(content))
    assert split.read(address, len(content)) == bytes(len(content))


def test_pieces_are_neighbours_in_the_file_that_others_see() -> None:
    memory = GuestMemory(SPLIT, shared=True)
    memory.write(layout.GAP_START - 4, b"low ")
    memory.write(layout.GAP_END, b"high")
    assert os.pread(memory.files[0][2], 8, layout.GAP_START - 4) == b"low high"
    memory.close()


@pytest.mark.parametrize("shared", [False, True])
def test_the_host_is_asked_for_huge_pages(shared: bool) -> None:
    """In a file as well, of which the host may leave it to who maps it (shmem_enabled)."""
    memory = GuestMemory(SIZE_MIN, shared=shared)
    is_here, flags = False, ""
    with open("/proc/self/smaps", encoding="utf-8") as file:
        for line in file:
            first = line.split()[0]
            if line.startswith("VmFlags:") and is_here:
                flags = line
            elif not first.endswith(":"):
                start, end = (int(word, 16) for word in first.split("-"))
                is_here = start <= memory.base < end
    memory.close()
    assert "hg" in flags.split()


def resident() -> int:
    """Return the bytes of memory that this process has, files and all."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("shared", [False, True])
def test_largest_memory_is_zero_and_costs_nothing(shared: bool) -> None:
    before = resident()
    memory = GuestMemory(SIZE_MAX, shared=shared)
    assert memory.read(memory.regions[1][0] + memory.regions[1][1] - 16, 16) == bytes(16)
    assert resident() - before < 16 * MIB
    memory.close()


def test_smallest_memory() -> None:
    memory = GuestMemory(SIZE_MIN)
    assert memory.regions == ((0, SIZE_MIN),)
    assert memory.files == []
    memory.close()


@pytest.mark.parametrize("shared", [False, True])
def test_memory_that_cannot_be_mapped(shared: bool) -> None:
    before = set(os.listdir("/proc/self/fd"))
    message = refusal(lambda: GuestMemory(1 << 60, shared=shared))
    assert message.startswith(f"-m: cannot map {(1 << 60) // MIB} MiB: ")
    assert set(os.listdir("/proc/self/fd")) == before


@given(st.binary(max_size=300), st.integers(0, 320), st.integers(0, 320))
def test_load_reads_a_piece_of_a_file(content: bytes, offset: int, length: int) -> None:
    memory = GuestMemory(SIZE_MIN)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        if length and offset + length > len(content):
            with pytest.raises(EOFError):
                memory.load(LOW, file.fileno(), offset, length)
        else:
            memory.load(LOW, file.fileno(), offset, length)
            assert memory.read(LOW, length) == content[offset : offset + length]
        assert memory.read(LOW + length, 16) == bytes(16)
    memory.close()


def test_load_goes_on_after_a_short_read(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(200))
    calls = []

    def short(_: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        count = min(len(buffers[0]), 64)
        buffers[0][:count] = content[offset : offset + count]
        return count

    monkeypatch.setattr(os, "preadv", short)
    memory.load(LOW, -1, 0, 200)
    assert memory.read(LOW, 200) == content
    assert calls == [0, 64, 128, 192]


def test_close_succeeds_while_a_failed_load_is_being_handled() -> None:
    memory = GuestMemory(SIZE_MIN, shared=True)
    fd = os.memfd_create("short")
    try:
        memory.load(LOW, fd, 0, 100)
    except EOFError:
        memory.close()
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory.files[0][2])


@pytest.mark.parametrize("shared", [False, True])
def test_cleared_memory_is_zero_again_and_costs_nothing(shared: bool) -> None:
    memory = GuestMemory(SIZE_MIN, shared=shared)
    native = memory.native()
    memory.write(0x1000, b"x" * 4096)
    memory.write(SIZE_MIN - 4, b"last")
    memory.clear()
    assert memory.read(0x1000, 4096) == bytes(4096)
    assert memory.read(SIZE_MIN - 4, 4) == bytes(4)
    assert not shared or os.fstat(memory.files[0][2]).st_blocks <= 2 * 4096 // 512
    memory.write(0x1000, b"again")
    assert memory.read(0x1000, 5) == b"again"
    assert memory.native() is native
    memory.close()
