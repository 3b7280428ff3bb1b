"""Builds a C program of native/tests or native/fuzz, by itself and without Python.

    .venv/bin/python -m pyvirt.native.program VARIANT SOURCE OUTPUT

It is linked with an archive of all C files of this folder, of which it gets what it uses. The
archive of a variant (see VARIANTS) is kept in build/native until a C file or a header changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .build import FLAGS, HEADERS_ALL, HERE, LIBRARIES, SOURCES, WARNINGS

ARCHIVES = HERE.parent / "build/native"
BUILD_SECONDS = 120


class Variant(NamedTuple):
    """A compiler, what every file is compiled with, and what only the program itself is."""

    compiler: str
    flags: tuple[str, ...] = ()
    program: tuple[str, ...] = ()


_FATAL = "-fno-sanitize-recover=all"
VARIANTS = {
    "plain": Variant("gcc"),
    "address": Variant("gcc", ("-fsanitize=address,undefined", _FATAL, "-fno-omit-frame-pointer")),
    "thread": Variant("clang", ("-fsanitize=thread",)),
    "fuzz": Variant(
        "clang",
        ("-fsanitize=fuzzer-no-link,address,undefined", _FATAL),
        ("-fsanitize=fuzzer",),
    ),
}


def _run(*command: str) -> None:
    """Run a compiler; raise RuntimeError with what it says."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _archive(name: str) -> Path:
    """Return the archive of a variant; compile what has changed since it was made."""
    variant = VARIANTS[name]
    compile_one = (variant.compiler, *FLAGS, *WARNINGS, *variant.flags, f"-I{HERE}", "-c")
    common = hashlib.sha256(repr(compile_one).encode())
    for header in HEADERS_ALL:
        common.update((HERE / header).read_bytes())
    objects: dict[Path, str] = {}
    whole = common.copy()
    for source in SOURCES:
        digest = common.copy()
        digest.update(source.encode() + (HERE / source).read_bytes())
        whole.update(digest.digest())
        objects[ARCHIVES / name / f"{digest.hexdigest()[:32]}.o"] = source
    archive = ARCHIVES / name / f"{whole.hexdigest()[:32]}.a"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with open(archive.parent / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if archive.exists():
            return archive
        missing = [path for path in objects if not path.exists()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, _ in zip(
                missing,
                pool.map(
                    lambda p: _run(*compile_one, str(HERE / objects[p]), "-o", f"{p}~"), missing
                ),
                strict=True,
            ):
                os.replace(f"{path}~", path)
        _run("ar", "rcs", f"{archive}~", *map(str, objects))
        os.replace(f"{archive}~", archive)
        for old in archive.parent.glob("*.[oa]"):
            if old != archive and old not in objects:
                old.unlink()
    return archive


def build(program: Path, variant: str, output: Path) -> None:
    """Build the program; raise RuntimeError with the compiler's words when it cannot be."""
    compiler, flags, own = VARIANTS[variant]
    _run(
        *(compiler, *FLAGS, *WARNINGS, *flags, *own, f"-I{HERE}", str(program)),
        *(str(_archive(variant)), *(f"-l{name}" for name in LIBRARIES), "-o", str(output)),
    )


if __name__ == "__main__":
    build(Path(sys.argv[2]), sys.argv[1], Path(sys.argv[3]))
