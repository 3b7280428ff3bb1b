"""Boot one kernel and initramfs under pyvirt and under QEMU microvm, in turn, and compare.

    make bench-boot                   or: .venv/bin/python benches/boot.py [PAIRS]

Both get the same micro kernel, initramfs, one vCPU and 256 MiB; QEMU its best configuration for
this (PIT, PIC and RTC on, so that the guest need not calibrate without them; qboot; no ACPI).
Whole-process time is from fork to the end of the process, the guest's own reset included; init's
uptime is what the guest reads from /proc/uptime as its script starts. Where this host's KVM
cannot run the kernel, both run in one boot of the nested lab: only ratios mean something there.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pyvirt.cli.accel import kvm_failure
from pyvirt.errors import PyvirtError
from pyvirt.harness import lab
from pyvirt.harness.guest import initramfs, kernel

PAIRS_MIN, PAIRS = 7, 11
BOOT_SECONDS = 60
LAB_SECONDS = 1200
SCRIPT = "echo up: $(cut -d' ' -f1 /proc/uptime)\nreboot -f\n"
CMDLINE = "console=ttyS0 quiet panic=-1"
PYVIRT = Path(sys.prefix, "bin", "pyvirt")
QEMU = "qemu-system-x86_64"
MACHINE = "microvm,pit=on,pic=on,rtc=on,acpi=off"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Boot:
    """One boot, in seconds."""

    process: float
    uptime: float


def pyvirt_command(image: str, initrd: str) -> list[str]:
    """Return pyvirt's command line."""
    command = [str(PYVIRT), "run", "-accel", "kvm", "-m", "256"]
    return [*command, "-kernel", image, "-initrd", initrd, "-append", CMDLINE]


def qemu_command(image: str, initrd: str) -> list[str]:
    """Return QEMU's; without ACPI its guest can end only by a triple fault."""
    command = [QEMU, "-M", MACHINE, "-accel", "kvm", "-cpu", "host", "-m", "256", "-smp", "1"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    command += ["-no-reboot", "-kernel", image, "-initrd", initrd]
    return [*command, "-append", f"{CMDLINE} reboot=t"]


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


def measure(image: str, initrd: str, pairs: int) -> dict[str, list[Boot]]:
    """Boot both in turn, one pair uncounted."""
    commands = {"pyvirt": pyvirt_command(image, initrd), "QEMU": qemu_command(image, initrd)}
    boots: dict[str, list[Boot]] = {name: [] for name in commands}
    for pair in range(pairs + 1):
        for name, command in commands.items():
            result = boot(command)
            if pair:
                boots[name].append(result)
                print(
                    f"{pair:>3} {name:<7} {result.process:6.2f} s  init at {result.uptime:5.2f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return boots


def row(label: str, ours: list[float], theirs: list[float]) -> str:
    """Return one line of the table: medians with spread, and the median of the pairs' ratios."""

    def show(values: list[float]) -> str:
        return f"{statistics.median(values):5.2f} ({min(values):.2f} to {max(values):.2f})"

    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"| {label} | {show(ours)} | {show(theirs)} | {show(ratios)} |"


def report(image: str, boots: dict[str, list[Boot]]) -> str:
    """Return the table as Markdown."""
    ours, theirs = boots["pyvirt"], boots["QEMU"]
    version = subprocess.run([QEMU, "--version"], capture_output=True, check=True, text=True)
    return "\n".join(
        [
            f"{len(ours)} pairs; {Path(image).resolve().name}, 1 vCPU, 256 MiB.",
            f"{version.stdout.splitlines()[0]}, -M {MACHINE}.",
            "Seconds, median (least to most).",
            "",
            "| | pyvirt | QEMU microvm | ratio |",
            "|---|---|---|---|",
            row("whole process", [b.process for b in ours], [b.process for b in theirs]),
            row("init's uptime", [b.uptime for b in ours], [b.uptime for b in theirs]),
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    if pairs < PAIRS_MIN:
        sys.exit(f"PAIRS {pairs}: fewer than {PAIRS_MIN} say nothing; give more")
    guest = kernel.find("micro")
    initrd = initramfs.build(guest, script=SCRIPT)
    failure = kvm_failure()
    if failure:
        print(f"In the nested lab, because: {failure}", file=sys.stderr, flush=True)
        command = [sys.executable, str(Path(__file__).resolve()), str(pairs)]
        return lab.run(command, cwd=os.getcwd(), env=dict(os.environ), timeout=LAB_SECONDS)
    text = report(str(guest.image), measure(str(guest.image), str(initrd), pairs))
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "boot.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-boot: {error}")
