"""A guest's NIC on a tap: iperf3, and round trips of a byte.

The tap has an address of the host's and no bridge, in a network namespace of this process's own;
iperf3 comes from a Debian root file system on /dev/vda.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pyvirt.errors import BackendError
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

from ..part import Budget, Part, Place, Plot, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import Guest, Peer, image
from ..peers.pyvirt import PROGRAM
from ..peers.run import guest_lines
from . import guest_jobs

JOB_SECONDS = 2
TAP, HOST, GUEST, PREFIX = "tap0", "10.0.0.1", "10.0.0.2", 24
PORT = 5002
ROUND_TRIP = Path(__file__).with_name("round_trip.c")
# Of this process's namespace, which /sys may not be.
COUNTERS = Path("/proc/self/net/dev")
CLONE_NEWNET = 0x40000000  # linux/sched.h
READY_SECONDS = 10


@dataclass(frozen=True)
class Job:
    """What is measured, in what unit, and what iperf3 is asked for; "" is round trips."""

    name: str
    unit: str
    iperf: str = ""

    @property
    def row(self) -> Row:
        """What the report has of it."""
        return Row(self.name, self.unit, 0)

    def command(self, seconds: int) -> str:
        """Return the guest's command, whose output is one line."""
        if not self.iperf:
            return f"round_trip client {HOST} {PORT} {seconds}"
        # The sums at the end of iperf3's JSON, as one line.
        return (
            f"chroot /mnt iperf3 -c {HOST} -J -t {seconds} {self.iperf} | tr -d ' \\n\\t' | "
            """grep -o '"sum[a-z_]*":{[^}]*}' | tail -n 2 | tr '\\n' ' '"""
        )


JOBS = [
    Job("TCP out, 1 stream", "Mbit/s", "-P 1"),
    Job("TCP out, 4 streams", "Mbit/s", "-P 4"),
    Job("TCP in, 1 stream", "Mbit/s", "-P 1 -R"),
    Job("TCP in, 4 streams", "Mbit/s", "-P 4 -R"),
    Job("UDP out, 64 bytes", "packets/s", "-u -b 0 -l 64"),
    Job("UDP out, 1400 bytes", "packets/s", "-u -b 0 -l 1400"),
    Job("UDP in, 64 bytes", "packets/s", "-u -b 0 -l 64 -R"),
    Job("UDP in, 1400 bytes", "packets/s", "-u -b 0 -l 1400 -R"),
    Job("TCP round trips", "trips/s"),
]


ROWS = tuple(job.row for job in JOBS)
PACKET = "Exits to user space for each packet"
RATES, EXITS = Table(ROWS), guest_jobs.exits_table(ROWS, PACKET)
VHOST_RATES = Table(ROWS, "With vhost-net")
VHOST_EXITS = guest_jobs.exits_table(ROWS, f"{PACKET}, with vhost-net")


@contextmanager
def serving(*command: str) -> Iterator[None]:
    """Run the host's end of a job until the block ends."""
    # iperf3 maps an unlinked file, which is more than the lab's 9p can do.
    environment = {**os.environ, "TMPDIR": "/dev/shm"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def network(round_trip: str, *more: str) -> Iterator[None]:
    """Make a network namespace for this process, the tap in it, and the servers behind it.

    `more` is for the tap's `pyvirt net up`.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise BackendError(f"a network namespace: {reason}; run it as root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    up = [str(PROGRAM), "net", "up", TAP, "-address", f"{HOST}/{PREFIX}", *more]
    subprocess.run(up, check=True)
    with ExitStack() as servers:
        servers.enter_context(serving("iperf3", "-s", "-B", HOST))
        servers.enter_context(serving(round_trip, "server", str(PORT)))
        wait_for_port(5201)
        wait_for_port(PORT)
        yield


def wait_for_port(port: int) -> None:
    """Wait until a server listens on a port, by the kernel's table."""
    for _ in range(READY_SECONDS * 20):
        if f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")


def parse(words: str, job: Job) -> float:
    """Return the rate in the job's unit, by what arrived."""
    if not job.iperf:
        trips, seconds = words.split()
        return int(trips) / float(seconds)
    sums = [json.loads("{" + part + "}") for part in words.split()]
    if not sums:
        raise RuntimeError(f"{job.name}: iperf3 failed: {words}")
    named = {name: values for one in sums for name, values in one.items()}
    received = named.get("sum_received") or named["sum"]
    if job.unit == "Mbit/s":
        return float(received["bytes"]) * 8 / float(received["seconds"]) / 1e6
    arrived = int(received["packets"]) - int(received["lost_packets"])
    return arrived / float(received["seconds"])


def packets() -> int:
    """Return how many packets the tap has carried, both ways."""
    for line in COUNTERS.read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == TAP:
            fields = counts.split()
            return int(fields[1]) + int(fields[9])
    raise RuntimeError(f"{TAP} is gone")


def run(peer: Peer, guest: Guest) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    console = guest_lines(peer, guest, guest_jobs.SECONDS)
    counters = lambda: (packets(), guest_jobs.user_exits())  # noqa: E731
    for words, (carried, exits) in guest_jobs.run(console, len(JOBS), counters):
        rate = parse(words, JOBS[len(results)])
        results.append(guest_jobs.Result(rate, carried, exits))
    return results


def ready() -> Callable[[Turn], Round]:
    """Return what runs a guest of each monitor through all jobs, and again with vhost-net."""
    program = guest_jobs.program(ROUND_TRIP)
    micro = kernel.find("micro")
    first = [
        f"ip addr add {GUEST}/{PREFIX} dev eth0; ip link set eth0 up",
        # iperf3 into memory, and the host's address into the neighbour table.
        f"{JOBS[0].command(1)} >/dev/null",
    ]
    jobs = [f"{job.command(JOB_SECONDS)} >/tmp/result" for job in JOBS]
    steps = guest_jobs.script(first, jobs, "/tmp/result")
    initrd = initramfs.build(micro, script=steps, files={"/bin/round_trip": program})
    root = guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE)))
    guest = Guest(image(micro), str(initrd), guest_jobs.MEMORY_MIB, (root,), TAP)

    def measure(turn: Turn) -> Round:
        if os.environ.get("PYVIRT_LAB"):
            module.load("vhost_net")
        found: dict[str, dict[str, list[float]]] = {peer.name: {} for peer in present(turn)}
        ways = [(False, RATES, EXITS)]
        if os.path.exists("/dev/vhost-net"):
            ways.append((True, VHOST_RATES, VHOST_EXITS))
        with network(str(program)):
            for vhost, rates, exits in ways:
                for peer in turn.order(present(turn)):
                    if peer.vhost or not vhost:
                        results = run(peer, replace(guest, vhost=vhost))
                        found[peer.name] |= guest_jobs.found(ROWS, results, rates, exits)
        return found

    return measure


PART = Part(
    name="net",
    title="A guest's NIC",
    what=f"On a tap of the host: iperf3, {JOB_SECONDS} s a job, and round trips of a byte; in"
    " and out as the guest sees them. UDP goes as fast as its sender can, and is "
    "counted where it arrives. Packets are those on the tap, after segmentation "
    "offload; micro kernel, 1 vCPU, 512 MiB.",
    place=Place.GUESTS,
    rounds=5,
    seconds=400,
    ready=ready,
    tables=(RATES, EXITS, VHOST_RATES, VHOST_EXITS),
    budgets=(
        Budget((PYVIRT, QEMU), 1, least=True),
        Budget((PYVIRT, QEMU), 1.2, least=True, word="goal"),
        Budget((PYVIRT, QEMU), 1, least=True, table=VHOST_RATES.name, word="budget with vhost-net"),
    ),
    plot=Plot("A guest's NIC: throughput and round trips", (PYVIRT, QEMU)),
)
