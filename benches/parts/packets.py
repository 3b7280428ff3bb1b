"""What packets cost the thread of a NIC on a tap, as instructions: its own and the kernel's.

native/tests/net/bench_tap.c, compiled as the extension is.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

from pyvirt.harness.lab import module
from pyvirt.native.build import HERE
from pyvirt.native.program import build

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT

PROGRAM = HERE / "tests/net/bench_tap.c"
PACKETS, RUN_SECONDS = 1280, 120
LINE = re.compile(r"(.+?) +(\d+) ns a packet")
ROWS = tuple(
    Row(f"{way}, {kind}", "instructions", 0, less=True)
    for way in ("out", "in")
    for kind in ("60 bytes", "60 bytes, bursts", "1514 bytes, bursts", "65000 bytes")
)


def ready() -> Callable[[Turn], Round]:
    """Return what runs the program once."""
    program = [str(build(PROGRAM, "whole")), str(PACKETS)]

    def measure(turn: Turn) -> Round:
        module.load("tun")
        done = subprocess.run(
            program, check=True, capture_output=True, text=True, timeout=RUN_SECONDS
        )
        counts = {name: [float(ns)] for name, ns in LINE.findall(done.stdout)}
        return {PYVIRT: {row.name: counts[row.name] for row in ROWS}}

    return measure


PART = Part(
    name="packets",
    title="What a packet costs a NIC's thread, in instructions",
    what="Processor time of the thread of a pair of queues, where a nanosecond is an instruction, "
    "with all that the kernel does in its system calls, waiting and waking included: packets by "
    "themselves, or in bursts of 32, to and from a tap whose other end drops them or sends them "
    "ready made. Buffers for what comes in are 1536 bytes.",
    place=Place.COUNTED,
    rounds=3,
    at_once=None,
    ready=ready,
    tables=(Table(ROWS),),
)
