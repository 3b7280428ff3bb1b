"""A guest's memory as a file, and back: sparse, private, and with the state that it goes with."""

from __future__ import annotations

import errno
import os
import resource
import time
from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import BackendError, StateError
from pyvirt.vmm.backing import Backing
from pyvirt.vmm.memdev import Memdev
from pyvirt.vmm.memory import MIB, GuestMemory
from pyvirt.vmm.snapshot.memory_file import Writer, open_memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 130 * MIB
IDENTITY = bytes(range(16))
PIECES = {0: b"first", 5 * MIB + 17: b"within", 64 * MIB - 3: b"across", SIZE - 4: b"last"}


def filled(memory: GuestMemory) -> GuestMemory:
    for address, data in PIECES.items():
        memory.write(address, data)
    return memory


def check(memory: GuestMemory) -> None:
    for address, data in PIECES.items():
        assert memory.read(address, len(data)) == data
    assert memory.read(32 * MIB, 4096) == bytes(4096)


def save(memory: GuestMemory, path: Path) -> Writer:
    writer = Writer(memory, IDENTITY)
    with open(path, "wb") as file:
        writer.write(file.fileno())
    return writer


@pytest.fixture(
    params=[None, "memfd", "folder", "file"], ids=["anonymous", "half-a-memfd", "folder", "file"]
)
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuestMemory]:
    memdevs = [Memdev("-test", SIZE)]
    if request.param == "memfd":
        memdevs = [Memdev("-test", 64 * MIB), Memdev("-test", SIZE - 64 * MIB, shared=True)]
    elif request.param:
        place = tmp_path if request.param == "folder" else tmp_path / "backing"
        memdevs = [Memdev("-test", SIZE, backing=Backing("-test", path=str(place)))]
    memory = GuestMemory(SIZE, memdevs=memdevs)
    yield filled(memory)
    memory.close()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    memory = filled(GuestMemory(SIZE))
    path = tmp_path / "memory"
    save(memory, path)
    memory.close()
    return path


def test_what_is_not_zero_is_written_and_no_more(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    writer = save(memory, path)
    assert (writer.done, writer.written) == (SIZE, 5 * 4096)
    assert path.stat().st_size == SIZE + len(f"pyvirt-memory {IDENTITY.hex()}\n")
    assert path.stat().st_blocks * 512 < MIB
    with open(path, "rb") as file:
        for offset, data in PIECES.items():
            file.seek(offset)
            assert file.read(len(data)) == data


def test_mapped_memory_is_the_files_and_changes_are_its_own(saved: Path) -> None:
    file = open_memory(str(saved), SIZE, IDENTITY)
    first, second = (GuestMemory(SIZE, content=file) for _ in range(2))
    file.close()
    check(first)
    first.write(0, b"FIRST")
    first.write(90 * MIB, b"more")
    check(second)
    again = saved.with_name("again")
    assert save(first, again).written == 6 * 4096
    other = open_memory(str(again), SIZE, IDENTITY)
    third = GuestMemory(SIZE, content=other)
    assert third.read(0, 5) + third.read(90 * MIB, 4) == b"FIRSTmore"
    other.close()
    first.clear()
    assert first.read(0, 5) + first.read(SIZE - 4, 4) == bytes(9)
    assert first.is_anonymous
    for memory in (first, second, third):
        memory.close()


def test_memory_of_another_kind_reads_it(memory: GuestMemory, saved: Path) -> None:
    memory.clear()
    file = open_memory(str(saved), SIZE, IDENTITY)
    file.read(memory)
    check(memory)
    file.close()


def refusal(path: Path, identity: bytes = IDENTITY) -> str:
    with pytest.raises(StateError) as info:
        open_memory(str(path), SIZE, identity)
    assert "\n" not in str(info.value)
    return str(info.value)


def test_files_that_cannot_be(saved: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert f"{saved}: is of another snapshot than the state" in refusal(saved, bytes(16))
    os.truncate(saved, SIZE)
    assert "of another snapshot" in refusal(saved)
    os.truncate(saved, SIZE - 1)
    assert f"{saved}: has {SIZE - 1} bytes, and the guest's memory {SIZE}" in refusal(saved)
    saved.unlink()
    assert "No such file or directory" in refusal(saved)
    os.mkfifo(saved)
    assert "Not a regular file" in refusal(saved)
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_is_cut_off_while_it_is_read(saved: Path) -> None:
    memory = GuestMemory(SIZE)
    file = open_memory(str(saved), SIZE, IDENTITY)
    os.truncate(saved, SIZE - 8192)
    memory.write(0, b"x")
    file.read(memory)  # what is gone is a hole, and the guest's memory zero there
    assert memory.read(SIZE - 4, 4) == bytes(4)
    file.close()
    with pytest.raises(BackendError, match="Bad file descriptor; write the snapshot again"):
        file.read(memory)
    memory.close()


def test_it_can_be_cancelled(tmp_path: Path) -> None:
    memory = filled(GuestMemory(SIZE))
    writer = Writer(memory, IDENTITY)
    writer.cancel()
    with open(tmp_path / "memory", "wb") as file, pytest.raises(OSError, match="canceled") as info:
        writer.write(file.fileno())
    assert info.value.errno == errno.ECANCELED
    assert writer.done == 0
    memory.close()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: SIGXFSZ is ignored, as by Python."""
    memory = filled(GuestMemory(SIZE))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(tmp_path / "memory", "wb") as file:
        file.truncate(SIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                Writer(memory, IDENTITY).write(file.fileno())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    memory.close()


def test_progress_is_told_each_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = filled(GuestMemory(SIZE))
    told: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with open(tmp_path / "memory", "wb") as file:
        Writer(memory, IDENTITY, told.append).write(file.fileno())
    assert told[-1] == "snapshot: 100 % of the memory is seen to"
    assert told[0] == "snapshot: 49 % of the memory is seen to"
    memory.close()
