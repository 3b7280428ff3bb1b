"""newc archives, read back by a reader of our own and by busybox's."""

from __future__ import annotations

import io
import stat
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.guest.cpio import Archive


class Member(NamedTuple):
    mode: int
    data: bytes
    inode: int
    links: int
    device: tuple[int, int]


def written(archive: Archive) -> bytes:
    out = io.BytesIO()
    archive.write(out)
    return out.getvalue()


def read(data: bytes) -> dict[str, Member]:
    """Read an archive as the kernel's buffer-format.rst describes it."""
    members: dict[str, Member] = {}
    at = 0
    while True:
        assert at % 4 == 0
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, mtime, size, dmaj, dmin, rmaj, rmin, length, check = fields
        assert (uid, gid, mtime, dmaj, dmin, check) == (0, 0, 0, 0, 0, 0)
        encoded = data[at + 110 : at + 110 + length]
        assert encoded.endswith(b"\0")
        name = encoded[:-1].decode()
        at += (110 + length + 3) & ~3
        if name == "TRAILER!!!":
            assert data[at:].strip(b"\0") == b""
            return members
        assert name not in members
        members[name] = Member(mode, data[at : at + size], inode, links, (rmaj, rmin))
        at += (size + 3) & ~3


names = st.text("abc.-", min_size=1, max_size=5).filter(lambda name: set(name) != {"."})


@given(st.dictionaries(names, st.binary(max_size=40), max_size=8))
def test_files_come_back(files: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.file(f"/dir/{name}", data)
    members = read(written(archive))
    assert {n: m.data for n, m in members.items() if n != "dir"} == {
        f"dir/{name}": data for name, data in files.items()
    }
    inodes = [member.inode for member in members.values()]
    assert len(set(inodes)) == len(inodes)
    assert 0 not in inodes


def test_each_kind_of_member(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 5000)
    archive = Archive()
    archive.directory("/tmp", 0o1777)
    archive.file("/bin/tool", tmp_path / "source", 0o755)
    archive.symlink("/bin/sh", "/bin/tool")
    archive.node("/dev/console", "c", 5, 1)
    archive.node("/dev/loop0", "b", 7, 0, 0o660)
    data = written(archive)
    members = read(data)
    assert list(members) == [
        *("tmp", "bin", "bin/tool", "bin/sh", "dev", "dev/console", "dev/loop0")
    ], "in the order given, parents added"
    assert members["tmp"].mode == stat.S_IFDIR | 0o1777
    assert members["tmp"].links == 2
    assert members["bin"].mode == stat.S_IFDIR | 0o755
    assert members["bin/tool"] == Member(stat.S_IFREG | 0o755, b"x" * 5000, 3, 1, (0, 0))
    assert members["bin/sh"].mode == stat.S_IFLNK | 0o777
    assert members["bin/sh"].data == b"/bin/tool"
    assert members["dev/console"].mode == stat.S_IFCHR | 0o600
    assert members["dev/console"].device == (5, 1)
    assert members["dev/loop0"].mode == stat.S_IFBLK | 0o660
    assert len(data) % 512 == 0


def test_others_can_read_it() -> None:
    archive = Archive()
    archive.file("/a/b", b"content\n")
    archive.symlink("/a/link", "b")
    listed = subprocess.run(
        ["busybox", "cpio", "-tv"],
        input=written(archive),
        capture_output=True,
        timeout=30,
        check=True,
    )
    lines = listed.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["drwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"]
    assert lines[2].endswith("a/link -> b")


@pytest.mark.parametrize("path", ["", "/", "a/../b", "a\0b"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ValueError, match="archive"):
        Archive().file(path, b"")


def test_collisions() -> None:
    archive = Archive()
    archive.file("/a", b"")
    with pytest.raises(ValueError, match="in this archive already"):
        archive.file("a", b"")
    with pytest.raises(ValueError, match="in this archive already"):
        archive.directory("a")
    with pytest.raises(ValueError, match="a is not a directory"):
        archive.file("a/b", b"")
    archive.directory("d")
    archive.directory("/d/")
    with pytest.raises(ValueError, match="in this archive already"):
        archive.symlink("d", "a")
    assert list(archive) == ["a", "d"]
    assert "/d" in archive


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 32)
    archive = Archive()
    archive.file("/sparse", sparse)
    with pytest.raises(ValueError, match="4 GiB"):
        archive.write(io.BytesIO())


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345678")

    class Shrinking(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            source.write_bytes(b"1234")
            return super().write(data)

    archive = Archive()
    archive.file("/source", source)
    with pytest.raises(ValueError, match="shorter"):
        archive.write(Shrinking())
