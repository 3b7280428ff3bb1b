"""What a thousand plugs and unplugs cost a guest and its monitor, with the other devices at work.

A disk and a NIC stay: fio writes to the one and reads it back, iperf3 sends by the other, from the
first cycle to the last. Another disk and another NIC come and go in turn, a cycle each. Between
hundreds the guest is asked for its slab and the ACPI tables that it has loaded, and the monitor's
process is looked at.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.progress import Progress
from pyvirt.qmp.client import Client

from ..part import Part, Place, Plot, Round, Row, Table, Turn
from ..peers.peer import CONSOLE, Launch
from ..peers.pyvirt import PROGRAM
from ..peers.run import Process, running
from . import guest_jobs
from .net import ROUND_TRIP, network

CYCLES = 1000
STEP = 100  # cycles between two looks
WARM_UP = 10  # cycles, after which all is allocated that is kept
ANSWER_SECONDS = 120.0
MIB = 1 << 20
KERNEL = "cloud"
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")
TAP, OTHER_TAP = "tap0", "tap1"
# Which disk is which is as the kernel comes to probe them. Both leave an emulated machine time.
SCRIPT = """
stty -echo
dmesg -n 1
mkdir /m
own=vdb
mount -t ext4 -o ro /dev/vda /m 2>/dev/null || { own=vda; mount -t ext4 -o ro /dev/vdb /m; }
mount -t tmpfs tmpfs /m/tmp
for name in proc sys dev; do mount -o bind /$name /m/$name; done
ip addr add 10.0.0.2/24 dev eth0
ip link set eth0 up
chroot /m nice -n 19 fio --name=load --filename=/dev/$own --direct=1 --rw=randwrite --bs=4k \
    --verify=crc32c --verify_backlog=32 --verify_fatal=1 --time_based --runtime=86400 \
    --rate_iops=50 >/tmp/fio 2>&1 &
fio=$!
chroot /m nice -n 19 iperf3 -c 10.0.0.1 -t 86400 -b 4M >/tmp/iperf3 2>&1 &
iperf3=$!
while read -r line; do
    eval "$line"
    echo "answer $?"
done
"""
LOADED = (
    "[ $(awk '{print $5}' /sys/block/$own/stat) -gt 10 ] && "
    "[ $(cat /sys/class/net/eth0/statistics/tx_bytes) -gt 100000 ]"
)
LOOK = (
    "awk '/^(SReclaimable|SUnreclaim):/ {print $2}' /proc/meminfo; "
    "ls /sys/firmware/acpi/tables/dynamic 2>/dev/null | wc -l; "
    "awk '{print $5}' /sys/block/$own/stat; cat /sys/class/net/eth0/statistics/tx_bytes"
)
SLAB, MEMORY = "guest: other slab, KiB", "monitor: memory of its own, KiB"
SUBJECTS = (
    "guest: slab that can be given back, KiB",
    SLAB,
    "guest: ACPI tables loaded",
    "guest: requests written by fio",
    "guest: MiB sent by iperf3",
    MEMORY,
    "monitor: descriptors",
    "monitor: threads",
)
ROWS = tuple(Row(str(cycle), "", 0) for cycle in range(0, CYCLES + 1, STEP))


class Guest:
    """A running guest, told what to do on its console."""

    def __init__(self, process: Process, console: BinaryIO) -> None:
        self._process, self._console = process, console
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._console:
            self._lines.put(line.decode(errors="replace").strip())

    def ask(self, command: str) -> list[str]:
        """Run a line of shell that must end with 0; return the lines that it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        said: list[str] = []
        while not said or not said[-1].startswith("answer "):
            try:
                said.append(self._lines.get(timeout=ANSWER_SECONDS))
            except queue.Empty:
                raise RuntimeError(f"no answer to {command!r}, but {said!r}") from None
        if said[-1] != "answer 0":
            raise RuntimeError(f"{command!r}: {said!r}")
        return said[:-1]


def own_kib(pid: int) -> int:
    """Return the KiB of anonymous memory of a process, in which its guest's is not."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


def look(guest: Guest, pid: int) -> list[float]:
    """Return what SUBJECTS names."""
    slab, other, tables, written, sent = map(int, guest.ask(LOOK))
    held = (len(os.listdir(f"/proc/{pid}/{kind}")) for kind in ("fd", "task"))
    return [slab, other, tables, written, sent // MIB, own_kib(pid), *held]


def cycles(client: Client, image: Path) -> Iterator[None]:
    """Plug and unplug a disk, then a NIC, and so on for ever; each step is one of them."""
    file = {"driver": "file", "filename": str(image)}
    while True:
        client.execute("blockdev-add", {"node-name": "disk", "file": file})
        client.execute("device_add", {"id": "disk", "driver": "virtio-blk-mmio"})
        client.execute("device_del", {"id": "disk"})
        yield
        client.execute("netdev_add", {"id": "nic", "ifname": OTHER_TAP})
        client.execute("device_add", {"id": "nic", "driver": "virtio-net-mmio"})
        client.execute("device_del", {"id": "nic"})
        yield


def over(guest: Guest) -> None:
    """End both loads, and see that neither found anything wrong."""
    guest.ask("kill -INT $fio $iperf3; wait $fio; wait $iperf3; :")
    fio, iperf3 = ("\n".join(guest.ask(f"cat /tmp/{name}")) for name in ("fio", "iperf3"))
    if not re.search(r"err= *0:", fio) or "terminating on signal 2" not in fio:
        raise RuntimeError(f"fio: {fio}")
    if "the client has terminated" not in iperf3:
        raise RuntimeError(f"iperf3: {iperf3}")


def ready() -> Callable[[Turn], Round]:
    """Return what plugs and unplugs so often; a round is all of it."""
    guest = kernel.find(KERNEL)
    image = ["-kernel", str(guest.image)]
    image += ["-initrd", str(initramfs.build(guest, script=SCRIPT, modules=MODULES))]
    root, peer = str(rootfs.build(rootfs.MEASURE)), str(guest_jobs.program(ROUND_TRIP))

    def measure(turn: Turn) -> Round:
        with network(peer), TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
            up = [str(PROGRAM), "net", "up", OTHER_TAP, "-address", "10.0.1.1/24"]
            subprocess.run(up, check=True)
            own, other, socket = Path(folder, "own"), Path(folder, "other"), f"{folder}/qmp"
            for disk in (own, other):
                disk.touch()
                os.truncate(disk, 8 * MIB)
            command = [str(PROGRAM), "run", "-accel", "kvm", "-append", CONSOLE, *image]
            command += ["-machine", "slots=demand,mem-share=on", "-m", "512"]
            command += ["-disk", f"{root},readonly=on,direct=off", "-disk", str(own)]
            command += ["-net", TAP, "-qmp", f"unix:{socket},server,nowait,throttle=off"]
            with running(Launch(command), subprocess.PIPE) as (process, console):
                return under_load(Guest(process, console), process.pid, socket, other)

    return measure


def under_load(guest: Guest, pid: int, socket: str, disk: Path) -> Round:
    """Plug and unplug, and return what SUBJECTS names after each STEP of cycles."""
    guest.ask(f"until {LOADED}; do sleep 1; done 2>/dev/null")
    found: dict[str, dict[str, list[float]]] = {name: {} for name in SUBJECTS}
    with closing(Client(socket, lambda _: None)) as client:
        with Progress("replug: cycles", CYCLES) as shown:
            step = cycles(client, disk)
            for _ in range(WARM_UP):
                next(step)
            for cycle in range(CYCLES + 1):
                if cycle % STEP == 0:
                    for name, value in zip(SUBJECTS, look(guest, pid), strict=True):
                        found[name][str(cycle)] = [value]
                if cycle < CYCLES:
                    next(step)
                shown.update(cycle)
        over(guest)
        client.execute("quit")
    return found


PART = Part(
    name="replug",
    title="A thousand plugs and unplugs",
    what=f"{CYCLES} cycles after {WARM_UP}, disks and NICs in turn, on slots on demand, with "
    "fio, which reads back what it wrote, and iperf3 at work on devices that stay; "
    "Debian's kernel for cloud machines, 1 vCPU, 512 MiB.",
    place=Place.GUESTS,
    rounds=1,
    seconds=1600,
    ready=ready,
    tables=(Table(ROWS, subjects=SUBJECTS, compare=()),),
    plot=Plot(
        "What plugs and unplugs leave", (SLAB, MEMORY), lines=True, unit="KiB more", from_first=True
    ),
)
