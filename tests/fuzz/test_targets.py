"""Replays what is kept of each target's inputs, and tries some that are new.

The same every time. For a longer search: `make fuzz`, docs/fuzzing.md.
"""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ..effort import tries
from . import corpus
from .run import LIMITS
from .target import Target, environment, targets

if TYPE_CHECKING:
    from pathlib import Path

C_TARGETS = [target for target in targets() if target.is_c]
PYTHON_TARGETS = [target for target in targets() if not target.is_c]
RUNS = tries(2000)
PYTHON_RUNS = tries(200)
RUN_SECONDS = 300


@pytest.mark.parametrize("target", C_TARGETS, ids=lambda target: target.name)
def test_c(target: Target, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    corpus.unpack(corpus.read(target.corpus), kept)
    limits = [f"-runs={RUNS}", "-seed=1", f"-max_len={target.length}", *LIMITS]
    ran = subprocess.run(
        [*target.command(), *limits, str(kept)],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    sys.stderr.write(ran.stderr[-4000:])
    assert ran.returncode == 0
    assert f"Done {RUNS} runs" in ran.stderr


def mutated(rng: random.Random, inputs: list[bytes]) -> bytes:
    """Return an input with some bytes changed, or the beginning of one and the end of another."""
    data = bytearray(rng.choice(inputs))
    if rng.random() < 0.3:
        other = rng.choice(inputs)
        return bytes(data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :])
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
    return bytes(data)


@pytest.mark.parametrize("target", PYTHON_TARGETS, ids=lambda target: target.name)
def test_python(target: Target) -> None:
    function = target.function()
    inputs = corpus.read(target.corpus) or [b""]
    for data in inputs:
        function(data)
    rng = random.Random(1)
    for _ in range(PYTHON_RUNS):
        data = mutated(rng, inputs)
        try:
            function(data)
        except Exception:
            print(f"input: {corpus.line(data)}")
            raise


def test_there_are_targets_and_inputs_of_each() -> None:
    assert len(C_TARGETS) >= 7
    missing = [target.name for target in targets() if not corpus.read(target.corpus)]
    assert missing == []


def test_inputs_come_out_as_they_went_in(tmp_path: Path) -> None:
    inputs = [b"", b"\0", b"ab", b"b\"quoted'", bytes(range(256)), b"\xbb\x00"]
    path = tmp_path / "corpus" / "some.txt"
    corpus.write(path, inputs)
    assert sorted(corpus.read(path)) == sorted(inputs)
    with path.open("a", encoding="ascii") as file:
        file.write("# found by them\n00ff\n")
    corpus.write(path, [b"x"])
    assert corpus.read(path) == [b"x", b"\0\xff"]
    assert path.stat().st_size < 40
