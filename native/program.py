"""Builds a C program of native/tests or native/fuzz, by itself and without Python.

    .venv/bin/python -m pyvirt.native.program VARIANT [SOURCE]

It is linked with an archive of all C files of this folder, of which it gets what it uses. Both are
kept in build/native, one folder for each variant (see VARIANTS), until what they are made of
changes. Without a SOURCE it is the extension that is made of the archive, for a copy of the
checkout to have in place of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

from .build import FLAGS, HEADERS_ALL, HERE, LIBRARIES, PROGRAMS, SOURCES, WARNINGS, WHOLE, make

ARCHIVES = HERE.parent / "build/native"
BUILD_SECONDS = 120


class Variant(NamedTuple):
    """A compiler, what every file is compiled with, and what only the program itself is."""

    compiler: str
    flags: tuple[str, ...] = ()
    program: tuple[str, ...] = ()


# Where programs of the variant "coverage" count, as they go: also those that are killed.
PROFILES = HERE.parent / "build/coverage/profiles"
_FATAL = "-fno-sanitize-recover=all"
# Less optimization halves the time to compile; the programs' own speed does not matter.
VARIANTS = {
    "plain": Variant("gcc"),
    "whole": Variant("gcc", WHOLE),  # as the extension
    "address": Variant(
        "gcc", ("-O1", "-fsanitize=address,undefined", _FATAL, "-fno-omit-frame-pointer"), ("-O0",)
    ),
    "thread": Variant("clang", ("-O1", "-fsanitize=thread"), ("-O0",)),
    "fuzz": Variant(
        "clang",
        ("-O1", "-fsanitize=fuzzer-no-link,address,undefined", _FATAL),
        ("-fsanitize=fuzzer",),
    ),
    "coverage": Variant(
        "clang",
        (
            *("-O1", f"-fprofile-instr-generate={PROFILES}/%m%c.profraw"),
            *("-fcoverage-mapping", "-mllvm", "-runtime-counter-relocation"),
        ),
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
    compile_one = (variant.compiler, *FLAGS, *WARNINGS, *variant.flags, "-fPIC", f"-I{HERE}", "-c")
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


def build(program: Path, variant: str) -> Path:
    """Return the built program; raise RuntimeError with the compiler's words when it cannot be."""
    compiler, flags, own = VARIANTS[variant]
    archive = _archive(variant)
    command = (compiler, *FLAGS, *WARNINGS, *flags, *own, f"-I{HERE}", str(program), str(archive))
    digest = hashlib.sha256(repr(command).encode() + program.read_bytes())
    for folder in PROGRAMS:
        for header in sorted((HERE / folder).rglob("*.h")):
            digest.update(header.read_bytes())
    name = "-".join(program.relative_to(HERE).with_suffix("").parts)
    built = archive.parent / f"{name}.{digest.hexdigest()[:32]}"
    if not built.exists():
        # Somebody else may be about the same.
        own_copy = f"{built}~{os.getpid()}"
        _run(*command, *(f"-l{library}" for library in LIBRARIES), "-o", own_copy)
        os.replace(own_copy, built)
        for old in archive.parent.glob(f"{name}.*"):
            if old != built and "~" not in old.name:
                old.unlink(missing_ok=True)
    return built


def module(variant: str) -> Path:
    """Return the built extension; RuntimeError as by `build`."""
    compiler, flags, _ = VARIANTS[variant]
    archive = _archive(variant)
    folder = archive.parent / "module"
    folder.mkdir(exist_ok=True)
    includes = (f"-I{HERE}", f"-I{sysconfig.get_path('include')}")
    compile_it = (compiler, *FLAGS, *flags, "-fPIC", *includes)
    digest = hashlib.sha256(repr(compile_it).encode())
    for name in (*HEADERS_ALL, "build.py", "kvm.cdef", "libc.cdef"):
        digest.update((HERE / name).read_bytes())
    glue = folder / f"{digest.hexdigest()[:32]}.o"
    if not glue.exists():
        source = glue.with_suffix(".c")
        with redirect_stdout(io.StringIO()):  # it says so
            make().emit_c_code(str(source))
        _run(*compile_it, "-c", str(source), "-o", f"{glue}~")
        os.replace(f"{glue}~", glue)
    built = folder / "_native.abi3.so"
    whole = ("-Wl,--whole-archive", str(archive), "-Wl,--no-whole-archive")
    libraries = (f"-l{library}" for library in LIBRARIES)
    _run(compiler, *flags, "-pthread", "-shared", str(glue), *whole, *libraries, "-o", str(built))
    return built


if __name__ == "__main__":
    variant, *source = sys.argv[1:]
    # This folder may be known by a link.
    programs = [HERE / Path(name).resolve().relative_to(HERE.resolve()) for name in source]
    print(build(programs[0], variant) if programs else module(variant))
