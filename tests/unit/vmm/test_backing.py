"""Guest memory from memfds, files and huge pages: who sees what is written, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.vmm.backing import HUGE_PAGES, Backing
from pyvirt.vmm.memdev import Memdev
from pyvirt.vmm.memory import MIB, SIZE_MIN, GuestMemory

from ..refusal import refusal


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Return the bytes of memory that this process has, files and all."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def of(backing: Backing, size: int = SIZE_MIN, *, shared: bool = False) -> GuestMemory:
    """Return memory that is all of one kind."""
    memdev = Memdev(backing.option, size, backing=backing)
    return GuestMemory(size, shared=shared, memdevs=(memdev,))


def used(backing: Backing, *, shared: bool = False) -> tuple[int, bytes]:
    """Write to memory, clear it, close it; return its descriptor and what the file had."""
    before = descriptors()
    memory = of(backing, shared=shared)
    memory.write(4096, b"written")
    fd = memory.files[0][2] if memory.files else -1
    seen = os.pread(fd, 7, 4096) if fd >= 0 else b""
    memory.clear()
    assert memory.read(4096, 7) == bytes(7)
    memory.close()
    assert descriptors() == before
    return fd, seen


def test_a_memfd_is_shared_with_whom_it_is_given_to() -> None:
    fd, seen = used(Backing("-object m"))
    assert (fd >= 0, seen) == (True, b"written")


def test_a_folder_keeps_no_file(tmp_path: Path) -> None:
    fd, seen = used(Backing("-mem-path", path=str(tmp_path)))
    assert (fd >= 0, seen) == (True, b"written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("own", "asked"), [(False, False), (True, False), (False, True)])
def test_a_file_has_what_is_written_when_it_is_shared(
    tmp_path: Path, own: bool, asked: bool
) -> None:
    path = tmp_path / "memory"
    fd, seen = used(Backing("-mem-path", path=str(path), shared=own), shared=asked)
    assert (fd >= 0, seen) == ((True, b"written") if own or asked else (False, b""))
    assert path.stat().st_size == SIZE_MIN
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "make",
    [lambda _: GuestMemory(SIZE_MIN), lambda folder: of(Backing("-mem-path", path=folder))],
)
def test_all_of_it_is_there_when_asked_for(
    tmp_path: Path, make: Callable[[str], GuestMemory]
) -> None:
    memory = make(str(tmp_path))
    memory.write(4096, b"stays")
    before = resident()
    told: list[str] = []
    memory.populate(told.append)
    assert resident() - before > SIZE_MIN * 9 // 10
    assert memory.read(4096, 5) == b"stays"
    memory.close()


def test_huge_pages_that_are_not_free() -> None:
    before = descriptors()
    wanted = 512 << 30
    message = refusal(lambda: of(Backing("-object m", huge_page=2 * MIB), wanted))
    head, _, mend = message.partition(" are free; ")
    assert head.startswith("-object m: 262144 pages of 2 MiB are needed and ")
    assert mend == (
        "echo 262144 >/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or use smaller pages"
    )
    assert descriptors() == before


def test_memory_that_is_no_whole_huge_pages() -> None:
    message = refusal(lambda: of(Backing("-object m", huge_page=HUGE_PAGES[1])))
    assert message == "-object m: 128 MiB are no whole pages of 1024 MiB; give a size that is"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/file", "No such file or directory"), ("fifo", "Not a regular file")],
)
def test_places_that_cannot_be_used(tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    path = tmp_path / name
    before = descriptors()
    message = refusal(lambda: of(Backing("-mem-path", path=str(path))))
    assert message == (
        f"-mem-path {path}: 128 MiB: {reason}; name a folder or file that can be written, "
        "with room for the guest's memory"
    )
    assert descriptors() == before


def test_a_host_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = GuestMemory(SIZE_MIN)
    monkeypatch.setattr("pyvirt.vmm.memory.lib", Poor())
    message = refusal(lambda: memory.populate(print))
    monkeypatch.undo()
    memory.close()
    assert message == (
        "-mem-prealloc: the host has no 128 MiB for the guest (Cannot allocate memory); "
        "lower -m, or free some"
    )


class Poor:
    """A C side that finds no memory."""

    def pv_memory_populate(self, *_: object) -> int:
        return -12
