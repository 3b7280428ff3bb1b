"""Builds and runs the C tests of native/tests under the sanitizers.

Each test_*.c there is a program that ends with 0 when all is well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyvirt.native.build import HERE
from pyvirt.native.program import build

TESTS = HERE / "tests"
PROGRAMS = sorted(TESTS.rglob("test_*.c"))
RUN_SECONDS = 120

VARIANTS = ("address", pytest.param("thread", marks=pytest.mark.long))
OPTIONS = {
    # A cancelled thread leaves the frames it was in poisoned, and releasing an alternate signal
    # stack would trip over them.
    "ASAN_OPTIONS": "use_sigaltstack=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def without_address_randomization() -> list[str]:
    """Return the wrapper that keeps ThreadSanitizer's fixed mappings free, where it may run."""
    wrapper = ["setarch", "--addr-no-randomize"]
    allowed = (
        shutil.which(wrapper[0]) and not subprocess.run([*wrapper, "true"], check=False).returncode
    )
    return wrapper if allowed else []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(TESTS)))
def test_program(program: Path, variant: str, tmp_path: Path) -> None:
    binary = build(program, variant)
    wrapper = without_address_randomization() if variant == "thread" else []
    ran = subprocess.run(
        [*wrapper, str(binary)],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        env={**os.environ, **OPTIONS},
        cwd=tmp_path,
        check=False,
    )
    sys.stderr.write(ran.stderr)
    assert ran.returncode == 0, f"exit status {ran.returncode}"


def test_there_are_programs() -> None:
    assert PROGRAMS
