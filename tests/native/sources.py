"""What a C program of native/ is made of, by its own comment."""

from __future__ import annotations

import re
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"


def sources(program: Path) -> list[str]:
    """Return the files of native/ that the program's comment names."""
    found = re.search(r"^ \* sources:((?:[^*]|\*(?!/))*)", program.read_text(), re.MULTILINE)
    assert found, f"{program.name} has no `sources:` in its comment"
    return [str(NATIVE / name) for name in found[1].replace("*", " ").split()]
