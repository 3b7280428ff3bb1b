"""How much of native/ the tests run: `python -m tests.coverage [WHAT...]`, for `make coverage`.

The C tests, and tests/unit and tests/kvm with an extension that counts, in a copy of the checkout.
WHAT is run in addition to what has been counted: "c" for the C tests, or paths of others. Counts
are kept in memory that is a file's, so that nothing is lost of a process that is killed or in a
sandbox. Needs Debian's llvm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyvirt.native.build import HERE
from pyvirt.native.program import PROFILES, build, module

from .tree import Tree

FOLDER = PROFILES.parent
OTHERS = ("tests/unit", "tests/kvm")
C_TESTS = "c"
GENERATED = ("sandbox/programs.c",)  # a table, without code
LEAST = 95  # percent of lines
PROGRAM_SECONDS = 120
SECONDS = 2700


@dataclass
class Counts:
    """What was run of a file or of several: how often each line, and each way out of a branch."""

    lines: dict[int, int] = field(default_factory=dict)
    branches: list[int] = field(default_factory=list)

    def missed(self) -> list[int]:
        """Return the lines that never ran."""
        return sorted(line for line, count in self.lines.items() if count == 0)


@dataclass(frozen=True)
class Sum:
    """Numbers of a file, a room or all."""

    lines: int = 0
    lines_run: int = 0
    branches: int = 0
    branches_run: int = 0

    @staticmethod
    def of(counts: Iterable[Counts]) -> Sum:
        """Add up."""
        total = Sum()
        for one in counts:
            total = Sum(
                total.lines + len(one.lines),
                total.lines_run + len(one.lines) - len(one.missed()),
                total.branches + len(one.branches),
                total.branches_run + sum(count > 0 for count in one.branches),
            )
        return total

    def row(self, name: str) -> str:
        """Return the first columns of a line of the table."""
        shares = (
            f"{run:>6}/{all_of_it:<6}{100 * run / all_of_it if all_of_it else 100:5.1f} %"
            for run, all_of_it in (
                (self.lines_run, self.lines),
                (self.branches_run, self.branches),
            )
        )
        return f"{name:<28}{'  '.join(shares)}"


def read(lcov: str) -> dict[str, Counts]:
    """Return what is said of each C file, named relative to native/."""
    found: dict[str, Counts] = {}
    counts = Counts()
    for line in lcov.splitlines():
        key, _, value = line.partition(":")
        if key == "SF":
            counts = Counts()
            path = Path(value)
            if path.is_relative_to(HERE) and path.suffix == ".c":
                found[str(path.relative_to(HERE))] = counts
        elif key == "DA":
            number, count = value.split(",")[:2]
            counts.lines[int(number)] = int(count)
        elif key == "BRDA":
            count = value.rpartition(",")[2]
            counts.branches.append(0 if count == "-" else int(count))
    for name in GENERATED:
        found.pop(name, None)
    return found


def ranges(lines: Sequence[int]) -> str:
    """Return line numbers as few words: "3, 7-9"."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and runs[-1][1] == line - 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def table(files: dict[str, Counts]) -> list[str]:
    """Return the lines of the report: each room with its files, then all."""
    lines = [f"{'':<28}{'lines':^20}  {'branches':^20}  not run"]
    rooms: dict[str, list[str]] = {}
    for name in sorted(files):
        rooms.setdefault(name.rpartition("/")[0] or ".", []).append(name)
    for room, names in sorted(rooms.items()):
        lines.append(Sum.of(files[name] for name in names).row(f"{room}/"))
        lines += [
            f"{Sum.of([files[name]]).row(f'  {Path(name).name}')}  {ranges(files[name].missed())}"
            for name in names
        ]
    return [line.rstrip() for line in (*lines, Sum.of(files.values()).row("total"))]


def _run_program(source: Path) -> bool:
    """Run a C test; return whether it passed."""
    program = build(source, "coverage")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [program], cwd=folder, capture_output=True, timeout=PROGRAM_SECONDS, check=False
        )
    if done.returncode:
        print(f"failed: {source.relative_to(HERE)}\n{done.stderr.decode(errors='replace')[-500:]}")
    return done.returncode == 0


def _run_c_tests() -> bool:
    sources = sorted((HERE / "tests").rglob("test_*.c"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return all(list(pool.map(_run_program, sources)))


def _run_others(paths: Sequence[str]) -> bool:
    """Run pytest in a copy of the checkout whose extension counts."""
    tree = Tree(FOLDER / "tree")
    tree.install(module("coverage"))
    command = [str(tree.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    command += ["-n", str((os.cpu_count() or 1) + 2), "--dist", "worksteal"]
    try:
        done = subprocess.run(command, cwd=tree.folder, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def counted() -> dict[str, Counts]:
    """Return what the profiles say."""
    merged = FOLDER / "merged.profdata"
    profiles = [str(path) for path in PROFILES.glob("*.profraw")]
    subprocess.run(
        ["llvm-profdata", "merge", "-sparse", *profiles, "-o", merged], check=True, timeout=300
    )
    export = ["llvm-cov", "export", "-format=lcov", f"-instr-profile={merged}"]
    export.append(str(module("coverage")))
    return read(subprocess.run(export, capture_output=True, check=True, text=True).stdout)


def main(what: Sequence[str]) -> int:
    """Return 0 when every test passed and enough was run."""
    if shutil.which("llvm-cov") is None:
        sys.exit("coverage: no llvm-cov; install Debian's llvm")
    if not what:
        shutil.rmtree(PROFILES, ignore_errors=True)
    PROFILES.mkdir(parents=True, exist_ok=True)
    # As for the whole suite, see tests/__main__.py.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    passed = True
    if not what or C_TESTS in what:
        passed &= _run_c_tests()
    others = [path for path in what if path != C_TESTS] if what else OTHERS
    if others:
        passed &= _run_others(others)
    files = counted()
    print(*table(files), sep="\n")
    total = Sum.of(files.values())
    if not passed:
        print("coverage: a test failed, or not all were run; it may be more than this")
    if 100 * total.lines_run < LEAST * total.lines:
        print(f"coverage: less than {LEAST} % of lines")
        return 1
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
