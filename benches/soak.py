"""A soak: VMs that come and go with all that can be done to them, and what is left of them.

    make soak [VMS=300] [AT_ONCE=20]  or: .venv/bin/python benches/soak.py [VMS] [AT_ONCE]

docs/soak.md says what is done and what is looked at; its last section and the picture there are of
the last run, and written by this program. Exit status 1: something grew, stayed behind or failed.
Run by root it has network, /tmp and /dev/shm of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from pyvirt.tests.hostile import report
from pyvirt.tests.soak.held import Family
from pyvirt.tests.soak.host import Host
from pyvirt.tests.soak.run import MEASURES, Soak
from pyvirt.tests.unit.namespace import ip

VMS, AT_ONCE = 300, 20
PLUGS = 1000
DOCS = Path(__file__).parents[1] / "docs"
HEADING = "## The last run\n"
_INSIDE = "PYVIRT_SOAK_INSIDE"
_OURS = "mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && ip link set lo up"
NAMES = {
    "memory_kib": "memory, MiB",
    "descriptors": "descriptors",
    "threads": "threads",
    "processes": "processes",
    "files": "files",
}


def in_a_world_of_its_own() -> None:
    """Begin again where no other process of the host has files, if that can be."""
    if os.environ.get(_INSIDE) or os.geteuid() != 0:
        return
    os.environ[_INSIDE] = "1"
    again = f'{_OURS} && exec "$0" "$@"'
    words = [sys.executable, *sys.argv]
    os.execvp("unshare", ["unshare", "--mount", "--net", "sh", "-c", again, *words])


def taps(count: int) -> list[str]:
    """Make so many in the network that is ours, or none."""
    names = [f"soak{number}" for number in range(count)] if os.environ.get(_INSIDE) else []
    for name in names:
        ip(f"tuntap add {name} mode tap")
    return names


def scaled(measure: str, value: float) -> float:
    """Return KiB as MiB, and all else as it is."""
    return value / 1024 if measure == "memory_kib" else value


def plot(soak: Soak) -> None:
    """Draw everything over the run to docs/soak.svg."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "soak"
    figure, axes = plt.subplots(
        len(MEASURES) + 1, figsize=(8, 9), layout="constrained", height_ratios=[1] * 5 + [1.3]
    )
    samples = soak.samples[:: max(1, len(soak.samples) // 300)]
    for axis, measure in zip(axes, MEASURES, strict=False):
        values = [scaled(measure, getattr(sample.held, measure)) for sample in samples]
        axis.plot([sample.ended for sample in samples], values, linewidth=1, color="#4878a8")
        axis.set_ylim(0, 1.2 * max(values))
        axis.set_ylabel(NAMES[measure])
        axis.sharex(axes[0])
    axes[len(MEASURES) - 1].set_xlabel(f"VMs that have ended, of {soak.at_once} at a time")
    for resident in soak.residents.values():
        last = resident.seen[-1][0]
        axes[-1].plot(
            [100 * count / last for count, _ in resident.seen],
            [one.memory_kib / 1024 for _, one in resident.seen],
            label=f"{resident.what}: {last}",
        )
    axes[-1].set_ylim(0, 20)
    axes[-1].set_ylabel("memory, MiB")
    axes[-1].set_xlabel("% of what one process does that stays")
    axes[-1].legend()
    figure.savefig(DOCS / "soak.svg", metadata={"Date": None})
    plt.close(figure)


def section(soak: Soak, host: Host, seconds: float) -> str:
    """Return what docs/soak.md says of this run."""
    now = datetime.now(UTC).date().isoformat()
    where = f"{now}, {os.cpu_count()} processors, {seconds:.0f} s"
    lines = [
        HEADING,
        f"{where}: {sum(host.ends.values())} VMs, {soak.at_once} at a time.",
        "",
        "| all processes together, median | first third | last third |",
        "|---|---|---|",
    ]
    for measure, pair in soak.flat().items():
        first, last = (f"{scaled(measure, value):.0f}" for value in pair)
        lines.append(f"| {NAMES[measure]} | {first} | {last} |")
    lines += ["", "| one process that stays | first look | last look |", "|---|---|---|"]
    for resident in soak.residents.values():
        (first_at, before), (last_at, after) = resident.seen[0], resident.seen[-1]
        for title, early, late in (
            ("KiB", before.memory_kib, after.memory_kib),
            ("descriptors", len(before.descriptors), len(after.descriptors)),
            ("threads", before.threads, after.threads),
        ):
            what = f"{resident.what}, {first_at} and {last_at}: {title}"
            lines.append(f"| {what} | {early} | {late} |")
    lines += ["", "| began, ended | VMs |", "|---|---|"]
    lines += [f"| {life} | {count} |" for life, count in sorted(host.ends.items())]
    found = soak.findings() + soak.growth()
    lines += ["", *[f"- {finding}" for finding in found or ["nothing grew, nothing stayed behind"]]]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run it; return 1 if it found something."""
    in_a_world_of_its_own()
    vms = int(sys.argv[1]) if len(sys.argv) > 1 else VMS
    at_once = int(sys.argv[2]) if len(sys.argv) > 2 else AT_ONCE
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        kernel = report.build(folder / "build")
        (folder / "vms").mkdir()
        before = set(os.listdir("/dev/shm"))
        host = Host(folder / "vms", kernel, taps(at_once + 1))
        soak = Soak(Family(folder / "vms"), host, vms=vms, at_once=at_once, cycles=PLUGS, forks=vms)
        soak.run()
        if os.environ.get(_INSIDE):
            left = set(os.listdir("/dev/shm") + os.listdir("/tmp")) - before - {folder.name}
            soak.faults += [f"{file} is left in /tmp or /dev/shm" for file in sorted(left)]
    text = section(soak, host, time.monotonic() - start)
    print(text)
    plot(soak)
    page = DOCS / "soak.md"
    kept = page.read_text(encoding="utf-8").partition(HEADING)[0]
    page.write_text(kept + text, encoding="utf-8")
    return int(bool(soak.findings() + soak.growth()))


if __name__ == "__main__":
    sys.exit(main())
