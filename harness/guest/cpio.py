"""A writer of cpio archives in the "newc" format, the one that Linux unpacks as an initramfs.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ALIGN = 4
# Not asked for by the kernel; other readers of cpio expect whole blocks.
BLOCK = 512
MAX_SIZE = 0xFFFF_FFFF
CHUNK = 1 << 20
_HEADER = b"070701" + 13 * b"%08X"


class Sink(Protocol):
    """What an archive can be written to: a file, or a digest in a file's clothing."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""


@dataclass(frozen=True, slots=True)
class _Member:
    mode: int
    data: bytes | Path = b""
    device: tuple[int, int] = (0, 0)


_DIRECTORY = _Member(stat.S_IFDIR | 0o755)


class Archive:
    """The members of an archive, in the order in which they are added.

    The same members in the same order give the same bytes: inodes are numbered from 1, owner,
    group and times are 0. Paths are taken from the guest's root, with or without the leading
    slash; parent directories that are missing are added. A path may be given once only, but
    a directory may be named again.
    """

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    def __contains__(self, path: str) -> bool:
        return _clean(path) in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory."""
        self._add(path, _Member(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes | Path, mode: int = 0o644) -> None:
        """Add a regular file with the bytes `data`, or those that the host's file then holds."""
        self._add(path, _Member(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link that reads `target`."""
        self._add(path, _Member(stat.S_IFLNK | 0o777, target.encode()))

    def node(self, path: str, kind: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a device node; `kind` is "c" for a character device, "b" for a block device."""
        kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
        self._add(path, _Member(kinds[kind] | mode, device=(major, minor)))

    def write(self, out: Sink) -> None:
        """Write the archive. Raises OSError, and ValueError for a file of 4 GiB or more."""
        size = 0
        for inode, (name, member) in enumerate(self._members.items(), start=1):
            size += _write_member(out, inode, name, member)
        size += _write_member(out, 0, "TRAILER!!!", _Member(0))
        out.write(bytes(-size % BLOCK))

    def _add(self, path: str, member: _Member) -> None:
        name = _clean(path)
        if not name:
            raise ValueError(f"{path!r} names no member of an archive")
        for end in (place for place, letter in enumerate(name) if letter == "/"):
            parent = name[:end]
            held = self._members.setdefault(parent, _DIRECTORY)
            if not stat.S_ISDIR(held.mode):
                raise ValueError(f"{path}: {parent} is not a directory in this archive")
        held = self._members.setdefault(name, member)
        if held is not member and not (stat.S_ISDIR(held.mode) and stat.S_ISDIR(member.mode)):
            raise ValueError(f"{path} is in this archive already")


def _clean(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is no path inside an archive")
    return "/".join(parts)


def _write_member(out: Sink, inode: int, name: str, member: _Member) -> int:
    """Write one member; return the number of bytes, a multiple of ALIGN."""
    size = len(member.data) if isinstance(member.data, bytes) else member.data.stat().st_size
    if size > MAX_SIZE:
        raise ValueError(f"{member.data!r}: a file in a newc archive is smaller than 4 GiB")
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(member.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device of the file, of the node, name, checksum
    fields = (inode, member.mode, 0, 0, links, 0, size, 0, 0, *member.device, len(encoded), 0)
    header = _HEADER % fields + encoded
    header += bytes(-len(header) % ALIGN)
    out.write(header)
    if isinstance(member.data, bytes):
        out.write(member.data)
    else:
        _copy(out, member.data, size)
    padding = -size % ALIGN
    out.write(bytes(padding))
    return len(header) + size + padding


def _copy(out: Sink, path: Path, size: int) -> None:
    """Copy exactly `size` bytes: the header has promised them."""
    left = size
    with path.open("rb") as source:
        while left:
            chunk = source.read(min(left, CHUNK))
            if not chunk:
                raise ValueError(f"{path} became shorter while it was read")
            out.write(chunk)
            left -= len(chunk)
