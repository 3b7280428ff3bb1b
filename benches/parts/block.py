"""A guest's disk, by fio in the guest.

The disk measured, /dev/vdb, is the host kernel's null_blk: a block device that keeps nothing and
costs next to nothing, so that the figures are those of guest and monitor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

from ..part import Budget, Part, Place, Plot, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import Disk, Guest, Peer, image
from ..peers.run import guest_lines
from . import guest_jobs

JOB_SECONDS = 3
SMALL = 4096
DISK = "/dev/nullb0"


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

    @property
    def row(self) -> Row:
        """What the report has of it: requests a second, or MiB if they are large."""
        return Row(str(self), "requests/s", 0) if self.size == SMALL else Row(str(self), "MiB/s", 0)

    def rate(self, requests: float) -> float:
        """Return so many requests in the row's unit."""
        return requests if self.size == SMALL else requests * self.size / (1 << 20)

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
        Job(pattern, SMALL, depth, jobs)
        for pattern in ("randread", "randwrite")
        for depth in (1, 32)
        for jobs in (1, 2)
    ),
    *(Job(pattern, 131072, 4, jobs) for pattern in ("read", "write") for jobs in (1, 2)),
]


ROWS = tuple(job.row for job in JOBS)
RATES = Table(ROWS)
EXITS = guest_jobs.exits_table(ROWS)


def parse(words: str, job: Job) -> tuple[int, float]:
    """Return requests and seconds of a line of fio's terse output, version 3."""
    fields = words.split(";")
    error, read_kib, read_ms = int(fields[4]), int(fields[5]), int(fields[8])
    write_kib, write_ms = int(fields[46]), int(fields[49])
    if error or read_kib + write_kib == 0:
        raise RuntimeError(f"{job}: fio failed: {words}")
    return (read_kib + write_kib) * 1024 // job.size, (read_ms or write_ms) / 1000


def run(peer: Peer, guest: Guest) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    console = guest_lines(peer, guest, guest_jobs.SECONDS)
    counters = lambda: (guest_jobs.user_exits(),)  # noqa: E731
    for words, (exits,) in guest_jobs.run(console, len(JOBS), counters):
        job = JOBS[len(results)]
        requests, seconds = parse(words, job)
        results.append(guest_jobs.Result(job.rate(requests / seconds), requests, exits))
    return results


def ready() -> Callable[[Turn], Round]:
    """Return what runs a guest of each monitor through all jobs."""
    micro = kernel.find("micro")
    # After one that brings fio into memory.
    jobs = [f"chroot /mnt {job.fio(JOB_SECONDS)}" for job in JOBS]
    steps = guest_jobs.script([f"chroot /mnt {JOBS[0].fio(1)}"], jobs, "/mnt/tmp/result")
    guest = Guest(
        image(micro),
        str(initramfs.build(micro, script=steps)),
        guest_jobs.MEMORY_MIB,
        (guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE))), Disk(DISK)),
    )

    def measure(turn: Turn) -> Round:
        module.load("null_blk")
        peers = turn.order(present(turn))
        return {peer.name: guest_jobs.found(ROWS, run(peer, guest), RATES, EXITS) for peer in peers}

    return measure


PART = Part(
    name="block",
    title="A guest's disk",
    what=f"fio in the guest, {JOB_SECONDS} s a job, on a host disk that keeps nothing "
    "(`null_blk`): the figures are those of guest and monitor. Direct I/O and io_uring "
    "on both sides, an I/O thread in QEMU; micro kernel, 1 vCPU, 512 MiB. Exits have "
    "fio's own start and end in them.",
    place=Place.GUESTS,
    rounds=5,
    seconds=400,
    ready=ready,
    tables=(RATES, EXITS),
    budgets=(
        Budget((PYVIRT, QEMU), 1, least=True),
        Budget((PYVIRT, QEMU), 1.2, least=True, word="goal"),
    ),
    plot=Plot("fio in the guest", (PYVIRT, QEMU)),
)
