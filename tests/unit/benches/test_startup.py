"""What the benchmark of starts makes of what a machine says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyvirt.benches.parts import startup

SAID = "stage at took\n" + "".join(
    f"{stage:<20} {at:>9.1f} {1.5:>9.1f}\n" for at, stage in enumerate(startup.STAGES)
)


def saying(*texts: str) -> Callable[[float], str]:
    """Return what says the next of these at each start, however long that is given."""
    rest = iter(texts)
    return lambda _settle_s: next(rest)


def test_a_timeline_is_read() -> None:
    assert startup.stages(saying(SAID)) == {stage: at for at, stage in enumerate(startup.STAGES)}


def test_a_start_that_has_not_come_far_is_given_longer() -> None:
    short = SAID.partition(startup.FIRST_RUN)[0]
    assert startup.stages(saying(short, SAID))[startup.FIRST_RUN] == len(startup.STAGES) - 1
    with pytest.raises(RuntimeError, match="no timeline in 'nothing'"):
        startup.stages(saying(short, "nothing"))
