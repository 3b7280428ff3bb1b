"""A test's round trip in a fork of a booted guest, and in a fresh VM: `uname -r`, in turn.

    make bench-fork_vm                or: .venv/bin/python benches/fork_vm.py [PAIRS]

Both are what a test of the harness is: the micro kernel, one vCPU and 256 MiB, a monitor that is a
fork of the warm one, the agent's answer, the command, and the end. The fresh VM boots; the
fork begins where the template stood when its agent answered. What the template costs once is told
as well. The first VM of each in a turn is not counted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import kernel
from pyvirt.harness.vm import config
from pyvirt.harness.vm.place import Session
from pyvirt.harness.vm.snapshot import Snapshot
from pyvirt.harness.vm.vm import VM

PAIRS_MIN, PAIRS = 5, 7
VMS = 10  # of each in a turn
LAB_SECONDS = 240
COMMAND = ("/bin/sh", "-c", "uname -r")
FRESH, FORK, TEMPLATE = "fresh", "fork", "template"


def round_trip(
    guest: kernel.Kernel, session: Session, folder: Path, origin: Snapshot | None
) -> list[float]:
    """Return the seconds of one round trip, and of that those to the agent's answer."""
    start = time.monotonic()
    with VM(guest, config.VmConfig(), session, folder, origin=lambda: origin) as vm:
        vm.start()
        ready = time.monotonic() - start
        answer = vm.run(COMMAND).stdout.strip()
    took = time.monotonic() - start
    assert answer == guest.release
    return [took, ready]


def measure(guest: kernel.Kernel) -> side_by_side.Figures:
    """Return the seconds of each round trip, one VM of each in turn, and of the template."""
    session = Session(lambda line: print(line, file=sys.stderr))
    found: side_by_side.Figures = {FRESH: [], FORK: [], TEMPLATE: []}
    with TemporaryDirectory(prefix="pyvirt-bench-") as name:
        folder = Path(name)
        try:
            with VM(guest, config.VmConfig(), session, folder) as first:
                first.start()
                start = time.monotonic()
                origin = first.into_snapshot()
                found[TEMPLATE].append([time.monotonic() - start])
            for _ in range(VMS + 1):
                found[FRESH].append(round_trip(guest, session, folder, None))
                found[FORK].append(round_trip(guest, session, folder, origin))
            origin.close()
        finally:
            session.close()
    return found | {name: found[name][1:] for name in (FRESH, FORK)}


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""

    def figures(name: str, number: int = 0) -> list[float]:
        return [one[number] for turn in turns for one in turn[name]]

    show = side_by_side.spread
    rows = []
    for title, number in (("the agent's answer", 1), ("`uname -r`, end", 0)):
        fork, fresh = figures(FORK, number), figures(FRESH, number)
        ratios = side_by_side.ratios(fork, fresh)
        rows.append(f"| to {title} | {show(fork, 3)} | {show(fresh, 3)} | {show(ratios, 3)} |")
    return "\n".join(
        [
            f"{len(turns)} turns of {VMS} pairs; micro kernel, 1 vCPU, 256 MiB.",
            "Seconds, median (least to most).",
            "",
            "| | fork | fresh VM | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
            f"The template, once its guest has booted: {show(figures(TEMPLATE))} s.",
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    pairs = side_by_side.how_many("PAIRS", PAIRS_MIN, PAIRS)
    guest = kernel.find("micro")
    turns = side_by_side.turns(lambda: measure(guest), pairs, LAB_SECONDS)
    side_by_side.keep("fork_vm", report(turns))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-fork_vm: {error}")
