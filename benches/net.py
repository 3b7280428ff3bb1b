"""A guest's NIC on a tap under pyvirt and under QEMU microvm, in turn: iperf3, and round trips.

    make bench-net                    or: .venv/bin/python benches/net.py [RUNS]

Both get the same micro kernel, initramfs, one vCPU, 512 MiB and the same tap, with an address of
the host's and no bridge, in a network namespace of the benchmark's own; iperf3 comes from a Debian
root file system on /dev/vda. Where the host has vhost-net, both run with it too. Exits to user
space per packet are what KVM counts, over the packets (after segmentation offload) on the tap.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import guest_jobs
import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness import cache
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

RUNS_MIN, RUNS = 5, 5
JOB_SECONDS = 2
LAB_SECONDS = 400
GOAL = 1.2
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


def pyvirt_command(image: str, initrd: str, root: str, *, vhost: bool) -> list[str]:
    """Return pyvirt's command line."""
    command = guest_jobs.pyvirt_command(image, initrd, root)
    return [*command, "-net", f"{TAP},vhost={'on' if vhost else 'off'}"]


def qemu_command(image: str, initrd: str, root: str, *, vhost: bool) -> list[str]:
    """Return QEMU's."""
    command = guest_jobs.qemu_command(image, initrd, root)
    tap = f"tap,id=n,ifname={TAP},script=no,downscript=no,vhost={'on' if vhost else 'off'}"
    return [*command, "-netdev", tap, "-device", "virtio-net-device,netdev=n"]


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


def round_trip() -> Path:
    """Return the program of that name, compiled on first use."""
    compiler = ("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror")

    def build(place: Path) -> None:
        subprocess.run([*compiler, "-o", str(place), str(ROUND_TRIP)], check=True)

    return cache.entry(f"round-trip-{cache.digest(ROUND_TRIP.read_bytes())}", build)


@contextmanager
def network(round_trip: str) -> Iterator[None]:
    """Make a network namespace for this process, the tap in it, and the servers behind it."""
    pyvirt = str(side_by_side.PYVIRT)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        sys.exit(f"a network namespace: {os.strerror(ctypes.get_errno())}; run it as root")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run([pyvirt, "net", "up", TAP, "-address", f"{HOST}/{PREFIX}"], check=True)
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
        return float(received["bytes"]) * 8 / received["seconds"] / 1e6
    return (int(received["packets"]) - int(received["lost_packets"])) / float(received["seconds"])


def packets() -> int:
    """Return how many packets the tap has carried, both ways."""
    for line in COUNTERS.read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == TAP:
            fields = counts.split()
            return int(fields[1]) + int(fields[9])
    raise RuntimeError(f"{TAP} is gone")


def run(command: list[str]) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    done = guest_jobs.run(command, len(JOBS), lambda: (packets(), side_by_side.user_exits()))
    for words, (carried, exits) in done:
        rate = parse(words, JOBS[len(results)])
        results.append(guest_jobs.Result(rate, carried, exits))
    return results


def table(
    results: dict[str, list[list[guest_jobs.Result]]], suffix: str, ratios: dict[str, list[float]]
) -> list[str]:
    """Return the lines of one comparison; its ratios are added to `ratios`."""
    ours, theirs = results[f"pyvirt{suffix}"], results[f"QEMU{suffix}"]
    lines = guest_jobs.headings("")
    middles = []
    for number, job in enumerate(JOBS):
        a, b = (guest_jobs.rates(turns, number) for turns in (ours, theirs))
        ratio = side_by_side.ratios(a, b)
        ratios[job.name + suffix] = ratio
        middles.append(statistics.median(ratio))
        lines.append(
            f"| {job.name}, {job.unit} | {side_by_side.spread(a, 0)} | "
            f"{side_by_side.spread(b, 0)} | {side_by_side.spread(ratio)} | "
            f"{guest_jobs.exits(ours, number)} | {guest_jobs.exits(theirs, number)} |"
        )
    return [*lines, "", f"Geometric mean of the ratios: {statistics.geometric_mean(middles):.2f}."]


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the tables as Markdown; draw the plot."""
    results = guest_jobs.results(turns)
    lines = [
        f"{len(turns)} runs of each, in turn; {JOB_SECONDS} s a job; micro kernel, 1 vCPU, 512M.",
        f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}, virtio-net-device.",
        "Median (least to most); in and out as the guest sees them; UDP as fast as the sender can,",
        "counted where it arrives; exits to user space per packet on the tap.",
        "",
    ]
    ratios: dict[str, list[float]] = {}
    lines += table(results, "", ratios)
    if "QEMU, vhost" in results:
        lines += ["", "With vhost=on:", "", *table(results, ", vhost", ratios)]
    side_by_side.plot("net", "A guest's NIC: throughput and round trips", ratios, GOAL)
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure here or in the lab; print the tables and keep them, with a plot, under results/."""
    runs = side_by_side.how_many("RUNS", RUNS_MIN, RUNS)
    program = round_trip()
    guest = kernel.find("micro")
    files = {"/bin/round_trip": program}
    first = [
        f"ip addr add {GUEST}/{PREFIX} dev eth0; ip link set eth0 up",
        # iperf3 into memory, and the host's address into the neighbour table.
        f"{JOBS[0].command(1)} >/dev/null",
    ]
    jobs = [f"{job.command(JOB_SECONDS)} >/tmp/result" for job in JOBS]
    initrd = initramfs.build(
        guest, script=guest_jobs.script(first, jobs, "/tmp/result"), files=files
    )
    words = (str(guest.image), str(initrd), str(rootfs.build(rootfs.MEASURE)))

    def measure() -> side_by_side.Figures:
        if os.environ.get("PYVIRT_LAB"):
            module.load("vhost_net")
        commands = {
            "pyvirt": pyvirt_command(*words, vhost=False),
            "QEMU": qemu_command(*words, vhost=False),
        }
        if os.path.exists("/dev/vhost-net"):
            commands["pyvirt, vhost"] = pyvirt_command(*words, vhost=True)
            commands["QEMU, vhost"] = qemu_command(*words, vhost=True)
        with network(str(program)):
            order = side_by_side.order(commands)
            return {name: [list(job) for job in run(commands[name])] for name in order}

    side_by_side.keep("net", report(side_by_side.turns(measure, runs, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-net: {error}")
