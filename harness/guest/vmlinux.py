"""Takes the kernel proper, an ELF file, out of a bzImage.

Source: Documentation/arch/x86/boot.rst of the kernel, "payload_offset" and "payload_length".
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from ... import files
from ...errors import BackendError, ConfigError
from .. import cache
from .tool import ToolMissingError, run

SETUP_SECTS = 0x1F1
HEADER = 0x202
PROTOCOL_2_08 = 0x0208
PAYLOAD_OFFSET = 0x248
HEADER_END = 0x250
SECTOR = 512
SIZE_MAX = 2 << 30  # bytes, of a kernel with what a debugger wants to know
TOOL_TIMEOUT_S = 120.0


def cached(image: Path) -> Path:
    """Return the path of the ELF file that the bzImage `image` holds, taken out at most once."""
    data = read(image)

    def build(place: Path) -> None:
        place.write_bytes(extract(data, str(image)))

    return cache.entry(f"vmlinux-{cache.digest(data)}", build)


def read(image: Path) -> bytes:
    """Return what is in a kernel's file; ConfigError."""
    try:
        return files.read(str(image), SIZE_MAX)
    except OSError as error:
        raise ConfigError(f"kernel {image}: {error.strerror}; name a kernel's file") from None


def extract(image: bytes, name: str = "the kernel") -> bytes:
    """Return the ELF file inside a bzImage; `name` stands for the image in error messages.

    Raises ConfigError where the image is no bzImage, is cut short or damaged, or is packed in
    a way not known here; ToolMissingError where the tool that unpacks it is not
    installed.
    """
    payload = _payload(image, name)
    unpack = next((call for magic, call in _UNPACKERS if payload.startswith(magic)), None)
    if unpack is None:
        raise ConfigError(
            f"{name}: its payload starts with {payload[:6].hex(' ')}, which is no compression "
            "known here; known are gzip, xz, lzma, bzip2, lz4, zstd"
        )
    # Whatever the compression, the size of what was packed stands behind it, 32 bits wide: the
    # kernel's build adds it, and a gzip stream ends in it.
    (size,) = struct.unpack("<I", payload[-4:])
    try:
        # One more than it says shows that it lies.
        content = unpack(payload, min(size, SIZE_MAX) + 1)
    except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise ConfigError(f"{name}: its payload is damaged: {error}") from error
    if len(content) != size or not content.startswith(b"\x7fELF"):
        raise ConfigError(f"{name}: its payload is damaged: no ELF file of {size} bytes")
    return content


def _payload(image: bytes, name: str) -> bytes:
    if len(image) < HEADER_END or image[HEADER : HEADER + 4] != b"HdrS":
        raise ConfigError(f"{name} is no bzImage: the magic HdrS is not at offset 0x202")
    (protocol,) = struct.unpack_from("<H", image, HEADER + 4)
    if protocol < PROTOCOL_2_08:
        raise ConfigError(
            f"{name}: boot protocol {protocol >> 8}.{protocol & 0xFF:02} does not say where the "
            "payload is; a kernel since 2.6.26 does (protocol 2.08)"
        )
    offset, length = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR + offset
    if length < 8 or start + length > len(image):
        raise ConfigError(
            f"{name} is cut short: its payload ends at byte {start + length} of {len(image)}"
        )
    return image[start : start + length]


def _gzip(payload: bytes, most: int) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload, most)


def _xz(payload: bytes, most: int) -> bytes:
    return lzma.LZMADecompressor().decompress(payload, most)


def _bzip2(payload: bytes, most: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload, most)


def _with_tool(tool: str) -> Callable[[bytes, int], bytes]:
    def unpack(payload: bytes, _most: int) -> bytes:
        try:
            return run([tool, "-dcq"], timeout=TOOL_TIMEOUT_S, feed=payload[:-4])
        except ToolMissingError:
            raise
        except BackendError as error:
            raise ValueError(str(error)) from error

    return unpack


_UNPACKERS: tuple[tuple[bytes, Callable[[bytes, int], bytes]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"\xfd7zXZ\0", _xz),
    (b"\x5d\0\0", _xz),
    (b"BZh", _bzip2),
    (b"\x02\x21\x4c\x18", _with_tool("lz4")),
    (b"\x28\xb5\x2f\xfd", _with_tool("zstd")),
)
