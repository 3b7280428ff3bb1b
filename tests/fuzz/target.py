"""What targets there are, and how each is run: as a program with libFuzzer's options."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyvirt.native.build import HERE
from pyvirt.native.program import build

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON = Path(__file__).parent
ROOT = PYTHON.parents[1]
FOLDER = ROOT / "build/fuzz"  # of what is not kept
_PREFIX = "fuzz_"


@dataclass(frozen=True)
class Target:
    """A file `fuzz_NAME.c` or `fuzz_NAME.py`; beside it corpus/NAME.txt (corpus.py)."""

    name: str
    path: Path

    @property
    def is_c(self) -> bool:
        """Tell whether it is in C."""
        return self.path.suffix == ".c"

    @property
    def corpus(self) -> Path:
        """Return where its inputs are."""
        return self.path.parent / "corpus" / f"{self.name}.txt"

    @property
    def length(self) -> int:
        """Return how long an input is at most, in bytes."""
        return 512 if self.is_c else 2048

    def command(self) -> list[str]:
        """Return what runs it under libFuzzer; Python's is Atheris'. RuntimeError."""
        if self.is_c:
            return [str(build(self.path, "fuzz"))]
        self.script.parent.mkdir(parents=True, exist_ok=True)
        self.script.write_text(
            f'#!/bin/sh\nexec {sys.executable} -m tests.fuzz.engine {self.name} "$@"\n',
            encoding="utf-8",
        )
        self.script.chmod(0o755)
        return [str(self.script)]

    @property
    def script(self) -> Path:
        """Return the program that one in Python is, to libFuzzer, which starts it anew to merge."""
        return FOLDER / self.name / "run"

    def function(self) -> Callable[[bytes], None]:
        """Return that of a target in Python: it raises when something is wrong."""
        module = importlib.import_module(f"{__package__}.{self.path.stem}")
        function: Callable[[bytes], None] = module.fuzz
        return function


def targets() -> list[Target]:
    """Return all, by their names."""
    files = [*(HERE / "fuzz").glob(f"{_PREFIX}*.c"), *PYTHON.glob(f"{_PREFIX}*.py")]
    found = [Target(path.stem.removeprefix(_PREFIX), path) for path in files]
    return sorted(found, key=lambda one: one.name)


def environment() -> dict[str, str]:
    """Return that of a target: the package is found by its folder, as Atheris has to see it."""
    path = os.pathsep.join((str(ROOT / "build"), str(ROOT)))
    return {**os.environ, "PYTHONPATH": path, "ASAN_OPTIONS": "detect_leaks=1"}
