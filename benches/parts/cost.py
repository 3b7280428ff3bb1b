"""What a monitor and its guest cost in processor time, counted as instructions."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import Disk, Guest, Launch, Peer, image
from ..peers.pyvirt import Pyvirt
from ..peers.run import lines
from . import block, boot, guest_jobs, net

JOB_SECONDS, GUEST_SECONDS = 1, 600  # the latter by a clock on the wall
UNCONFINED = "pyvirt -sandbox off"
BOOT = Row("boot, whole process", "ms", 1, less=True)
DISK_JOBS = [block.Job("randread", block.SMALL, depth, 1) for depth in (1, 32)]
NET_JOBS = [
    one
    for one in net.JOBS
    if one.name in {"TCP out, 1 stream", "TCP in, 1 stream", "TCP round trips"}
]
DISK_ROWS = tuple(Row(f"{job}", "µs a request", 1, less=True) for job in DISK_JOBS)
NET_ROWS = tuple(
    Row(job.name, f"µs a {'trip' if job.unit == 'trips/s' else 'Mbit'}", 1, less=True)
    for job in NET_JOBS
)
ROWS = (BOOT, *DISK_ROWS, *NET_ROWS)


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


def jobs(peer: Peer, guest: Guest) -> list[float]:
    """Return what one guest's jobs cost, each in its row's unit."""
    costs: list[float] = []
    pids: list[int] = []
    with TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
        launch = peer.launch(guest, guest.image[peer.formats[0]], Path(folder))
        console = lines(launch, GUEST_SECONDS, begun=pids.append)
        done = guest_jobs.run(console, len(ROWS) - 1, lambda: (processor(pids[0]),))
        for words, (spent,) in done:
            if len(costs) < len(DISK_JOBS):
                amount: float = block.parse(words, DISK_JOBS[len(costs)])[0]
            else:
                amount = net.parse(words, NET_JOBS[len(costs) - len(DISK_JOBS)]) * JOB_SECONDS
            costs.append(spent / 1e3 / amount)
    return costs


def script() -> str:
    """Return what the guest runs that is measured at work."""
    first = [
        f"ip addr add {net.GUEST}/{net.PREFIX} dev eth0; ip link set eth0 up",
        f"chroot /mnt {DISK_JOBS[0].fio(1)}",
        f"{net.JOBS[0].command(1)} >/dev/null",
    ]
    steps = [
        f"chroot /mnt {job.fio(JOB_SECONDS)}; cp /mnt/tmp/result /tmp/result" for job in DISK_JOBS
    ]
    steps += [f"{job.command(JOB_SECONDS)} >/tmp/result" for job in NET_JOBS]
    return guest_jobs.script(first, steps, "/tmp/result")


def ready() -> Callable[[Turn], Round]:
    """Return what boots a guest under each monitor and has one at work."""
    micro = kernel.find("micro")
    images = image(micro)
    program = net.round_trip()
    booted = Guest(images, str(initramfs.build(micro, script=boot.SCRIPT)))
    files = {"/bin/round_trip": program}
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
        with net.network(str(program)):
            for peer in peers:
                costs = zip((*DISK_ROWS, *NET_ROWS), jobs(peer, worked), strict=True)
                found[peer.name] |= {row.name: [cost] for row, cost in costs}
        return found

    return measure


PART = Part(
    name="cost",
    title="What all of it costs, in instructions",
    what="Processor time of the monitor's process and its guest, where a nanosecond is an "
    "instruction: a boot to its end; fio on `null_blk` and a NIC on a tap, for each request, "
    "Mbit or round trip; micro kernel, 1 vCPU. The same within a percent or two every time, and "
    "so what small differences can be seen by. What a processor's caches, and switches to a "
    "guest and back, cost is not in it.",
    place=Place.COUNTED,
    rounds=3,
    seconds=2400,
    ready=ready,
    tables=(Table(ROWS, compare=((PYVIRT, UNCONFINED), (PYVIRT, QEMU))),),
    budgets=(Budget((PYVIRT, UNCONFINED), 1.02), Budget((PYVIRT, QEMU), 1, word="goal")),
)
