"""What the sandbox costs a start: from exec to the first KVM_RUN, on this host's own KVM."""

from __future__ import annotations

from collections.abc import Callable

from ..part import Part, Place, Round, Row, Table, Turn
from . import startup

MODES = ("on", "off")


def ready() -> Callable[[Turn], Round]:
    """Return what starts pyvirt with the sandbox and without."""
    starts = {mode: startup.by_command(startup.command("-sandbox", mode)) for mode in MODES}

    def measure(turn: Turn) -> Round:
        return {
            mode: {startup.FIRST_RUN: [startup.stages(starts[mode])[startup.FIRST_RUN]]}
            for mode in turn.order(MODES)
        }

    return measure


PART = Part(
    name="sandbox_start",
    title="What the sandbox takes of a start",
    what="From exec to the first KVM_RUN of the micro kernel, with `-sandbox on` and `off`.",
    place=Place.HOST,
    rounds=40,
    at_once=None,
    warm_up=2,
    ready=ready,
    tables=(Table((Row(startup.FIRST_RUN, "ms", 1, less=True),), subjects=MODES),),
)
