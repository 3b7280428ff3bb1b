r"""ACPI Machine Language: an encoder for what the DSDT needs.

Each function returns the bytes of one construct of ACPI 6.4, chapter 20, or one resource
descriptor of section 6.4; constructs nest by passing bytes on. Paths are written as in ASL
(`\_SB.PWRB`), segments of up to four characters.
"""

from __future__ import annotations

from struct import pack

LOCAL0, LOCAL1, LOCAL2 = b"\x60", b"\x61", b"\x62"
NOOP = b"\xa3"
ZERO = b"\x00"  # also the null target of an operator whose result only feeds another

_EXT = b"\x5b"
_SYSTEM_MEMORY, _SYSTEM_IO = 0, 1
_DWORD_ACCESS = 3
_WRITE_AS_ZEROS = 2 << 5


def path(text: str) -> bytes:
    """Encode a NameString; ValueError when a segment is empty or over four characters."""
    bare = text.lstrip("\\^")
    prefix = text[: len(text) - len(bare)].encode("ascii")
    if not bare:
        return prefix + b"\x00"
    segments = bare.split(".")
    for segment in segments:
        if not 1 <= len(segment) <= 4:
            raise ValueError(f"{text}: an ACPI name has one to four characters")
    encoded = "".join([segment.ljust(4, "_") for segment in segments]).encode("ascii")
    if len(segments) == 1:
        return prefix + encoded
    if len(segments) == 2:
        return prefix + b"\x2e" + encoded
    return prefix + b"\x2f" + bytes((len(segments),)) + encoded


def _length(value: int, size: int) -> bytes:
    """Encode `value` in the PkgLength form of `size` bytes."""
    if size == 1:
        return bytes((value,))
    return bytes(((size - 1) << 6 | value & 0xF,)) + (value >> 4).to_bytes(size - 1, "little")


def _length_size(value: int) -> int:
    if value < 1 << 6:
        return 1
    for size in (2, 3, 4):
        if value < 1 << (8 * size - 4):
            return size
    raise ValueError(f"{value}: over the 28 bits of an AML package length")


def _packaged(content: bytes) -> bytes:
    """Put a PkgLength, which counts itself, before `content`."""
    size = 1
    while _length_size(len(content) + size) > size:
        size += 1
    return _length(len(content) + size, size) + content


def integer(value: int) -> bytes:
    """Encode 0 <= value < 2**64 in the shortest form."""
    if value < 2:
        return bytes((value,))
    if value < 1 << 8:
        return pack("<BB", 0x0A, value)
    if value < 1 << 16:
        return pack("<BH", 0x0B, value)
    if value < 1 << 32:
        return pack("<BI", 0x0C, value)
    return pack("<BQ", 0x0E, value)


def string(text: str) -> bytes:
    """Encode an ASCII string without NUL."""
    return b"\x0d" + text.encode("ascii") + b"\x00"


def eisa_id(text: str) -> bytes:
    """Encode a compressed id: three capital letters, four hexadecimal digits (`PNP0501`)."""
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    number = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return b"\x0c" + number.to_bytes(4, "big")


def name(path_text: str, value: bytes) -> bytes:
    """Encode Name (path, value)."""
    return b"\x08" + path(path_text) + value


def scope(path_text: str, *body: bytes) -> bytes:
    """Encode Scope (path) {body}."""
    return b"\x10" + _packaged(path(path_text) + b"".join(body))


def device(path_text: str, *body: bytes) -> bytes:
    """Encode Device (path) {body}."""
    return _EXT + b"\x82" + _packaged(path(path_text) + b"".join(body))


def method(path_text: str, arguments: int, *body: bytes, serialized: bool = False) -> bytes:
    """Encode Method (path, 0 to 7 arguments, Serialized or not) {body}."""
    flags = bytes((arguments | serialized << 3,))
    return b"\x14" + _packaged(path(path_text) + flags + b"".join(body))


def package(*elements: bytes) -> bytes:
    """Encode Package () {elements}, at most 255."""
    return b"\x12" + _packaged(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """Encode Buffer () {data}."""
    return b"\x11" + _packaged(integer(len(data)) + data)


def _region(path_text: str, space: int, start: int, length: int) -> bytes:
    head = _EXT + b"\x80" + path(path_text) + bytes((space,))
    return head + integer(start) + integer(length)


def io_region(path_text: str, port: int, length: int) -> bytes:
    """Encode OperationRegion (path, SystemIO, port, length)."""
    return _region(path_text, _SYSTEM_IO, port, length)


def memory_region(path_text: str, address: int, length: int) -> bytes:
    """Encode OperationRegion (path, SystemMemory, address, length)."""
    return _region(path_text, _SYSTEM_MEMORY, address, length)


def dword_field(region: str, *fields: tuple[str, int]) -> bytes:
    """Encode Field (region, DWordAcc, NoLock, WriteAsZeros) {name, bits; ...}."""
    body = path(region) + bytes((_DWORD_ACCESS | _WRITE_AS_ZEROS,))
    for field_name, bits in fields:
        body += path(field_name) + _length(bits, _length_size(bits))
    return _EXT + b"\x81" + _packaged(body)


def store(source: bytes, target: bytes) -> bytes:
    """Encode Store (source, target)."""
    return b"\x70" + source + target


def bit_and(left: bytes, right: bytes, target: bytes = ZERO) -> bytes:
    """Encode And (left, right, target)."""
    return b"\x7b" + left + right + target


def equal(left: bytes, right: bytes) -> bytes:
    """Encode LEqual (left, right)."""
    return b"\x93" + left + right


def not_(value: bytes) -> bytes:
    """Encode LNot (value)."""
    return b"\x92" + value


def and_(left: bytes, right: bytes) -> bytes:
    """Encode LAnd (left, right)."""
    return b"\x90" + left + right


def if_(predicate: bytes, *body: bytes) -> bytes:
    """Encode If (predicate) {body}; any value but zero is true."""
    return b"\xa0" + _packaged(predicate + b"".join(body))


def while_(predicate: bytes, *body: bytes) -> bytes:
    """Encode While (predicate) {body}."""
    return b"\xa2" + _packaged(predicate + b"".join(body))


def load(path_text: str, handle: bytes) -> bytes:
    """Encode Load (path, handle): the definition block of a region becomes part of the namespace.

    A failure ends the method that asks for it.
    """
    return _EXT + b"\x20" + path(path_text) + handle


def notify(path_text: str, value: int) -> bytes:
    """Encode Notify (path, value)."""
    return b"\x86" + path(path_text) + integer(value)


def resource_template(*descriptors: bytes) -> bytes:
    """Encode ResourceTemplate () {descriptors}; the end tag's checksum 0 means "not checked"."""
    return buffer(b"".join(descriptors) + b"\x79\x00")


def io(port: int, length: int) -> bytes:
    """Encode IO (Decode16, port, port, 1, length): one fixed range of ports."""
    return pack("<BBHHBB", 0x47, 1, port, port, 1, length)


def irq(line: int) -> bytes:
    """Encode IRQ (Edge, ActiveHigh, Exclusive) {line}, 0 to 15."""
    return pack("<BHB", 0x23, 1 << line, 1)


def memory32_fixed(base: int, length: int) -> bytes:
    """Encode Memory32Fixed (ReadWrite, base, length)."""
    return pack("<BHBII", 0x86, 9, 1, base, length)


def interrupt(gsi: int, *, level: bool = False, low: bool = False, shared: bool = False) -> bytes:
    """Encode Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}, or as asked."""
    flags = 1 | (not level) << 1 | low << 2 | shared << 3
    return pack("<BHBBI", 0x89, 6, flags, 1, gsi)
