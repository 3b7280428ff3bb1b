"""A guest's disk under pyvirt and under QEMU microvm, in turn, by fio in the guest.

    make bench-block                  or: .venv/bin/python benches/block.py [RUNS]

Both get the same micro kernel, initramfs, one vCPU and 512 MiB; fio comes from a Debian root file
system on /dev/vda. The disk measured, /dev/vdb, is the host kernel's null_blk where it has one: a
block device that keeps nothing and costs next to nothing, so that the figures are those of the
guest and the monitor. Both monitors use direct I/O and io_uring; QEMU has an I/O thread.
Exits to user space are what KVM counts: MMIO, ports and signals.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

RUNS_MIN, RUNS = 5, 5
JOB_SECONDS = 3
GUEST_SECONDS = 100
LAB_SECONDS = 400
DISK = Path("/dev/nullb0")
GOAL = 1.2
CMDLINE = "console=ttyS0 quiet panic=-1"


@dataclass(frozen=True)
class Job:
    """What fio is asked for."""

    pattern: str
    size: int
    depth: int
    jobs: int

    def __str__(self) -> str:
        jobs = "1 job" if self.jobs == 1 else f"{self.jobs} jobs"
        return f"{self.size >> 10} KiB {self.pattern}, depth {self.depth}, {jobs}"

    def fio(self, seconds: int) -> str:
        """Return the command; one line of result goes to /tmp/result."""
        return (
            f"fio --name=j --filename=/dev/vdb --size=1g --direct=1 --ioengine=libaio "
            f"--rw={self.pattern} --bs={self.size} --iodepth={self.depth} "
            f"--numjobs={self.jobs} --thread --group_reporting --norandommap --randrepeat=0 "
            f"--eta=never --time_based --runtime={seconds} "
            "--output-format=terse --terse-version=3 --output=/tmp/result"
        )


JOBS = [
    *(
        Job(pattern, 4096, depth, jobs)
        for pattern in ("randread", "randwrite")
        for depth in (1, 32)
        for jobs in (1, 2)
    ),
    *(Job(pattern, 131072, 4, jobs) for pattern in ("read", "write") for jobs in (1, 2)),
]


class Result(NamedTuple):
    """One job's end; `iops` is requests a second."""

    iops: float
    requests: float
    exits: float


def script(seconds: int) -> str:
    """Return what the guest runs: every job, after one that brings fio into memory."""
    lines = [
        "mount -t ext4 -o ro /dev/vda /mnt",
        "for d in proc sys dev; do mount -o bind /$d /mnt/$d; done",
        "mount -t tmpfs tmpfs /mnt/tmp",
        f"chroot /mnt {JOBS[0].fio(1)}",
    ]
    for number, job in enumerate(JOBS):
        lines += [
            f"echo begin {number}",
            f"chroot /mnt {job.fio(seconds)} || exit 1",
            f"echo end {number}",
            'echo "result $(cat /mnt/tmp/result)"',
        ]
    return "\n".join([*lines, "reboot -f", ""])


def pyvirt_command(image: str, initrd: str, root: str, disk: str) -> list[str]:
    """Return pyvirt's command line."""
    command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-m", "512"]
    command += ["-kernel", image, "-initrd", initrd, "-append", CMDLINE]
    return [*command, "-disk", f"{root},readonly=on,direct=off", "-disk", f"{disk},aio=io_uring"]


def qemu_command(image: str, initrd: str, root: str, disk: str) -> list[str]:
    """Return QEMU's: modern virtio, direct I/O by io_uring in a thread of its own."""
    command = [*side_by_side.QEMU_MICROVM, "-m", "512", "-smp", "1"]
    command += ["-kernel", image, "-initrd", initrd]
    command += ["-append", f"{CMDLINE} {side_by_side.QEMU_APPEND}"]
    command += ["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=t"]
    command += ["-drive", f"if=none,id=root,file={root},format=raw,readonly=on"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,cache=none,aio=io_uring"]
    command += ["-device", "virtio-blk-device,drive=root"]
    return [*command, "-device", "virtio-blk-device,drive=disk,iothread=t"]


def parse(words: str, job: Job) -> tuple[int, float]:
    """Return requests and seconds of a line of fio's terse output, version 3."""
    fields = words.split(";")
    error, read_kib, read_ms = int(fields[4]), int(fields[5]), int(fields[8])
    write_kib, write_ms = int(fields[46]), int(fields[49])
    if error or read_kib + write_kib == 0:
        raise RuntimeError(f"{job}: fio failed: {words}")
    return (read_kib + write_kib) * 1024 // job.size, (read_ms or write_ms) / 1000


def run(command: list[str]) -> list[Result]:
    """Run one guest through all jobs."""
    results: list[Result] = []
    lines: list[str] = []
    begin = end = 0
    for line in side_by_side.console(command, GUEST_SECONDS):
        lines.append(line)
        word, _, rest = line.partition(" ")
        if word == "begin":
            begin = side_by_side.user_exits()
        elif word == "end":
            end = side_by_side.user_exits()
        elif word == "result":
            requests, seconds = parse(rest, JOBS[len(results)])
            results.append(Result(requests / seconds, requests, end - begin))
    if len(results) < len(JOBS):
        shown = "\n".join(lines)
        raise RuntimeError(f"{command[0]}: {len(results)} jobs of {len(JOBS)}: {shown}")
    return results


def rate(job: Job, values: list[float]) -> str:
    """Return IOPS, or MiB a second for large requests, in words."""
    if job.size == 4096:
        return side_by_side.spread(values, 0)
    return side_by_side.spread([value * job.size / (1 << 20) for value in values], 0) + " MiB/s"


def exits(turns: list[list[Result]], number: int) -> str:
    """Return one job's exits per request, of all turns, in words."""
    done = [turn[number] for turn in turns]
    return f"{sum(r.exits for r in done) / sum(r.requests for r in done):.3f}"


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown; draw the plot."""
    results = {name: [[Result(*job) for job in turn[name]] for turn in turns] for name in turns[0]}
    lines = [
        f"{len(turns)} runs of each, in turn; {JOB_SECONDS} s a job; micro kernel, 1 vCPU, 512M.",
        f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}, virtio-blk-device.",
        f"The disk is {DISK}; direct I/O, io_uring. Requests a second unless it says otherwise,",
        "median (least to most); exits to user space per request, with fio's own start and end.",
        "",
        "| fio | pyvirt | QEMU microvm | ratio | exits, pyvirt | exits, QEMU |",
        "|---|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {}
    for number, job in enumerate(JOBS):
        ours, theirs = ([turn[number].iops for turn in results[name]] for name in results)
        ratios[str(job)] = side_by_side.ratios(ours, theirs)
        lines.append(
            f"| {job} | {rate(job, ours)} | {rate(job, theirs)} | "
            f"{side_by_side.spread(ratios[str(job)])} | "
            f"{exits(results['pyvirt'], number)} | {exits(results['QEMU'], number)} |"
        )
    middle = statistics.geometric_mean(map(statistics.median, ratios.values()))
    lines += ["", f"Geometric mean of the ratios: {middle:.2f}.", ""]
    side_by_side.plot("block", "fio in the guest: requests a second", ratios, GOAL)
    return "\n".join(lines)


def main() -> int:
    """Measure here or in the lab; print the table and keep it, with a plot, under results/."""
    runs = side_by_side.how_many("RUNS", RUNS_MIN, RUNS)
    guest = kernel.find("micro")
    initrd = initramfs.build(guest, script=script(JOB_SECONDS))
    root = rootfs.build(rootfs.MEASURE)
    words = (str(guest.image), str(initrd), str(root), str(DISK))
    commands = {"pyvirt": pyvirt_command(*words), "QEMU": qemu_command(*words)}

    def measure() -> side_by_side.Figures:
        module.load("null_blk")
        return {name: [list(job) for job in run(command)] for name, command in commands.items()}

    side_by_side.keep("block", report(side_by_side.turns(measure, runs, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-block: {error}")
