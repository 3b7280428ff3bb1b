"""Small programs for guests: C sources of ours, linked statically, compiled on first use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import cache
from .tool import run

COMPILER = (
    "gcc",
    "-static",
    "-O2",
    "-s",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wconversion",
)
TIMEOUT_S = 120.0


def program(name: str, folder: Path) -> Path:
    """Return the program of all sources in `folder`, compiled again when one has changed.

    `name` is the begin of its name in the cache. Raises BackendError.
    """
    files = sorted([*folder.glob("*.[ch]")])
    parts = [part for file in files for part in (file.name, file.read_bytes())]
    slug = f"{name}-{cache.digest(' '.join(COMPILER), *parts)}"
    return cache.entry(slug, lambda place: compile_into(place, folder, COMPILER))


def compile_into(place: Path, folder: Path, compiler: Sequence[str]) -> None:
    """Compile the C files of `folder` into the program `place`. Raises BackendError."""
    sources = [str(file) for file in sorted(folder.glob("*.c"))]
    run([*compiler, "-o", str(place), *sources], timeout=TIMEOUT_S)
