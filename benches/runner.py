"""Runs the rounds of a part, here or in nested labs, and says how far it is.

Rounds are run by processes of their own, so that one that changes its network, or hangs, is no
matter for the next. What a process has found is a file with a line for each round.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from pyvirt.errors import BackendError, PyvirtError
from pyvirt.harness import lab
from pyvirt.vmm.accel import kvm_failure

from . import figures, machine, parts, results
from .part import Part, Place, Round, Turn

TRIES = 4  # of the same rounds; a lab may hang, and one that counts instructions often does
# What a lab says that somebody has ended, with what runs it.
ENDED = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
MACHINE, ROUND, ABSENT = "machine", "round", "absent"


class Span(NamedTuple):
    """Rounds that one process runs: the first, how many, and of how many the part has."""

    first: int
    rounds: int
    total: int


Spawn = Callable[[Part, Span, Path], int]


class RoundsFailedError(PyvirtError):
    """A part's rounds failed, and what they said is on stderr."""


def measure(part: Part, rounds: int, spawn: Spawn | None = None) -> results.Results:
    """Run so many rounds and return what they found; RoundsFailedError.

    `spawn` runs a span of them in a process and returns its status.
    """
    # Fetches and builds what the rounds need where there is a network.
    part.ready()
    lab_for = _lab_for(part.place)
    if lab_for:
        print(f"{part.name}: in the nested lab, because: {lab_for}", file=sys.stderr, flush=True)
    load = round(os.getloadavg()[0], 1)
    run = spawn or (_in_lab if lab_for else _here)
    lines: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="pyvirt-bench-") as folder:
        at_once = part.at_once or rounds
        for first in range(0, rounds, at_once):
            span = Span(first, min(at_once, rounds - first), rounds)
            lines += _tried(part, span, Path(folder, f"rounds-{first}"), run)
    return results.Results(
        part=part.name,
        date=results.now(),
        commit=results.commit(),
        machine=next(line[MACHINE] for line in lines if MACHINE in line),
        host=machine.describe() if lab_for else {},
        load=load,
        rounds=[line[ROUND] for line in lines if ROUND in line],
        absent={name: why for line in lines for name, why in line.get(ABSENT, {}).items()},
    )


def _lab_for(place: Place) -> str:
    """Return why rounds are run in the nested lab, "" if they are not."""
    if place is Place.COUNTED:
        return "instructions can be counted there"
    return kvm_failure() if place is Place.GUESTS else ""


def _tried(part: Part, span: Span, place: Path, spawn: Spawn) -> list[dict[str, Any]]:
    for _ in range(TRIES):
        place.unlink(missing_ok=True)
        try:
            status = spawn(part, span, place)
        except BackendError as error:
            print(f"{part.name}: {error}", file=sys.stderr, flush=True)
            continue
        if not status:
            text = place.read_text(encoding="utf-8")
            return [json.loads(line) for line in text.splitlines()]
        print(f"{part.name}: the round failed, status {status}", file=sys.stderr, flush=True)
        if status in ENDED:
            raise KeyboardInterrupt
    raise RoundsFailedError(f"{part.name}: round {span.first + 1} failed {TRIES} times")


def _command(part: Part, span: Span, place: Path) -> list[str]:
    words = [sys.executable, "-m", "pyvirt.benches", "--rounds", part.name]
    return [*words, *map(str, span), str(place)]


def _here(part: Part, span: Span, place: Path) -> int:
    return subprocess.run(_command(part, span, place), check=False).returncode


def _in_lab(part: Part, span: Span, place: Path) -> int:
    return lab.run(
        _command(part, span, place),
        env=dict(os.environ),
        icount=part.place is Place.COUNTED,
        timeout=part.seconds,
    )


def run_span(name: str, span: Span, place: Path) -> None:
    """Run a span of rounds in this process, and write what each finds to a file as it ends."""
    part = parts.load(name)
    one = part.ready()
    with place.open("w", encoding="utf-8") as file:
        _write(file.fileno(), {MACHINE: machine.describe()})
        for number in range(-part.warm_up, span.rounds):
            turn = Turn(span.first + number)
            found = one(turn)
            if number >= 0:
                _write(file.fileno(), {ROUND: found, ABSENT: turn.absent})
                print(progress(part, turn.number, span.total, found), file=sys.stderr, flush=True)


def _write(descriptor: int, line: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(line).encode() + b"\n")
    os.fsync(descriptor)


def progress(part: Part, number: int, total: int, found: Round) -> str:
    """Return the line that says what a round found, of the first row of each subject."""
    said = []
    for subject, rows in found.items():
        middle = figures.spread(next(iter(rows.values()), []))
        if middle:
            said.append(f"{subject} {middle.median:.4g}")
    return f"{part.name}: round {number + 1} of {total}: {', '.join(said)}"
