"""Builds and runs the C tests of native/tests under the sanitizers.

Each test_*.c there is a program that ends with 0 when all is well. Its comment names what it is
linked with, files of native/: `sources: ring.c console.c`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .sources import NATIVE, sources

PROGRAMS = sorted((NATIVE / "tests").glob("test_*.c"))
RUN_SECONDS = 120

ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
THREAD = ["-fsanitize=thread"]
VARIANTS = {"address": ("gcc", ADDRESS), "thread": ("clang", THREAD)}

OPTIONS = {
    # A cancelled thread leaves the frames it was in poisoned, and releasing an alternate signal
    # stack would trip over them.
    "ASAN_OPTIONS": "use_sigaltstack=0:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def build_flags() -> tuple[list[str], list[str]]:
    """Return the extension's own flags, with warnings as errors, and its libraries."""
    spec = importlib.util.spec_from_file_location("native_build", NATIVE / "build.py")
    assert spec
    assert spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return [*build.FLAGS, *build.WARNINGS], [f"-l{name}" for name in build.LIBRARIES]


def without_address_randomization() -> list[str]:
    """Return the wrapper that keeps ThreadSanitizer's fixed mappings free, where it may run."""
    wrapper = ["setarch", "--addr-no-randomize"]
    allowed = (
        shutil.which(wrapper[0]) and not subprocess.run([*wrapper, "true"], check=False).returncode
    )
    return wrapper if allowed else []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_program(program: Path, variant: str, tmp_path: Path) -> None:
    compiler, sanitizer = VARIANTS[variant]
    binary = tmp_path / program.stem
    flags, libraries = build_flags()
    command = [compiler, *flags, *sanitizer, f"-I{NATIVE}", str(program), *sources(program)]
    built = subprocess.run(
        [*command, *libraries, "-o", str(binary)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert built.returncode == 0, built.stderr
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
