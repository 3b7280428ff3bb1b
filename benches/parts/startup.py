"""From exec to the first KVM_RUN, on this host's own KVM.

What the guest does after that does not matter, so any KVM will do; it is ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from pyvirt.harness.guest import initramfs, kernel

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT
from ..peers.pyvirt import PROGRAM

# After which it has begun, and is ended; the second for a host that is busy.
SETTLE_SECONDS = (0.3, 3.0)
END_SECONDS = 10
FIRST_RUN = "first KVM_RUN"
STAGES = ("modules imported", "VM ready", "kernel loaded", FIRST_RUN)


def command(*more: str) -> list[str]:
    """Return pyvirt's command line, for the micro kernel with a script that does nothing."""
    guest = kernel.find("micro")
    initrd = initramfs.build(guest, script="true")
    words = [str(PROGRAM), "run", "-accel", "kvm", "-timeline", *more]
    return [*words, "-kernel", str(guest.image), "-initrd", str(initrd)]


def stages(words: Sequence[str]) -> dict[str, float]:
    """Start pyvirt once; return the milliseconds since exec of each stage."""
    messages = ""
    for settle_s in SETTLE_SECONDS:
        messages = _messages(words, settle_s)
        at = {}
        for line in messages.splitlines():
            for stage in STAGES:
                if line.startswith(stage):
                    at[stage] = float(line.removeprefix(stage).split()[0])
        if len(at) == len(STAGES):
            return at
    raise RuntimeError(f"no timeline in {messages!r}")


def _messages(words: Sequence[str], settle_s: float) -> str:
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYVIRT_EXEC_NS": str(time.monotonic_ns())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(settle_s)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=END_SECONDS)[1]


def ready() -> Callable[[Turn], Round]:
    """Return what starts pyvirt once."""
    words = command()
    return lambda turn: {PYVIRT: {stage: [at] for stage, at in stages(words).items()}}


PART = Part(
    name="startup",
    title="From exec to the guest's first instruction",
    what="`pyvirt run` with the micro kernel and its initramfs, 1 vCPU, 256 MiB.",
    place=Place.HOST,
    rounds=20,
    at_once=None,
    warm_up=2,
    ready=ready,
    tables=(Table(tuple(Row(stage, "ms", 1, less=True) for stage in STAGES)),),
    budgets=(
        Budget((PYVIRT,), 35, rows=(FIRST_RUN,)),
        Budget((PYVIRT,), 15, rows=(FIRST_RUN,), word="goal"),
    ),
)
