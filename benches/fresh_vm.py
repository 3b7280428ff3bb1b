"""A test's round trip: a fresh VM, `uname -r` in it, its end; pyvirt and QEMU microvm in turn.

    make bench-fresh_vm               or: .venv/bin/python benches/fresh_vm.py [PAIRS]

Both boot the same micro kernel with the harness's initramfs, one vCPU and 256 MiB, and serve the
same client of the agent over a virtio-serial port; both are killed when the answer is there, as a
test's VM is. pyvirt's monitor is a fork of the harness's fork server, as in a test session; QEMU
is started in its best configuration for this (PIT, PIC and RTC on, no ACPI). The first VM of each
in a turn is not counted.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.agent import image
from pyvirt.harness.agent.client import Agent
from pyvirt.harness.guest import kernel
from pyvirt.harness.vm import config
from pyvirt.harness.vm.place import Session
from pyvirt.harness.vm.vm import VM

PAIRS_MIN, PAIRS = 5, 7
VMS = 5  # of each in a turn
SECONDS = 60
LAB_SECONDS = 240
COMMAND = ("/bin/sh", "-c", "uname -r")
GOAL = 1.25  # times as fast: 0.8 of the time


def under_pyvirt(guest: kernel.Kernel, session: Session, folder: Path) -> float:
    """Return the seconds of one round trip."""
    start = time.monotonic()
    with VM(guest, config.VmConfig(), session, folder) as vm:
        answer = vm.run(COMMAND).stdout.strip()
    took = time.monotonic() - start
    assert answer == guest.release
    return took


def under_qemu(guest: kernel.Kernel, initrd: Path) -> float:
    """Return the seconds of one round trip."""
    ours, theirs = socket.socketpair()
    command = [*side_by_side.QEMU_MICROVM, "-m", "256", "-smp", "1"]
    command += ["-kernel", str(guest.image), "-initrd", str(initrd)]
    command += ["-append", f"{config.CMDLINE} {side_by_side.QEMU_APPEND}"]
    command += ["-global", "virtio-mmio.force-legacy=false"]
    command += ["-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
    command += ["-device", "virtio-serial-device"]
    command += ["-device", "virtserialport,chardev=agent,name=pyvirt.agent"]
    start = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    ) as process:
        theirs.close()
        try:
            agent = Agent(ours)
            agent.wait_ready(SECONDS)
            answer = agent.spawn(COMMAND).wait(SECONDS).stdout.decode().strip()
        finally:
            process.kill()
    agent.close()
    took = time.monotonic() - start
    assert answer == guest.release
    return took


def measure(guest: kernel.Kernel, initrd: Path) -> side_by_side.Figures:
    """Return the seconds of each round trip, one VM of each in turn."""
    session = Session(lambda line: print(line, file=sys.stderr))
    found: side_by_side.Figures = {"pyvirt": [], "QEMU": []}
    with TemporaryDirectory(prefix="pyvirt-bench-") as folder:
        try:
            for _ in range(VMS + 1):
                found["pyvirt"].append([under_pyvirt(guest, session, Path(folder))])
                found["QEMU"].append([under_qemu(guest, initrd)])
        finally:
            session.close()
    return {name: times[1:] for name, times in found.items()}


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown; draw the plot."""
    ours, theirs = ([one[0] for turn in turns for one in turn[name]] for name in ("pyvirt", "QEMU"))
    ratios = side_by_side.ratios(ours, theirs)
    show = side_by_side.spread
    side_by_side.plot(
        "fresh_vm",
        "A fresh VM for uname -r: QEMU's time over pyvirt's",
        {"boot, run, end": side_by_side.ratios(theirs, ours)},
        GOAL,
    )
    return "\n".join(
        [
            f"{len(turns)} turns of {VMS} pairs; micro kernel, 1 vCPU, 256 MiB.",
            f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}.",
            "Seconds, median (least to most).",
            "",
            "| | pyvirt | QEMU microvm | ratio |",
            "|---|---|---|---|",
            f"| boot, `uname -r`, end | {show(ours)} | {show(theirs)} | {show(ratios)} |",
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it, with a plot, under results/."""
    pairs = side_by_side.how_many("PAIRS", PAIRS_MIN, PAIRS)
    guest = kernel.find("micro")
    initrd = image.initramfs(guest)
    turns = side_by_side.turns(lambda: measure(guest, initrd), pairs, LAB_SECONDS)
    side_by_side.keep("fresh_vm", report(turns))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-fresh_vm: {error}")
