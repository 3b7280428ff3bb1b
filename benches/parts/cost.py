"""What a monitor and its guest cost in processor time, counted as instructions."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import Disk, Guest, Launch, Peer, image
from ..peers.pyvirt import Pyvirt
from ..peers.run import lines
from . import block, boot, guest_jobs, net

GUEST_SECONDS = 10  # of the lab, ten billion instructions; they take one to two
UNCONFINED = "pyvirt -sandbox off"
DISK_READS = Path(__file__).with_name("disk_reads.c")
BOOT = Row("boot, whole process", "ms", 1, less=True)


class Job(NamedTuple):
    """What a guest does little and much of: the difference has no start and no end in it.

    `command` is told how much, and prints how much it was.
    """

    row: Row
    command: str
    little: float
    much: float


def _reads(depth: int) -> Job:
    row = Row(f"4 KiB randread, depth {depth}", "µs a request", 2, less=True)
    return Job(row, f"disk_reads /dev/vdb {depth} {{0}}", 100, 2100)


def _stream(name: str, way: str) -> Job:
    command = f"chroot /mnt iperf3 -c {net.HOST} -n {{0}}M {way} >/dev/null && echo {{0}}"
    return Job(Row(name, "µs a MiB", 1, less=True), command, 4, 68)


JOBS = [
    _reads(1),
    _reads(32),
    _stream("TCP out, 1 stream", ""),
    _stream("TCP in, 1 stream", "-R"),
    Job(
        Row("TCP round trips", "µs a trip", 2, less=True),
        f"round_trip client {net.HOST} {net.PORT} {{0}}",
        0.01,
        0.06,
    ),
]
ROWS = (BOOT, *(job.row for job in JOBS))


@dataclass(frozen=True)
class Unconfined(Pyvirt):
    """pyvirt without its sandbox."""

    name: str = UNCONFINED

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line."""
        launch = super().launch(guest, kernel, folder)
        return replace(launch, argv=[*launch.argv, "-sandbox", "off"])


def processor(pid: int) -> int:
    """Return the nanoseconds that all threads of a process have had, its guest's included."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks)


def boots(peer: Peer, guest: Guest) -> float:
    """Return the milliseconds of a whole boot."""

    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    boot.boot(peer, guest, peer.formats[0])
    return (used() - before) * 1e3


def jobs(peer: Peer, guest: Guest) -> dict[str, list[float]]:
    """Return what one guest's jobs cost, each in its row's unit."""
    found: list[tuple[float, int]] = []
    pids: list[int] = []
    with TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
        launch = peer.launch(guest, guest.image[peer.formats[0]], Path(folder))
        console = lines(launch, GUEST_SECONDS, begun=pids.append)
        done = guest_jobs.run(console, 2 * len(JOBS), lambda: (processor(pids[0]),))
        for words, (spent,) in done:
            found.append((float(words.split()[0]), spent))
    costs = {}
    for job, (little, begun), (much, ended) in zip(JOBS, found[::2], found[1::2], strict=True):
        costs[job.row.name] = [(ended - begun) / 1e3 / (much - little)]
    return costs


def script() -> str:
    """Return what the guest runs that is measured at work."""
    first = [f"ip addr add {net.GUEST}/{net.PREFIX} dev eth0; ip link set eth0 up"]
    steps = [
        f"{job.command.format(amount)} >/tmp/result"
        for job in JOBS
        for amount in (job.little, job.much)
    ]
    return guest_jobs.script(first, steps, "/tmp/result")


def ready() -> Callable[[Turn], Round]:
    """Return what boots a guest under each monitor and has one at work."""
    micro = kernel.find("micro")
    images = image(micro)
    trips = guest_jobs.program(net.ROUND_TRIP)
    booted = Guest(images, str(initramfs.build(micro, script=boot.SCRIPT)))
    files = {"/bin/round_trip": trips, "/bin/disk_reads": guest_jobs.program(DISK_READS)}
    worked = Guest(
        images,
        str(initramfs.build(micro, script=script(), files=files)),
        guest_jobs.MEMORY_MIB,
        (guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE))), Disk(block.DISK)),
        net.TAP,
    )

    def measure(turn: Turn) -> Round:
        module.load("null_blk")
        peers = turn.order([Unconfined(), *present(turn)])
        for peer in peers:
            boots(peer, booted)
        found = {peer.name: {BOOT.name: [boots(peer, booted)]} for peer in peers}
        with net.network(str(trips)):
            for peer in peers:
                found[peer.name] |= jobs(peer, worked)
        return found

    return measure


PART = Part(
    name="cost",
    title="What all of it costs, in instructions",
    what="Processor time of the monitor's process and its guest, where a nanosecond is an "
    "instruction: a boot to its end; direct reads of `null_blk` and a NIC on a tap, for each "
    "request, MiB or round trip; micro kernel, 1 vCPU. Of each job little and much is done, and "
    "the difference counts, which has no start in it. The same within a percent or two every "
    "time, and so what small differences can be seen by. What a processor's caches, and switches "
    "to a guest and back, cost is not in it.",
    place=Place.COUNTED,
    rounds=3,
    seconds=300,
    ready=ready,
    tables=(Table(ROWS, compare=((PYVIRT, UNCONFINED), (PYVIRT, QEMU))),),
    budgets=(Budget((PYVIRT, UNCONFINED), 1.02), Budget((PYVIRT, QEMU), 1, word="goal")),
)
