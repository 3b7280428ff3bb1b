"""Sizes of memory, as `-m` has them."""

from __future__ import annotations

from ...errors import ConfigError
from ...vmm.memory import MIB, SIZE_MAX, SIZE_MIN


def memory_size(option: str, text: str, least: int = SIZE_MIN) -> int:
    """Return the bytes that `256`, `256M` or `1G` stands for (MiB where no unit is given).

    ConfigError: less than `least` bytes among others.
    """
    number, unit = text, "M"
    if text[-1:] in "MmGg" and text:
        number, unit = text[:-1], text[-1].upper()
    if not (number.isascii() and number.isdigit() and len(number) < 10):
        raise ConfigError(f"{option} {text}: not a size; give one such as 256, 256M or 1G")
    size = int(number) * (MIB if unit == "M" else 1024 * MIB)
    if not least <= size <= SIZE_MAX:
        raise ConfigError(
            f"{option} {text}: not between {least // MIB}M and 512G; give a size in that range"
        )
    return size
