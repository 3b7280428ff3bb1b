"""What guests/writer.S has written: each block that it told of must be there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pyvirt.devices.disk import Disk
from pyvirt.errors import ConfigError

from .support import PATIENCE

BLOCK, BLOCKS = 4096, 256


def make_image(path: Path) -> Path:
    """Make an image of zeroes, which hold no block's number."""
    path.write_bytes(b"")
    os.truncate(path, BLOCK * BLOCKS)
    return path


def told(output: bytes) -> list[int]:
    """Return the numbers of the blocks that are safe, by the whole lines of the guest's output."""
    lines = output.split(b"\n")[:-1]
    assert [int(line.lstrip(b"!"), 16) for line in lines] == list(range(1, len(lines) + 1))
    return [number for number, line in enumerate(lines, 1) if not line.startswith(b"!")]


def check(image: Path | int, numbers: list[int]) -> None:
    """See that each of these blocks is there, or a later one in its place, and each whole."""
    with open(image, "rb", closefd=not isinstance(image, int)) as file:
        file.seek(0)
        data = file.read().ljust(BLOCK * BLOCKS, b"\0")
    found = []
    for place in range(BLOCKS):
        block = data[place * BLOCK :][:BLOCK]
        word = block[:8]
        assert block == word * (BLOCK // 8), f"the block at {place} is not whole"
        found.append(int.from_bytes(word, "little"))
    for number in numbers:
        there = found[number % BLOCKS]
        assert there >= number, f"block {number} was told of and is gone: {there}"
        assert there % BLOCKS == number % BLOCKS


def wait_until_free(image: Path) -> None:
    """Wait until the lock has fallen, which what was in flight holds to its very end."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return Disk(str(image), direct=False).close()
        except ConfigError:
            assert time.monotonic() < until, "the image is still locked"
            time.sleep(0.001)
