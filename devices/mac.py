"""MAC addresses of a guest's NICs: read from text, and made where none is given."""

from __future__ import annotations

import os

from ..errors import ConfigError

SIZE = 6
_MULTICAST, _LOCAL = 0x01, 0x02  # bits of the first byte (IEEE 802, 8.2)
_MACHINE_ID = "/etc/machine-id"
# FNV-1a, 64 bits: spreads well enough, and costs no import.
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def parse(option: str, text: str) -> bytes:
    """Return the address that `text` spells, as 52:54:00:12:34:56; ConfigError names `option`."""
    parts = text.split(":")
    if len(parts) != SIZE or not all(map(_is_byte, parts)):
        raise ConfigError(
            f"{option} {text}: not a MAC address; give six bytes, as 52:54:00:12:34:56"
        )
    address = bytes(int(part, 16) for part in parts)
    if address[0] & _MULTICAST:
        raise ConfigError(f"{option} {text}: a multicast address; make the first byte even")
    if not any(address):
        raise ConfigError(f"{option} {text}: nobody's address; give another, or none")
    return address


def _is_byte(text: str) -> bool:
    return len(text) == 2 and all(character in "0123456789abcdefABCDEF" for character in text)


def show(address: bytes) -> str:
    """Return the address as people write it."""
    return address.hex(":")


def made(*words: str) -> bytes:
    """Return a locally administered address that is always the same for this host and `words`.

    46 bits of it depend on them, so that two that meet on a network are a one in 70 million
    million chance. Hosts are told apart by /etc/machine-id.
    """
    state = _FNV_START
    for byte in b"\0".join((_host(), *map(os.fsencode, words))):
        state = (state ^ byte) * _FNV_PRIME & (1 << 64) - 1
    folded = (state ^ state >> 32).to_bytes(8, "little")[:SIZE]
    return bytes((folded[0] & ~_MULTICAST | _LOCAL, *folded[1:]))


def _host() -> bytes:
    try:
        with open(_MACHINE_ID, "rb") as file:
            return file.read()
    except OSError:
        return os.fsencode(os.uname().nodename)
