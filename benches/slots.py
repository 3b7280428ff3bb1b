"""Boot with prepared slots and with slots on demand, in turn, and compare.

    make bench-slots                  or: .venv/bin/python benches/slots.py [PAIRS]

A machine that devices can be plugged into, one vCPU and 256 MiB, of the micro kernel, which has its
drivers built in, and of Debian's, which loads those of virtio-mmio, disks and NICs. Whole-process
time is from fork to the end of the process, the guest's own reset included; init's uptime is what
the guest reads from /proc/uptime as its script starts. Which of a pair is first changes from one to
the next. Where this host's KVM cannot run the kernels all pairs are in one boot of the nested lab:
only ratios mean something there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel

PAIRS_MIN, PAIRS = 7, 11
BOOT_SECONDS = 100
LAB_SECONDS = 1100
KERNELS = {"micro": (), "cloud": ("virtio_mmio", "virtio_blk", "virtio_net")}
SLOTS = ("prepared", "demand")
TIMES = ("whole process", "init's uptime")
SCRIPT = "echo up: $(cut -d' ' -f1 /proc/uptime)\nreboot -f\n"
CMDLINE = "console=ttyS0 quiet panic=-1"


def boot(guest: kernel.Kernel, initrd: str, slots: str) -> tuple[float, float]:
    """Run one boot; return the seconds of the whole process, and the guest's uptime at init."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-m", "256"]
        command += ["-kernel", str(guest.image), "-initrd", initrd, "-append", CMDLINE]
        command += ["-machine", f"slots={slots}", "-qmp", f"unix:{folder}/qmp,server,nowait"]
        start = time.monotonic()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=BOOT_SECONDS,
        )
        took = time.monotonic() - start
    found = re.search(rb"up: ([0-9.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"{guest.name}, {slots}: no uptime in {done.stdout!r} {done.stderr!r}")
    return took, float(found[1])


def measure(pairs: int) -> side_by_side.Figures:
    """Boot each kernel so often with either kind of slots, and once each for nothing before."""
    found: side_by_side.Figures = {slots: [] for slots in SLOTS}
    for name, modules in KERNELS.items():
        guest = kernel.find(name)
        initrd = str(initramfs.build(guest, script=SCRIPT, modules=modules))
        boots: dict[str, list[tuple[float, float]]] = {slots: [] for slots in SLOTS}
        for pair in range(pairs + 1):
            for slots in SLOTS if pair % 2 else SLOTS[::-1]:
                boots[slots].append(boot(guest, initrd, slots))
        for slots, times in boots.items():
            found[slots] += [list(one) for one in zip(*times[1:], strict=True)]
    return found


def report(found: side_by_side.Figures) -> str:
    """Return the table as Markdown."""
    show = side_by_side.spread
    what = [f"{name}: {time}" for name in KERNELS for time in TIMES]
    rows = []
    for label, prepared, demand in zip(what, *(found[slots] for slots in SLOTS), strict=True):
        ratios = side_by_side.ratios(demand, prepared)
        rows.append(f"| {label} | {show(prepared)} | {show(demand)} | {show(ratios)} |")
    return "\n".join(
        [
            f"{len(found[SLOTS[0]][0])} pairs; 1 vCPU, 256 MiB; 8 empty slots against none.",
            "Seconds, median (least to most).",
            "",
            "| | prepared | demand | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    pairs = side_by_side.how_many("PAIRS", PAIRS_MIN, PAIRS)
    for name in KERNELS:
        kernel.find(name)
    (found,) = side_by_side.turns(lambda: measure(pairs), 1, LAB_SECONDS)
    side_by_side.keep("slots", report(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-slots: {error}")
