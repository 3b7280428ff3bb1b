"""A test's round trip in a fork of a booted guest, and in a fresh VM.

Both are what a test of the harness is. The fresh VM boots; the fork begins where the template stood
when its agent answered.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from pyvirt.harness.guest import kernel
from pyvirt.harness.vm import config
from pyvirt.harness.vm.place import Session
from pyvirt.harness.vm.snapshot import Snapshot
from pyvirt.harness.vm.vm import VM

from ..part import Budget, Part, Place, Round, Row, Table, Turn

VMS = 10  # of each in a round
COMMAND = ("/bin/sh", "-c", "uname -r")
FORK, FRESH, TEMPLATE = "fork", "fresh VM", "template"
TRIP = Row("to `uname -r`, end", "s", 3, less=True)
ANSWER = Row("to the agent's answer", "s", 3, less=True)
MAKING = Row("made of a booted guest", "s", less=True)
MADE = Table((MAKING,), "The template, once", (TEMPLATE,))


def round_trip(
    guest: kernel.Kernel, session: Session, folder: Path, origin: Snapshot | None
) -> dict[str, float]:
    """Return the seconds of one round trip, and of that those to the agent's answer."""
    start = time.monotonic()
    with VM(guest, config.VmConfig(), session, folder, origin=lambda: origin) as vm:
        vm.start()
        answered = time.monotonic() - start
        answer = vm.run(COMMAND).stdout.strip()
    took = time.monotonic() - start
    assert answer == guest.release
    return {ANSWER.name: answered, TRIP.name: took}


def ready() -> Callable[[Turn], Round]:
    """Return what times a template and a few VMs, after one of each that is not counted."""
    guest = kernel.find("micro")

    def measure(turn: Turn) -> Round:
        session = Session(lambda line: print(line, file=sys.stderr))
        trips: dict[str, list[dict[str, float]]] = {FORK: [], FRESH: []}
        with TemporaryDirectory(prefix="pyvirt-bench-") as name:
            folder = Path(name)
            try:
                with VM(guest, config.VmConfig(), session, folder) as first:
                    first.start()
                    start = time.monotonic()
                    origin = first.into_snapshot()
                    making = time.monotonic() - start
                for _ in range(VMS + 1):
                    trips[FRESH].append(round_trip(guest, session, folder, None))
                    trips[FORK].append(round_trip(guest, session, folder, origin))
                origin.close()
            finally:
                session.close()
        rows = {
            subject: {row.name: [one[row.name] for one in seen[1:]] for row in (ANSWER, TRIP)}
            for subject, seen in trips.items()
        }
        return {**rows, TEMPLATE: {MADE.key(MAKING): [making]}}

    return measure


PART = Part(
    name="fork_vm",
    title="A test in a fork of a booted guest",
    what=f"A test's round trip, {VMS} of each a round: in a fork of a guest that has booted, "
    "and in a fresh VM; micro kernel, 1 vCPU, 256 MiB, monitors that are forks of the "
    "harness's warm one.",
    place=Place.GUESTS,
    rounds=5,
    ready=ready,
    tables=(Table((ANSWER, TRIP), subjects=(FORK, FRESH)), MADE),
    budgets=(Budget((FORK, FRESH), 0.25, rows=(TRIP.name,)),),
)
