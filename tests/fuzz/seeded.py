"""Puts a bug into a copy of the code, and has its target look for it: seeded.toml.

python -m tests.fuzz.seeded [NAME...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from pyvirt.native.build import FLAGS, HERE, LIBRARIES
from pyvirt.native.program import VARIANTS, build

from .corpus import read, unpack
from .run import LIMITS
from .target import ROOT, environment, targets

if TYPE_CHECKING:
    from .target import Target

_SECONDS = 120  # to find one
_ENDLESS_S = 10  # of an input, which is one that does not end
_BUILD_SECONDS = 300
_LEFT_OUT = (".git", ".venv", "build", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")


def changed(file: str, before: str, after: str) -> str:
    """Return a file's text with the bug."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if text.count(before) != 1:
        raise SystemExit(f"seeded.toml: {file} does not have once: {before}")
    return text.replace(before, after)


def program(target: Target, file: str, text: str, folder: Path) -> list[str]:
    """Return the command of a target in C; the archive gives it all other files."""
    copy = folder / Path(file).relative_to("native")
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text, encoding="utf-8")
    archive = next(build(target.path, "fuzz").parent.glob("*.a"))
    variant, built = VARIANTS["fuzz"], folder / "program"
    # Some targets include the file, and find this one then.
    is_included = f'"{copy.relative_to(folder)}"' in target.path.read_text(encoding="utf-8")
    sources = [target.path] if is_included else [target.path, copy]
    subprocess.run(
        [
            *(variant.compiler, *FLAGS, *variant.flags, *variant.program),
            *(f"-I{folder}", f"-I{HERE}", *map(str, sources), str(archive)),
            *(f"-l{library}" for library in LIBRARIES),
            *("-o", str(built)),
        ],
        check=True,
        timeout=_BUILD_SECONDS,
    )
    return [str(built)]


def package(target: Target, file: str, text: str, folder: Path) -> list[str]:
    """Return the command of a target in Python, in a copy of all."""
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=True)
    (copy / file).write_text(text, encoding="utf-8")
    (copy / "build").mkdir()
    (copy / "build/pyvirt").symlink_to("..")
    path = f"PYTHONPATH={copy / 'build'}{os.pathsep}{copy}"
    return ["env", f"--chdir={copy}", path, *target.command()]


def finds(target: Target, file: str, before: str, after: str) -> bool:
    """Say whether the target finds the bug."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make = program if target.is_c else package
        command = make(target, file, changed(file, before, after), folder)
        unpack(read(target.corpus), folder / "kept")
        limits = [*LIMITS, f"-timeout={_ENDLESS_S}", "-seed=1", f"-max_len={target.length}"]
        limits += [f"-artifact_prefix={folder}/"]
        done = subprocess.run(
            [*command, *limits, f"-max_total_time={_SECONDS}", str(folder / "kept")],
            capture_output=True,
            env=environment(),
            cwd=folder,
            check=False,
        )
    return b"Test unit written" in done.stderr


def main() -> int:
    """Return how many bugs were not found."""
    known = {one.name: one for one in targets()}
    table = tomllib.loads((Path(__file__).parent / "seeded.toml").read_text(encoding="utf-8"))
    missed = 0
    for name in sys.argv[1:] or table:
        for file, before, after in table[name]:
            start = time.monotonic()
            found = finds(known[name], file, before, after)
            missed += not found
            what = "found" if found else "NOT FOUND"
            print(f"{name}: {file}: {before} -> {after or 'nothing'}: {what}, "
                  f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    return missed


if __name__ == "__main__":
    sys.exit(main())
