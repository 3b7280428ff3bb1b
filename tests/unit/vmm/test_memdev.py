"""Guest memory of several pieces: one memory to all but those who map its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.vhost_user.layout import regions
from pyvirt.errors import BackendError
from pyvirt.native import ffi, lib
from pyvirt.vmm import layout
from pyvirt.vmm.backing import Backing
from pyvirt.vmm.memdev import Memdev
from pyvirt.vmm.memory import MIB, SIZE_MIN, GuestMemory

from ..refusal import refusal

BORDER = 128 * MIB
GIB = 1 << 30


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def private(size: int = BORDER, **more: Any) -> Memdev:
    return Memdev("-object ram", size, **more)


def memfd(size: int = BORDER) -> Memdev:
    return Memdev("-object memfd", size, backing=Backing("-object memfd", shared=True))


def made_of(*memdevs: Memdev, shared: bool = False) -> GuestMemory:
    return GuestMemory(sum(one.size for one in memdevs), memdevs=memdevs, shared=shared)


def test_what_crosses_a_border_is_one_piece(tmp_path: Path) -> None:
    file = Memdev("-object file", BORDER, backing=Backing("-object file", path=str(tmp_path)))
    for memdevs in ([private(), memfd()], [memfd(), private()], [file, memfd(), file]):
        memory = made_of(*memdevs)
        text = b"both sides"
        memory.write(BORDER - 4, text)
        assert memory.read(BORDER - 4, len(text)) == text
        at = ffi.cast("char *", lib.pv_memory_at(memory.native(), BORDER - 4, len(text)))
        assert ffi.buffer(at, len(text))[:] == text, "the data path has it in one piece too"
        memory.close()


def test_each_file_has_its_part() -> None:
    before = descriptors()
    memory = made_of(memfd(), private(), memfd(64 * MIB))
    memory.write(BORDER - 4, b"lowhigh")
    memory.write(2 * BORDER, b"third")
    (first, size, low), (second, last, high) = memory.files
    assert (first, size, second, last) == (0, BORDER, 2 * BORDER, 64 * MIB)
    assert os.pread(low, 4, BORDER - 4) == b"lowh"
    assert os.pread(high, 5, 0) == b"third"
    memory.close()
    assert descriptors() == before


def test_all_pieces_are_files_where_others_see_them() -> None:
    memory = made_of(private(), private(64 * MIB), shared=True)
    assert [(offset, size) for offset, size, _ in memory.files] == [
        (0, BORDER), (BORDER, 64 * MIB)
    ]  # fmt: skip
    found = regions(memory.native())
    assert [(one.address, one.size, one.offset, one.fd) for one in found] == [
        (0, BORDER, 0, memory.files[0][2]),
        (BORDER, 64 * MIB, 0, memory.files[1][2]),
    ]
    memory.close()


def test_a_piece_on_both_sides_of_the_gap_is_two_to_others() -> None:
    memory = made_of(private(2 * GIB), private(2 * GIB), shared=True)
    second = memory.files[1][2]
    assert [(one.address, one.size, one.offset) for one in regions(memory.native())] == [
        (0, 2 * GIB, 0),
        (2 * GIB, GIB, 0),
        (layout.GAP_END, GIB, GIB),
    ]
    memory.write(layout.GAP_END, b"above")
    assert os.pread(second, 5, GIB) == b"above"
    memory.close()


def test_memory_that_is_shared_in_part_is_not_for_others() -> None:
    memory = made_of(private(), memfd())
    with pytest.raises(BackendError, match="cannot see guest memory"):
        regions(memory.native())
    memory.close()


def test_cleared_memory_is_zero_everywhere() -> None:
    memory = made_of(private(), memfd(), private())
    native = memory.native()
    places = [0, BORDER - 3, 2 * BORDER - 3, 3 * BORDER - 6]
    for at in places:
        memory.write(at, b"filled")
    memory.clear()
    assert [memory.read(at, 6) for at in places] == [bytes(6)] * 4
    assert os.fstat(memory.files[0][2]).st_blocks * 512 <= 2 * 4096
    memory.write(BORDER, b"again")
    assert os.pread(memory.files[0][2], 5, 0) == b"again"
    assert memory.native() is native
    memory.close()


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_one_piece_is_provided() -> None:
    memory = made_of(private(), private())
    before = resident()
    memory.populate(lambda _: None, BORDER, BORDER)
    assert BORDER * 9 // 10 < resident() - before < BORDER * 11 // 10
    memory.close()


def policies(memory: GuestMemory) -> str:
    """Return what the kernel's list of mappings has for the memory, a line each."""
    base = int(ffi.cast("uintptr_t", lib.pv_memory_at(memory.native(), 0, 1)))
    lines = Path("/proc/self/numa_maps").read_text(encoding="ascii").splitlines()
    return "\n".join(
        line for line in lines if base <= int(line.split()[0], 16) < base + memory.size
    )


@pytest.mark.parametrize(
    ("policy", "shown"),
    [("bind", "bind:0"), ("preferred", "prefer:0"), ("interleave", "interleave:0")],
)
@pytest.mark.parametrize("make", [private, lambda **more: private(shared=True, **more)])
def test_memory_from_a_node_of_the_host(
    policy: str, shown: str, make: Callable[..., Memdev]
) -> None:
    memory = made_of(private(), make(policy=policy, host_nodes=(0,)), private())
    (line,) = [line for line in policies(memory).splitlines() if " default" not in line]
    base = int(ffi.cast("uintptr_t", lib.pv_memory_at(memory.native(), BORDER, 1)))
    assert line.startswith(f"{base:x} {shown}")
    memory.close()


def test_nodes_that_the_host_does_not_have() -> None:
    before = descriptors()
    message = refusal(lambda: made_of(memfd(), private(policy="bind", host_nodes=(0, 700))))
    assert message == (
        "-object ram,host-nodes: 700 is no node of this host that has memory (there is 0); "
        "name others, or leave it out"
    )
    assert descriptors() == before


def test_a_piece_that_cannot_be_had_leaves_nothing(tmp_path: Path) -> None:
    before = descriptors()
    path = str(tmp_path / "missing" / "file")
    bad = Memdev("-object bad", SIZE_MIN, backing=Backing("-object bad", path=path))
    message = refusal(lambda: made_of(memfd(), bad))
    assert message.startswith(f"-object bad {path}: 128 MiB: No such file or directory; ")
    huge = Memdev("-object m", 1 << 40, backing=Backing("-object m", huge_page=2 * MIB))
    assert "pages of 2 MiB are needed" in refusal(lambda: made_of(memfd(), huge))
    assert descriptors() == before


def test_huge_pages_that_begin_within_one() -> None:
    huge = Memdev("-object m", BORDER, backing=Backing("-object m", huge_page=2 * MIB))
    assert refusal(lambda: made_of(private(BORDER + MIB), huge)) == (
        "-object m: begins 129 MiB into the memory, which is no multiple of its pages of 2 MiB; "
        "give the nodes before it such a size"
    )
