"""vmlinux out of a bzImage, for each compression that kernels come in."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.errors import ConfigError
from pyvirt.harness.guest import tool, vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 700


def by_tool(*command: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        return subprocess.run(
            command, input=data, capture_output=True, timeout=60, check=True
        ).stdout

    return pack


def xz(data: bytes) -> bytes:
    """Pack as the kernel's scripts/xz_wrap.sh does."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 25}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "xz": xz,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": by_tool("lz4", "-lc", "-"),
    "zstd": by_tool("zstd", "-qc"),
}


def bzimage(
    packed: bytes,
    *,
    size: int | None = len(ELF),
    setup_sects: int = 27,
    protocol: int = 0x20F,
    cut: int = 0,
) -> bytes:
    """Return a bzImage with `packed` at payload_offset, and the size behind it as mkpiggy does."""
    payload = packed if size is None else packed + struct.pack("<I", size)
    head = bytearray(((setup_sects or 4) + 1) * 512)
    head[0x1F1] = setup_sects
    struct.pack_into("<4sH", head, 0x202, b"HdrS", protocol)
    struct.pack_into("<II", head, 0x248, 0x3B1, len(payload))
    image = bytes(head) + bytes(0x3B1) + payload + b"code after the payload"
    return image[: len(image) - cut]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("setup_sects", [0, 27])
def test_each_compression(name: str, setup_sects: int) -> None:
    # gzip ends in the size by itself.
    size = None if name == "gzip" else len(ELF)
    image = bzimage(PACKERS[name](ELF), size=size, setup_sects=setup_sects)
    assert vmlinux.extract(image) == ELF


@pytest.mark.parametrize("name", PACKERS)
def test_damaged_payload(name: str) -> None:
    packed = bytearray(PACKERS[name](ELF))
    for at in range(20, len(packed) - 8, 7):
        packed[at] ^= 0x55
    with pytest.raises(ConfigError, match=r"^K: its payload is damaged: "):
        vmlinux.extract(bzimage(bytes(packed)), "K")


def test_size_is_checked() -> None:
    with pytest.raises(ConfigError, match="damaged: no ELF file of 5 bytes"):
        vmlinux.extract(bzimage(xz(ELF), size=5))


@pytest.mark.parametrize("name", ["gzip", "xz", "lzma", "bzip2"])
def test_no_more_is_unpacked_than_it_says(name: str) -> None:
    """A small file may be a large one packed."""
    unpack = next(c for magic, c in vmlinux._UNPACKERS if PACKERS[name](ELF).startswith(magic))
    assert unpack(PACKERS[name](bytes(1 << 20)), 1000) == bytes(1000)


def test_a_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmlinux, "SIZE_MAX", 1 << 20)
    path = tmp_path / "vmlinux"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(ConfigError, match="Larger than 1 MiB; name a kernel's file"):
        vmlinux.read(path)


def test_content_must_be_elf() -> None:
    with pytest.raises(ConfigError, match="damaged"):
        vmlinux.extract(bzimage(xz(b"text"), size=4))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is no bzImage"),
        (bytes(4096), "is no bzImage"),
        (bzimage(xz(ELF), protocol=0x207), r"boot protocol 2\.07 does not say"),
        (bzimage(xz(ELF), cut=40), r"is cut short: its payload ends at byte \d+ of \d+$"),
        (bzimage(b""), "is cut short"),
        (bzimage(b"\x89LZO" + ELF), "starts with 89 4c 5a 4f 7f 45, which is no compression"),
    ],
)
def test_refusals_name_the_image(image: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^/boot/k.*{message}"):
        vmlinux.extract(image, "/boot/k")


@given(st.data())
def test_no_header_makes_it_crash(data: st.DataObject) -> None:
    image = bytearray(bzimage(gzip.compress(ELF, mtime=0), size=None, setup_sects=1))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.sampled_from([0x1F1, *range(0x206, 0x208), *range(0x248, 0x250)]))
        image[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ConfigError):
        assert vmlinux.extract(bytes(image)) == ELF


def test_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    image = bzimage(PACKERS["lz4"](ELF))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(tool, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(
        tool.ToolMissingError, match=r"lz4 is not installed; run: .*install -y lz4$"
    ):
        vmlinux.extract(image)


def test_cached_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage(xz(ELF)))
    first = vmlinux.cached(image)
    assert first.read_bytes() == ELF
    before = first.stat().st_ino
    assert vmlinux.cached(image).stat().st_ino == before
    image.write_bytes(bzimage(xz(ELF + b"more"), size=len(ELF) + 4))
    assert vmlinux.cached(image) != first
