"""Prove C functions free of undefined behaviour, whatever a guest does: `make prove`.

Frama-C's Eva (Debian: frama-c-base) follows every path of a proof, native/proofs/prove_NAME.c,
with the values that it leaves open: what is in guest memory, what another thread has written, what
a register holds. An access outside of its object, a shift too far, a division by zero, an
assertion that does not follow: each is an alarm, and a proof has none. Then each bug of
prove.toml is put into a copy of the code, where the proof has to raise one.

Frama-C's WP shows that a function keeps to a contract, native/proofs/wp_NAME.c, for whatever it is
given; CVC4 (Debian: cvc4) decides what follows from what. Each bug has to leave something without
a proof.

Spin (Debian: spin) goes through all that can happen in a model, native/proofs/NAME.pml: nobody
waits for ever and no assertion fails, until a part of the protocol is left out.

    .venv/bin/python -m pyvirt.native.prove [NAME...]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .build import HERE

SECONDS = 900  # for one run of a prover
JOBS = 2
PROOFS = HERE / "proofs"
_INCLUDES = "-I . -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include"
_FRAMA_C = ("frama-c", "-c11", "-machdep", "gcc_x86_64", f"-cpp-extra-args={_INCLUDES}")
_EVA = (
    *_FRAMA_C,
    *("-warn-invalid-pointer", "-eva", "-eva-no-show-progress"),
    *("-eva-min-loop-unroll", "17", "-eva-split-return", "auto"),
    *("-eva-split-return-function", "pv_each:0:1:2:3:4:5:6:7"),
    "-eva-msg-key=-initial-state,-final-states",
)
_WP = (*_FRAMA_C, "-wp", "-wp-rte", "-wp-prover", "cvc4", "-wp-timeout", "20")
_GOALS = re.compile(r"^\[wp\] Proved goals: +(\d+) / (\d+)$", re.MULTILINE)
_UNPROVED = re.compile(r"^\[wp\] \[.*\] Goal \S+ : (?!Valid).*$", re.MULTILINE)
_ALARM = re.compile(r"^\[eva:alarm\].*\n(?:  .*\n)*", re.MULTILINE)
_ERRORS = re.compile(r"errors: (\d+)")
Change = tuple[str, str, str]


@dataclass(frozen=True)
class Proof:
    """What Eva proves; see prove.toml."""

    name: str
    functions: tuple[str, ...]
    precision: int
    paths: int
    inline: tuple[str, ...]
    smaller: tuple[Change, ...]
    seeds: tuple[Change, ...]


@dataclass(frozen=True)
class Contract:
    """What WP proves; see prove.toml."""

    name: str
    functions: tuple[str, ...]
    seeds: tuple[Change, ...]


@dataclass(frozen=True)
class Model:
    """What Spin proves; see prove.toml."""

    name: str
    variants: tuple[str, ...]
    left_out: tuple[str, ...]


def proofs() -> list[Proof]:
    """Return what there is for Eva."""
    return [
        Proof(
            name,
            tuple(entry["functions"]),
            entry.get("precision", 0),
            entry.get("paths", 50000),
            tuple(entry.get("inline", ())),
            _changes(entry.get("smaller", ())),
            _changes(entry["seeds"]),
        )
        for name, entry in _table()["eva"].items()
    ]


def contracts() -> list[Contract]:
    """Return what there is for WP."""
    return [
        Contract(name, tuple(entry["functions"]), _changes(entry["seeds"]))
        for name, entry in _table()["wp"].items()
    ]


def models() -> list[Model]:
    """Return what there is for Spin."""
    return [
        Model(name, tuple(entry["variants"]), tuple(entry["left_out"]))
        for name, entry in _table()["models"].items()
    ]


def _changes(listed: Sequence[Sequence[str]]) -> tuple[Change, ...]:
    return tuple((file, there, instead) for file, there, instead in listed)


def _table() -> dict[str, dict[str, dict[str, Any]]]:
    with (PROOFS / "prove.toml").open("rb") as file:
        return tomllib.load(file)


def change(folder: Path, what: Change) -> None:
    """Change a file below `folder`; ValueError where there is no such place, or more than one."""
    name, there, instead = what
    path = folder / name
    text = path.read_text()
    if text.count(there) != 1:
        raise ValueError(f"prove.toml: {there!r} is not once in {name}; write it as it is there")
    path.write_text(text.replace(there, instead))


def _run(
    words: Sequence[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **environment, "PWD": str(folder)},  # which Frama-C goes by
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@contextmanager
def _copied(*changes: Change) -> Iterator[Path]:
    """Make a copy of the code, with changes made to it."""
    with tempfile.TemporaryDirectory(prefix="pyvirt-prove-") as place:
        folder = Path(place, "native")
        shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("*.so", "__pycache__", "tests"))
        for one in changes:
            change(folder, one)
        yield folder


def alarms(proof: Proof, *changes: Change) -> list[str]:
    """Return what Eva finds wrong in a copy of the code, with changes made to it."""
    with _copied(*proof.smaller, *changes) as folder:
        words = [*_EVA, "-eva-precision", str(proof.precision), "-eva-slevel", str(proof.paths)]
        if proof.inline:
            words += ["-inline-calls", ",".join(proof.inline)]
        done = _run([*words, f"proofs/prove_{proof.name}.c"], folder)
    if done.returncode or "ANALYSIS SUMMARY" not in done.stdout:
        raise RuntimeError(f"frama-c: {done.stdout[-2000:]}")
    return _ALARM.findall(done.stdout)


def unproved(contract: Contract, *changes: Change) -> list[str]:
    """Return what WP cannot show of a copy of the code, with changes made to it."""
    with _copied(*changes) as folder:
        # It has to be told where provers are, and looks for that in the user's folder otherwise.
        known = str(folder / "why3.conf")
        _run(["why3", "config", "detect"], folder, WHY3CONFIG=known)
        words = [*_WP, "-wp-fct", ",".join(contract.functions)]
        done = _run([*words, f"proofs/wp_{contract.name}.c"], folder, WHY3CONFIG=known)
    goals = _GOALS.search(done.stdout)
    if done.returncode or goals is None or goals[2] == "0":
        raise RuntimeError(f"frama-c: {done.stdout[-2000:]}")
    return _UNPROVED.findall(done.stdout) if goals[1] != goals[2] else []


def errors(model: Model, *defines: str) -> int:
    """Return how many deadlocks and failed assertions Spin finds in a model, up to one."""
    with tempfile.TemporaryDirectory(prefix="pyvirt-prove-") as place:
        folder = Path(place)
        shutil.copy(PROOFS / f"{model.name}.pml", folder)
        told = ""
        for words in (
            ["spin", *(f"-D{name}" for name in defines), "-a", f"{model.name}.pml"],
            ["gcc", "-O1", "-DSAFETY", "-o", "pan", "pan.c"],
            ["./pan", "-m100000"],
        ):
            told = _run(words, folder).stdout
    found = _ERRORS.search(told)
    if found is None or "error: max search depth" in told:
        raise RuntimeError(f"spin: {told[-2000:]}")
    return int(found[1])


def _prove(proof: Proof) -> list[str]:
    wrong = [alarm.strip() for alarm in alarms(proof)]
    return wrong + [
        f"{seed[0]}: {seed[2]!r}: not found" for seed in proof.seeds if not alarms(proof, seed)
    ]


def _show(contract: Contract) -> list[str]:
    wrong = unproved(contract)
    return wrong + [
        f"{seed[0]}: {seed[2]!r}: not found"
        for seed in contract.seeds
        if not unproved(contract, seed)
    ]


def _check(model: Model) -> list[str]:
    wrong = []
    for variant in model.variants:
        if errors(model, variant):
            wrong.append(f"{variant}: a deadlock, or an assertion that fails")
        wrong += [
            f"{variant}, {name}: not found"
            for name in model.left_out
            if not errors(model, variant, name)
        ]
    return wrong


def _report(name: str, held: str, prove: Callable[[], list[str]]) -> int:
    """Prove one, tell how it went, and return how much is wrong."""
    begin = time.monotonic()
    try:
        wrong = prove()
    except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        wrong = [str(error)]
    first = f"{name:<14} {'FAILED' if wrong else held} ({time.monotonic() - begin:.0f} s)"
    print(first, *wrong, sep="\n  ", flush=True)
    return len(wrong)


def _jobs() -> Iterator[tuple[str, str, Callable[[], list[str]]]]:
    """Yield each name, what is told of it in the end, and what proves it."""
    for model in models():
        mistakes = len(model.variants) * len(model.left_out)
        held = f"{len(model.variants)} variants, {mistakes} mistakes found"
        yield model.name, held, partial(_check, model)
    for contract in contracts():
        held = f"{len(contract.functions)} functions, {len(contract.seeds)} bugs found"
        yield contract.name, held, partial(_show, contract)
    for proof in proofs():
        held = f"{len(proof.functions)} functions, {len(proof.seeds)} bugs found"
        yield proof.name, held, partial(_prove, proof)


def main(names: list[str]) -> int:
    """Prove all, or those named; return how much is wrong."""
    needed = (("frama-c", "frama-c-base"), ("cvc4", "cvc4"), ("spin", "spin"))
    for program, package in needed:
        if shutil.which(program) is None:
            sys.exit(f"prove: no {program}; install Debian's {package}")
    with ThreadPoolExecutor(JOBS) as pool:
        told = [pool.submit(_report, *job) for job in _jobs() if not names or job[0] in names]
        return sum(one.result() for one in told)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
