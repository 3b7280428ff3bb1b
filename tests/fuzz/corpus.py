"""Inputs of a target as one file of text: a line each, in hexadecimal or as Python writes bytes.

What is shorter is taken. A line that begins with `#` says what the ones after it have found.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def line(data: bytes) -> str:
    """Return an input as a line."""
    return min(data.hex() or "b''", repr(data), key=len)


def parse(text: str) -> bytes:
    """Return the input of a line."""
    if text.startswith("b"):
        # A hexadecimal digit as well.
        return bytes(ast.literal_eval(text)) if text[1:2] in "\"'" else bytes.fromhex(text)
    return bytes.fromhex(text)


def read(path: Path) -> list[bytes]:
    """Return the inputs of a file, none where there is no such file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    return [parse(one) for one in lines if one and not one.startswith("#")]


def found(path: Path) -> list[str]:
    """Return the lines of a file from the first comment on: inputs that have found something."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="ascii").splitlines()
    first = next((at for at, one in enumerate(lines) if one.startswith("#")), len(lines))
    return lines[first:]


def write(path: Path, inputs: Iterable[bytes]) -> None:
    """Write inputs, the shortest first, before those that have found something."""
    kept = found(path)
    lines = [line(data) for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{one}\n" for one in (*lines, *kept)), encoding="ascii")


def unpack(inputs: Iterable[bytes], folder: Path) -> None:
    """Write each input to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs):
        (folder / f"{number:04}").write_bytes(data)
