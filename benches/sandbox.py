"""What the sandbox costs: `pyvirt run` with it and without it, in turn.

    make bench-sandbox                or: .venv/bin/python benches/sandbox.py [TURNS]

On this host's own KVM: from exec to the first KVM_RUN of the micro kernel, one run of each after
the other. Where stock kernels run, in turns: a guest's boot to its script, whole process and
init's uptime; then fio on null_blk (4 KiB at a depth of 1 and of 32) and the NIC on a tap: TCP out
and in, and round trips. Each turn is one boot of the nested lab, where that is needed, in which
both have their guests one after the other, and every other turn begins with the other one.
"""

from __future__ import annotations

import os
import statistics
import sys

import block
import boot
import guest_jobs
import net
import side_by_side
import startup
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

TURNS_MIN, TURNS = 5, 9
STARTS = 40
JOB_SECONDS = 2
LAB_SECONDS = 200
MODES = {"on": ("-sandbox", "on"), "off": ("-sandbox", "off")}
FIRST_RUN = "first KVM_RUN"
DISK_JOBS = [block.Job("randread", 4096, 1, 1), block.Job("randread", 4096, 32, 1)]
NET_JOBS = [
    one
    for one in net.JOBS
    if one.name in {"TCP out, 1 stream", "TCP in, 1 stream", "TCP round trips"}
]


def starts(image: str, initrd: str) -> dict[str, list[float]]:
    """Return the milliseconds from exec to the first KVM_RUN, in pairs."""
    command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-timeline"]
    command += ["-kernel", image, "-initrd", initrd]
    found: dict[str, list[float]] = {name: [] for name in MODES}
    for number in range(STARTS + startup.WARM_UP):
        for name in list(MODES)[:: -1 if number % 2 else 1]:
            took = startup.run([*command, *MODES[name]])[FIRST_RUN]
            if number >= startup.WARM_UP:
                found[name].append(took)
    return found


def jobs(command: list[str]) -> list[float]:
    """Return the rates of one guest's jobs."""
    rates: list[float] = []
    for words, _ in guest_jobs.run(command, len(DISK_JOBS) + len(NET_JOBS), lambda: ()):
        if len(rates) < len(DISK_JOBS):
            requests, seconds = block.parse(words, DISK_JOBS[len(rates)])
            rates.append(requests / seconds)
        else:
            rates.append(net.parse(words, NET_JOBS[len(rates) - len(DISK_JOBS)]))
    return rates


def names() -> list[str]:
    """Return what is measured in a turn, in its order."""
    return [
        "boot, whole process, s",
        "init's uptime, s",
        *(f"fio {one}, requests/s" for one in DISK_JOBS),
        *(f"{one.name}, {one.unit}" for one in NET_JOBS),
    ]


def row(what: str, on: list[float], off: list[float], digits: int) -> str:
    """Return one line of the table."""
    show = side_by_side.spread
    ratios = side_by_side.ratios(on, off)
    return f"| {what} | {show(on, digits)} | {show(off, digits)} | {show(ratios, 3)} |"


def report(started: dict[str, list[float]], turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""
    more = statistics.median(started["on"]) - statistics.median(started["off"])
    lines = [
        f"{STARTS} starts and {len(turns)} turns of each, {JOB_SECONDS} s a job; micro kernel.",
        "Median (least to most), and the ratio of each pair.",
        "",
        "| | sandbox | without | ratio |",
        "|---|---|---|---|",
        row("exec to first KVM_RUN, ms", started["on"], started["off"], 1),
    ]
    for number, name in enumerate(names()):
        on, off = ([turn[mode][number][0] for turn in turns] for mode in MODES)
        lines.append(row(name, on, off, 2 if number < 2 else 0))
    return "\n".join([*lines, "", f"Of the start the sandbox takes {more:.2f} ms.", ""])


def main() -> int:
    """Measure here and in the lab; print the table and keep it under results/."""
    count = side_by_side.how_many("TURNS", TURNS_MIN, TURNS)
    guest = kernel.find("micro")
    booted = initramfs.build(guest, script=boot.SCRIPT)
    program = net.round_trip()
    first = [
        f"ip addr add {net.GUEST}/{net.PREFIX} dev eth0; ip link set eth0 up",
        f"chroot /mnt {DISK_JOBS[0].fio(1)}",
        f"{net.JOBS[0].command(1)} >/dev/null",
    ]
    steps = [
        f"chroot /mnt {job.fio(JOB_SECONDS)}; cp /mnt/tmp/result /tmp/result" for job in DISK_JOBS
    ]
    steps += [f"{job.command(JOB_SECONDS)} >/tmp/result" for job in NET_JOBS]
    worked = initramfs.build(
        guest,
        script=guest_jobs.script(first, steps, "/tmp/result"),
        files={"/bin/round_trip": program},
    )
    root = str(rootfs.build(rootfs.MEASURE))
    image = str(guest.image)

    def measure() -> side_by_side.Figures:
        module.load("null_blk")
        found: side_by_side.Figures = {}
        work = block.pyvirt_command(image, str(worked), root, str(block.DISK))
        work += ["-net", f"{net.TAP},vhost=off"]
        order = side_by_side.order(MODES)
        for name in order:
            boot.boot([*boot.pyvirt_command(image, str(booted)), *MODES[name]])
        for name in order:
            one = boot.boot([*boot.pyvirt_command(image, str(booted)), *MODES[name]])
            found[name] = [[one.process], [one.uptime]]
        with net.network(str(program)):
            for name in order:
                found[name] += [[rate] for rate in jobs([*work, *MODES[name]])]
        return found

    # A turn in the lab is this program once more, as far as to there.
    inside = "PYVIRT_LAB" in os.environ
    started = {} if inside else starts(image, str(booted))
    side_by_side.keep("sandbox", report(started, side_by_side.turns(measure, count, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-sandbox: {error}")
