"""What the benchmarks against another monitor share: where they run, how they count and show.

A benchmark measures in turns, each of them one run of every monitor. Where this host's KVM cannot
run stock kernels a turn is one boot of the nested lab: absolute figures mean little there, but
ratios of two monitors in one turn do, and so do counts.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
from matplotlib import pyplot as plt
from pyvirt.errors import BackendError
from pyvirt.harness import lab
from pyvirt.vmm.accel import kvm_failure

Process = subprocess.Popen[bytes]
# By monitor, for each job: first the rate or time, then counts.
Figures = dict[str, list[list[float]]]
# Where a turn in the lab leaves its figures.
_TURN = "PYVIRT_BENCH_TURN"
# Which turn this is, from 0.
_NUMBER = "PYVIRT_BENCH_NUMBER"
_TRIES = 2
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
# What KVM counts of all VMs: MMIO, ports and signals that went to user space; and io_exits has
# the ports that are in the kernel as well, which devices at work do not use.
_EXITS = [Path("/sys/kernel/debug/kvm", f"{kind}_exits") for kind in ("mmio", "io", "signal")]
RESULTS = Path(__file__).parent / "results"


def how_many(what: str, least: int, default: int) -> int:
    """Return how many runs the command line asks for; `what` is their name."""
    given = int(sys.argv[1]) if len(sys.argv) > 1 else default
    if given < least:
        sys.exit(f"{what} {given}: fewer than {least} say nothing; give more")
    return given


def turns(measure: Callable[[], Figures], count: int, seconds: float) -> list[Figures]:
    """Return what `measure`, which takes each monitor once, found in `count` turns.

    Where this host's KVM cannot run stock kernels each turn is a boot of the nested lab, of
    `seconds` at most, in which this program runs again as far as here.
    """
    place = os.environ.get(_TURN)
    if place:
        with open(place, "w", encoding="utf-8") as file:
            json.dump(measure(), file)
            file.flush()
            os.fsync(file.fileno())
        sys.exit(0)
    failure = kvm_failure()
    if failure:
        print(f"In the nested lab, because: {failure}", file=sys.stderr, flush=True)
    found: list[Figures] = []
    for turn in range(count):
        os.environ[_NUMBER] = str(turn)
        found.append(_turn_in_lab(seconds) if failure else measure())
        for name, figures in found[-1].items():
            rates = " ".join(f"{figure[0]:.2f}" for figure in figures)
            print(f"{turn + 1:>3} {name:<13} {rates}", file=sys.stderr, flush=True)
    return found


def order(names: Iterable[str]) -> list[str]:
    """Return whom this turn takes first to last: every other one begins with the last."""
    return list(names)[:: -1 if int(os.environ[_NUMBER]) % 2 else 1]


def _turn_in_lab(seconds: float) -> Figures:
    with TemporaryDirectory(prefix="pyvirt-bench-") as folder:
        place = os.path.join(folder, "figures")
        for _ in range(_TRIES):
            try:
                status = lab.run(
                    [sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]],
                    env={**os.environ, _TURN: place},
                    timeout=seconds,
                )
            except BackendError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            if not status:
                with open(place, encoding="utf-8") as file:
                    figures: Figures = json.load(file)
                return figures
            print(f"the turn failed, status {status}", file=sys.stderr, flush=True)
    sys.exit(f"the turn failed {_TRIES} times")


def console(command: Sequence[str], seconds: float) -> Iterator[str]:
    """Run a guest, yield the lines of its console and messages, and end it after `seconds`."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        stop = threading.Timer(seconds, process.kill)
        stop.start()
        try:
            for line in process.stdout:
                yield line.strip()
        finally:
            stop.cancel()
            process.kill()


@contextmanager
def running(command: Sequence[str], stdin: int = subprocess.DEVNULL) -> Iterator[Process]:
    """Run a guest whose console is a pipe, its input too if that is PIPE; killed in the end."""
    with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def user_exits() -> int:
    """Return how often KVM has returned to user space so far."""
    return sum(int(path.read_text()) for path in _EXITS)


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
