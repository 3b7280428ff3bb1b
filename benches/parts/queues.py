"""A guest's NIC with more pairs of queues, and as many vCPUs."""

from __future__ import annotations

from collections.abc import Callable

from pyvirt.harness.guest import initramfs, kernel, rootfs

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import Guest, Peer, image
from ..peers.run import guest_lines
from . import guest_jobs, net

COUNTS = (1, 2, 4)
JOBS = [one for one in net.JOBS if one.name in {"TCP out, 4 streams", "TCP in, 4 streams"}]


def row(job: net.Job, count: int) -> Row:
    """Return a job's row with so many pairs."""
    return Row(f"{job.name}, {count} pair{'s' if count > 1 else ''}", job.unit, 0)


def run(peer: Peer, guest: Guest) -> dict[str, list[float]]:
    """Run one guest through the jobs."""
    console = guest_lines(peer, guest, guest_jobs.SECONDS)
    done = guest_jobs.run(console, len(JOBS), lambda: ())
    return {
        row(job, guest.vcpus).name: [net.parse(words, job)]
        for job, (words, _) in zip(JOBS, done, strict=True)
    }


def ready() -> Callable[[Turn], Round]:
    """Return what runs guests of each size under both monitors."""
    program = guest_jobs.program(net.ROUND_TRIP)
    micro = kernel.find("micro")
    first = [
        f"ip addr add {net.GUEST}/{net.PREFIX} dev eth0; ip link set eth0 up",
        f"{JOBS[0].command(1)} >/dev/null",
    ]
    jobs = [f"{job.command(net.JOB_SECONDS)} >/tmp/result" for job in JOBS]
    initrd = initramfs.build(micro, script=guest_jobs.script(first, jobs, "/tmp/result"))
    root = guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE)))
    guests = [
        Guest(image(micro), str(initrd), guest_jobs.MEMORY_MIB, (root,), net.TAP, vcpus=count)
        for count in COUNTS
    ]

    def measure(turn: Turn) -> Round:
        found: dict[str, dict[str, list[float]]] = {PYVIRT: {}, QEMU: {}}
        peers = [one for one in present(turn) if one.name in found]
        for guest in guests:
            # A tap has many queues or one.
            with net.network(str(program), *(["-multi-queue"] if guest.vcpus > 1 else [])):
                for peer in turn.order(peers):
                    found[peer.name] |= run(peer, guest)
        return found

    return measure


PART = Part(
    name="queues",
    title="A guest's NIC with more queues",
    what=f"iperf3 as above, {net.JOB_SECONDS} s a job, with 1, 2 and 4 pairs of queues and as "
    "many vCPUs. The nested lab has one core for all of them, for the NIC's threads and the host's "
    "end: there it shows what more queues cost, not what they give.",
    place=Place.GUESTS,
    rounds=3,
    seconds=400,
    ready=ready,
    tables=(Table(tuple(row(job, count) for job in JOBS for count in COUNTS)),),
)
