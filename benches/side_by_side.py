"""What the benchmarks against another monitor share: where they run, how they count and show.

A benchmark calls `run_in_lab` first, which does the whole of it in one boot of the nested lab
where this host's KVM cannot run stock kernels. Absolute figures mean little there; ratios of two
monitors that took turns do, and so do counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from pyvirt.cli.accel import kvm_failure
from pyvirt.harness import lab

PYVIRT = Path(sys.prefix, "bin", "pyvirt")
QEMU = "qemu-system-x86_64"
# QEMU's best configuration for a microVM: PIT, PIC and RTC spare the guest its calibrations.
MACHINE = "microvm,pit=on,pic=on,rtc=on,acpi=off"
QEMU_MICROVM = (
    *(QEMU, "-M", MACHINE, "-accel", "kvm", "-cpu", "host"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
)
# Without ACPI QEMU's guest can end only by a triple fault.
QEMU_APPEND = "reboot=t"
RESULTS = Path(__file__).parent / "results"


def run_in_lab(timeout: float, *, memory_mib: int = 4096) -> int | None:
    """Run this program in the lab if it must be; None: go on, it runs where it can."""
    failure = kvm_failure()
    if not failure:
        return None
    print(f"In the nested lab, because: {failure}", file=sys.stderr, flush=True)
    command = [sys.executable, *map(os.path.abspath, sys.argv[:1]), *sys.argv[1:]]
    return lab.run(
        command,
        cwd=os.getcwd(),
        env=dict(os.environ),
        memory_mib=memory_mib,
        timeout=timeout,
        tries=3,
    )


def qemu_version() -> str:
    """Return what QEMU calls itself."""
    done = subprocess.run([QEMU, "--version"], capture_output=True, check=True, text=True)
    return done.stdout.splitlines()[0]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, pair by pair."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, least and most in words for a table."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def keep(name: str, text: str) -> None:
    """Print a table and write it to results/NAME.md."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def plot(name: str, title: str, measured: Mapping[str, Sequence[float]], goal: float) -> None:
    """Draw the ratios of each thing measured, median and range, to results/NAME.svg.

    1 is the other monitor; `goal` is drawn beside it.
    """
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = name

    labels = list(measured)
    middles = [statistics.median(measured[label]) for label in labels]
    errors = [
        [middle - min(measured[label]) for label, middle in zip(labels, middles, strict=True)],
        [max(measured[label]) - middle for label, middle in zip(labels, middles, strict=True)],
    ]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(labels)), layout="constrained")
    places = range(len(labels))
    axes.barh(places, middles, xerr=errors, height=0.6, color="#4878a8", ecolor="#333333")
    axes.axvline(1, color="#333333", linewidth=1)
    axes.axvline(goal, color="#a04040", linewidth=1, linestyle="--")
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"pyvirt / QEMU microvm (1: the same; dashed: the goal, {goal:g})")
    axes.set_title(title)
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
