"""Runs each fuzz target of native/fuzz for a while under the sanitizers.

The same inputs every time: libFuzzer's own, from one seed. For a longer search build a target as
its comment says and give it a folder for what it finds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pyvirt.native.build import HERE
from pyvirt.native.program import build

from ..effort import tries

TARGETS = sorted((HERE / "fuzz").glob("fuzz_*.c"))
RUNS = tries(20_000)
RUN_SECONDS = 120


@pytest.mark.parametrize("target", TARGETS, ids=lambda path: path.stem)
def test_target(target: Path, tmp_path: Path) -> None:
    program = build(target, "fuzz")
    limits = [f"-runs={RUNS}", "-seed=1", "-max_len=512", "-timeout=10"]
    ran = subprocess.run(
        [str(program), *limits],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        cwd=tmp_path,
        check=False,
    )
    sys.stderr.write(ran.stderr[-4000:])
    assert ran.returncode == 0
    assert f"Done {RUNS} runs" in ran.stderr


def test_there_are_targets() -> None:
    assert TARGETS
