"""How many descriptors a second one core takes through the virtqueue code, on this host.

native/tests/virtio/bench_ring.c, compiled as the extension is: an honest driver and a device that
does nothing else take turns on one thread, with chains as of a block request (3 descriptors) in a
queue of 256, event indexes on. Beside it the least that a device could do on the same rings. The
driver's own work is in both figures.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from pyvirt.native.build import HERE
from pyvirt.native.program import build

from ..part import Budget, Part, Place, Round, Row, Table, Turn

RUN_SECONDS = 60
PROGRAM = HERE / "tests/virtio/bench_ring.c"
CHECKED, PLAIN = "pyvirt's ring code", "plain loop"
ROWS = tuple(
    Row(f"{kind} chains, batches of {batch}", "million/s", 1)
    for kind in ("direct", "indirect")
    for batch in (1, 8, 64)
)


def ready() -> Callable[[Turn], Round]:
    """Return what runs the program once."""
    program = str(build(PROGRAM, "whole"))

    def measure(turn: Turn) -> Round:
        done = subprocess.run(
            [program], check=True, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        found: dict[str, dict[str, list[float]]] = {CHECKED: {}, PLAIN: {}}
        for line in done.stdout.splitlines():
            kind, batch, *rates = line.split()
            for subject, rate in zip(found, rates, strict=True):
                found[subject][f"{kind} chains, batches of {batch}"] = [float(rate) / 1e6]
        return found

    return measure


PART = Part(
    name="ring",
    title="The ring code by itself",
    what="Descriptors a second of one core, driver and device together, beside a loop that "
    "checks nothing and has no say in notifications, the least that a device could do.",
    place=Place.HOST,
    rounds=7,
    at_once=None,
    ready=ready,
    tables=(Table(ROWS),),
    budgets=(
        Budget((CHECKED,), 5, least=True),
        Budget((CHECKED, PLAIN), 0.6, least=True, word="goal"),
    ),
)
