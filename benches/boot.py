"""Boot one kernel and initramfs under pyvirt and under QEMU microvm, in turn, and compare.

    make bench-boot                   or: .venv/bin/python benches/boot.py [PAIRS]

Both get the same micro kernel, initramfs, one vCPU and 256 MiB; QEMU its best configuration for
this (PIT, PIC and RTC on, so that the guest need not calibrate without them; qboot; no ACPI).
Whole-process time is from fork to the end of the process, the guest's own reset included; init's
uptime is what the guest reads from /proc/uptime as its script starts. Where this host's KVM
cannot run the kernel, both run in one boot of the nested lab: only ratios mean something there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel

PAIRS_MIN, PAIRS = 7, 11
BOOT_SECONDS = 60
LAB_SECONDS = 120
SCRIPT = "echo up: $(cut -d' ' -f1 /proc/uptime)\nreboot -f\n"
CMDLINE = "console=ttyS0 quiet panic=-1"


@dataclass(frozen=True)
class Boot:
    """One boot, in seconds."""

    process: float
    uptime: float


def pyvirt_command(image: str, initrd: str) -> list[str]:
    """Return pyvirt's command line."""
    command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-m", "256"]
    return [*command, "-kernel", image, "-initrd", initrd, "-append", CMDLINE]


def qemu_command(image: str, initrd: str) -> list[str]:
    """Return QEMU's."""
    command = [*side_by_side.QEMU_MICROVM, "-m", "256", "-smp", "1"]
    command += ["-kernel", image, "-initrd", initrd]
    return [*command, "-append", f"{CMDLINE} {side_by_side.QEMU_APPEND}"]


def boot(command: list[str]) -> Boot:
    """Run one boot; RuntimeError when the guest did not say its uptime."""
    start = time.monotonic()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=BOOT_SECONDS
    )
    took = time.monotonic() - start
    found = re.search(rb"up: ([0-9.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"{command[0]}: no uptime in {done.stdout!r} {done.stderr!r}")
    return Boot(took, float(found[1]))


def measure(image: str, initrd: str) -> side_by_side.Figures:
    """Boot both in turn, twice, of which the second counts: whole process and init's uptime."""
    commands = {"pyvirt": pyvirt_command(image, initrd), "QEMU": qemu_command(image, initrd)}
    order = side_by_side.order(commands)
    for name in order:
        boot(commands[name])
    boots = {name: boot(commands[name]) for name in order}
    return {name: [[one.process], [one.uptime]] for name, one in boots.items()}


def row(label: str, ours: list[float], theirs: list[float]) -> str:
    """Return one line of the table: medians with spread, and the median of the pairs' ratios."""
    show = side_by_side.spread
    ratios = side_by_side.ratios(ours, theirs)
    return f"| {label} | {show(ours)} | {show(theirs)} | {show(ratios)} |"


def report(image: str, turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""

    def times(name: str, number: int) -> list[float]:
        return [turn[name][number][0] for turn in turns]

    return "\n".join(
        [
            f"{len(turns)} pairs; {Path(image).resolve().name}, 1 vCPU, 256 MiB.",
            f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}.",
            "Seconds, median (least to most).",
            "",
            "| | pyvirt | QEMU microvm | ratio |",
            "|---|---|---|---|",
            row("whole process", times("pyvirt", 0), times("QEMU", 0)),
            row("init's uptime", times("pyvirt", 1), times("QEMU", 1)),
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    pairs = side_by_side.how_many("PAIRS", PAIRS_MIN, PAIRS)
    guest = kernel.find("micro")
    initrd = initramfs.build(guest, script=SCRIPT)
    words = (str(guest.image), str(initrd))
    found = side_by_side.turns(lambda: measure(*words), pairs, LAB_SECONDS)
    side_by_side.keep("boot", report(words[0], found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-boot: {error}")
