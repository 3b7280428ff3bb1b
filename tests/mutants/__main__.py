"""Put each mutant of the list into a copy of the checkout and see whether its tests find it.

    python -m tests.mutants [--seconds N] [--jobs N] [WORD...]

Of those that have all WORDs in what is said of them. What is known stays in build/mutants until
the mutant or its file changes, or the tests that did not find it: after an interruption, or after
N seconds, the same command goes on. A mutant that does not compile, and a test that fails without
one, is an error.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path

from pyvirt.native.build import HERE as NATIVE

from ..effort import QUICK
from ..native.test_native import OPTIONS, without_address_randomization
from ..tree import ROOT, Tree
from .listed import KINDS, Mutant, mutants, mutated, source

FOLDER = ROOT / "build/mutants"
JOBS = os.cpu_count() or 1
BUILD_SECONDS = 300
PATIENCE_S = 20  # beyond three times what a test takes without a mutant
UNKNOWN_S = 120  # where that is not known yet
LEAST = 95  # percent that is to be found
KILLED, SURVIVED = "killed", "survived"


class Runner:
    """One copy of the checkout, in which one mutant at a time is tried."""

    def __init__(self, limits: Limits) -> None:
        self._tree = Tree(self._claim())
        self._tree.install(ROOT / "native/_native.abi3.so")
        self._limits = limits
        self._has_module = False  # with what is in the files now
        self._is_python_ours = True

    def _claim(self) -> Path:
        """Return the folder of a copy that no other run has."""
        for number in count():
            folder = FOLDER / f"tree{number}"
            self._lock = open(f"{folder}.lock", "wb")  # noqa: SIM115  (held to the process's end)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
            else:
                return folder
        raise AssertionError

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Return what became of the mutant, and the test that found it."""
        path = self._tree.folder / mutant.file
        path.write_text(mutated(mutant, source(mutant)), encoding="utf-8")
        self._has_module &= not mutant.is_c
        self._is_python_ours = mutant.is_c
        killed_by = ""
        try:
            for test in mutant.tests:
                if not self.passes(test, self._limits.of(test)):
                    killed_by = test
                    break
        finally:
            self._tree.restore(mutant.file)
            self._is_python_ours = True
            self._has_module &= not mutant.is_c
        if not killed_by:
            return SURVIVED, ""
        self._limits.learn(killed_by, self)
        return KILLED, killed_by

    def passes(self, test: str, limit: float) -> bool:
        """Run a test, for `limit` seconds at most; RuntimeError when it cannot be built."""
        program, _, variant = test.partition(" ")
        # A mutant's bytecode would be taken for that of the file as it was.
        environment = {**os.environ, QUICK: "1"}
        if not self._is_python_ours:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        if program.endswith(".c"):
            command = [self._build(variant or "address", f"native/tests/{program}")]
            command = [*(without_address_randomization() if variant else []), *command]
            environment |= OPTIONS
        else:
            if not self._has_module:
                self._tree.install(Path(self._build("plain")))
                self._has_module = True
            command = [str(self._tree.python), "-m", "pytest", "-x", "-q"]
            command += ["-p", "no:cacheprovider", test]
        with tempfile.TemporaryDirectory(prefix="pyvirt-mutant-") as folder:
            process = subprocess.Popen(
                command,
                cwd=folder if program.endswith(".c") else self._tree.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                return process.wait(limit) == 0
            except subprocess.TimeoutExpired:
                return False
            finally:
                _end_group(process)

    def _build(self, variant: str, *program: str) -> str:
        command = [str(self._tree.python), "-m", "pyvirt.native.program", variant, *program]
        done = subprocess.run(
            command,
            cwd=self._tree.folder,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"does not compile:\n{done.stderr[-600:]}")
        return done.stdout.splitlines()[-1]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what a test has left, too."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


class Limits:
    """How long each test may take with a mutant, by how long it takes without."""

    def __init__(self) -> None:
        self._path = FOLDER / "limits.json"
        self._seconds: dict[str, float] = (
            json.loads(self._path.read_text()) if self._path.exists() else {}
        )

    def of(self, test: str) -> float:
        """Return seconds."""
        known = self._seconds.get(_name(test))
        return UNKNOWN_S if known is None else PATIENCE_S + 3 * known

    def learn(self, test: str, runner: Runner) -> None:
        """See that the test passes as the code is; RuntimeError when it does not."""
        if _name(test) in self._seconds:
            return
        begin = time.monotonic()
        if not runner.passes(test, BUILD_SECONDS):
            raise RuntimeError(f"{test} fails without a mutant")
        self._seconds[_name(test)] = time.monotonic() - begin
        self._path.write_text(json.dumps(self._seconds))


def _name(test: str) -> str:
    return f"{test} {_digest_of_test(test)}"


@cache
def _digest_of_test(test: str) -> str:
    name = test.partition(" ")[0]
    path = NATIVE / "tests" / name if name.endswith(".c") else ROOT / name
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def key(mutant: Mutant, result: str) -> str:
    """Return what a result is known by."""
    what = asdict(mutant) | {"survives": "", "tests": [], "result": result}
    digest = hashlib.sha256(json.dumps(what).encode())
    digest.update(source(mutant).encode())
    for test in mutant.tests if result == SURVIVED else ():
        digest.update(test.encode() + _digest_of_test(test).encode())
    return digest.hexdigest()[:32]


class Results:
    """What is known, in a file to which each is appended."""

    def __init__(self) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._path = FOLDER / "results.jsonl"
        self._known: set[str] = set()
        if self._path.exists():
            self._known.update(json.loads(x)[0] for x in self._path.read_text().splitlines())

    def of(self, mutant: Mutant) -> str:
        """Return what became of it, "" when that is not known."""
        results = (r for r in (KILLED, SURVIVED) if key(mutant, r) in self._known)
        return next(results, "")

    def add(self, mutant: Mutant, result: str, by: str) -> None:
        """Keep one."""
        self._known.add(key(mutant, result))
        with self._path.open("a") as file:
            file.write(json.dumps([key(mutant, result), str(mutant), result, by]) + "\n")


def report(listed: Sequence[Mutant], results: Results) -> int:
    """Print how it stands as a table, and who survived; return 0 if enough were found."""
    told = [(mutant, results.of(mutant)) for mutant in listed]
    counts = Counter((mutant.kind, result) for mutant, result in told)
    print("\n| kind | mutants | killed | survived |\n|---|---|---|---|")
    for kind, meaning in KINDS.items():
        killed, survived = counts[kind, KILLED], counts[kind, SURVIVED]
        number = sum(mutant.kind == kind for mutant in listed)
        if number:
            print(f"| {kind}: {meaning} | {number} | {killed} | {survived} |")
    killed = sum(result == KILLED for _, result in told)
    survived = sum(result == SURVIVED for _, result in told)
    print(f"| all | {len(told)} | {killed} | {survived} |\n")
    for mutant, result in told:
        if result == SURVIVED:
            print(f"- {mutant}: {mutant.survives or 'NOT EXPLAINED'}")
    unexplained = any(r == SURVIVED and not mutant.survives for mutant, r in told)
    is_done = killed + survived == len(told)
    if not is_done:
        print(f"{len(told) - killed - survived} are not known yet; the same command goes on")
    return int(not is_done or unexplained or 100 * killed < LEAST * len(told))


def main() -> int:
    """Return 0 when all are known and enough were found."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--seconds", type=int, default=0, help="end after so long")
    parser.add_argument("--jobs", type=int, default=JOBS, help="so many at once")
    parser.add_argument("word", nargs="*", help="only mutants of which this is said")
    given = parser.parse_args()
    # As for the whole suite, see tests/__main__.py.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    results = Results()
    listed = [m for m in mutants() if all(word in str(m) for word in given.word)]
    todo = [mutant for mutant in listed if not results.of(mutant)]
    end = time.monotonic() + given.seconds if given.seconds else float("inf")
    limits = Limits()
    free: queue.Queue[Runner] = queue.Queue()
    for _ in range(min(given.jobs, len(todo))):
        free.put(Runner(limits))
    errors = []

    def try_one(number: int, mutant: Mutant) -> None:
        if time.monotonic() > end or Results().of(mutant):
            return  # or another run has tried it meanwhile
        runner, begin = free.get(), time.monotonic()
        try:
            result, by = runner.judge(mutant)
            results.add(mutant, result, by)
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            errors.append(f"{mutant}: {error}")
            result, by = "ERROR", ""
        finally:
            free.put(runner)
        seconds = time.monotonic() - begin
        place = f"{number}/{len(todo)}"
        print(f"{place:>8} {result:<9} {mutant} {f'by {by}' if by else ''} ({seconds:.0f} s)")
        sys.stdout.flush()

    with ThreadPoolExecutor(given.jobs) as pool:
        for job in [pool.submit(try_one, n, m) for n, m in enumerate(todo, 1)]:
            job.result()
    status = report(listed, results)
    print(*errors, sep="\n")
    return status or int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
