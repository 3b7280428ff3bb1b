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

import guest_jobs
import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

RUNS_MIN, RUNS = 5, 5
JOB_SECONDS = 3
LAB_SECONDS = 400
DISK = Path("/dev/nullb0")
GOAL = 1.2


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


def pyvirt_command(image: str, initrd: str, root: str, disk: str) -> list[str]:
    """Return pyvirt's command line."""
    return [*guest_jobs.pyvirt_command(image, initrd, root), "-disk", f"{disk},aio=io_uring"]


def qemu_command(image: str, initrd: str, root: str, disk: str) -> list[str]:
    """Return QEMU's: direct I/O by io_uring in a thread of its own."""
    command = [*guest_jobs.qemu_command(image, initrd, root), "-object", "iothread,id=t"]
    command += ["-drive", f"if=none,id=disk,file={disk},format=raw,cache=none,aio=io_uring"]
    return [*command, "-device", "virtio-blk-device,drive=disk,iothread=t"]


def parse(words: str, job: Job) -> tuple[int, float]:
    """Return requests and seconds of a line of fio's terse output, version 3."""
    fields = words.split(";")
    error, read_kib, read_ms = int(fields[4]), int(fields[5]), int(fields[8])
    write_kib, write_ms = int(fields[46]), int(fields[49])
    if error or read_kib + write_kib == 0:
        raise RuntimeError(f"{job}: fio failed: {words}")
    return (read_kib + write_kib) * 1024 // job.size, (read_ms or write_ms) / 1000


def run(command: list[str]) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    done = guest_jobs.run(command, len(JOBS), lambda: (side_by_side.user_exits(),))
    for words, (exits,) in done:
        requests, seconds = parse(words, JOBS[len(results)])
        results.append(guest_jobs.Result(requests / seconds, requests, exits))
    return results


def rate(job: Job, values: list[float]) -> str:
    """Return IOPS, or MiB a second for large requests, in words."""
    if job.size == 4096:
        return side_by_side.spread(values, 0)
    return side_by_side.spread([value * job.size / (1 << 20) for value in values], 0) + " MiB/s"


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown; draw the plot."""
    results = guest_jobs.results(turns)
    lines = [
        f"{len(turns)} runs of each, in turn; {JOB_SECONDS} s a job; micro kernel, 1 vCPU, 512M.",
        f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}, virtio-blk-device.",
        f"The disk is {DISK}; direct I/O, io_uring. Requests a second unless it says otherwise,",
        "median (least to most); exits to user space per request, with fio's own start and end.",
        "",
        *guest_jobs.headings("fio"),
    ]
    ratios: dict[str, list[float]] = {}
    for number, job in enumerate(JOBS):
        ours, theirs = (guest_jobs.rates(results[name], number) for name in results)
        ratios[str(job)] = side_by_side.ratios(ours, theirs)
        lines.append(
            f"| {job} | {rate(job, ours)} | {rate(job, theirs)} | "
            f"{side_by_side.spread(ratios[str(job)])} | "
            f"{guest_jobs.exits(results['pyvirt'], number)} | "
            f"{guest_jobs.exits(results['QEMU'], number)} |"
        )
    middle = statistics.geometric_mean(map(statistics.median, ratios.values()))
    lines += ["", f"Geometric mean of the ratios: {middle:.2f}.", ""]
    side_by_side.plot("block", "fio in the guest: requests a second", ratios, GOAL)
    return "\n".join(lines)


def main() -> int:
    """Measure here or in the lab; print the table and keep it, with a plot, under results/."""
    runs = side_by_side.how_many("RUNS", RUNS_MIN, RUNS)
    guest = kernel.find("micro")
    # After one that brings fio into memory.
    jobs = [f"chroot /mnt {job.fio(JOB_SECONDS)}" for job in JOBS]
    steps = guest_jobs.script([f"chroot /mnt {JOBS[0].fio(1)}"], jobs, "/mnt/tmp/result")
    initrd = initramfs.build(guest, script=steps)
    root = rootfs.build(rootfs.MEASURE)
    words = (str(guest.image), str(initrd), str(root), str(DISK))
    commands = {"pyvirt": pyvirt_command(*words), "QEMU": qemu_command(*words)}

    def measure() -> side_by_side.Figures:
        module.load("null_blk")
        order = side_by_side.order(commands)
        return {name: [list(job) for job in run(commands[name])] for name in order}

    side_by_side.keep("block", report(side_by_side.turns(measure, runs, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-block: {error}")
