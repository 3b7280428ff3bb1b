"""What a thousand plugs and unplugs cost a guest and its monitor, with the other devices at work.

    make bench-replug                 or: .venv/bin/python benches/replug.py [CYCLES]

Debian's kernel with slots on demand, one vCPU and 512 MiB. A disk and a NIC stay: fio writes to the
one and reads it back, iperf3 sends by the other, from the first cycle to the last. Another disk and
another NIC come and go in turn, a cycle each. Between hundreds the guest is asked for its slab and
the ACPI tables that it has loaded, and the monitor's process is looked at.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import side_by_side
from matplotlib import pyplot as plt
from net import network, round_trip
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.qmp.client import Client

CYCLES_MIN, CYCLES = 100, 1000
ROWS = 10  # of the table, after the first
WARM_UP = 10  # cycles, after which all is allocated that is kept
ANSWER_SECONDS = 120.0
LAB_SECONDS = 1600
MIB = 1 << 20
KERNEL = "cloud"
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")
CMDLINE = "console=ttyS0 quiet panic=-1"
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
# What a column shows, and of what; the first is the cycle.
COLUMNS = {
    "slab that can be given back, KiB": "guest",
    "other slab, KiB": "guest",
    "ACPI tables loaded": "guest",
    "requests written by fio": "guest",
    "MiB sent by iperf3": "guest",
    "memory of its own, KiB": "monitor",
    "descriptors": "monitor",
    "threads": "monitor",
}


class Guest:
    """A running guest, told what to do on its console."""

    def __init__(self, process: side_by_side.Process) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
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
    """Return what COLUMNS names."""
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


def progress(done: int, count: int, start: float) -> None:
    """Say how far it is, on a line of its own."""
    spent = time.monotonic() - start
    print(f"{done} of {count} cycles, {spent:.0f} s", file=sys.stderr, flush=True)


def over(guest: Guest) -> None:
    """End both loads, and see that neither found anything wrong."""
    guest.ask("kill -INT $fio $iperf3; wait $fio; wait $iperf3; :")
    fio, iperf3 = ("\n".join(guest.ask(f"cat /tmp/{name}")) for name in ("fio", "iperf3"))
    if not re.search(r"err= *0:", fio) or "terminating on signal 2" not in fio:
        raise RuntimeError(f"fio: {fio}")
    if "the client has terminated" not in iperf3:
        raise RuntimeError(f"iperf3: {iperf3}")


def measure(count: int, image: str, initrd: str, root: str, peer: str) -> side_by_side.Figures:
    """Return the rows of the table: the cycle, and what COLUMNS names."""
    rows: list[list[float]] = []
    with network(peer), TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
        up = [str(side_by_side.PYVIRT), "net", "up", OTHER_TAP, "-address", "10.0.1.1/24"]
        subprocess.run(up, check=True)
        own, other, socket = Path(folder, "own"), Path(folder, "other"), f"{folder}/qmp"
        for disk in (own, other):
            disk.touch()
            os.truncate(disk, 8 * MIB)
        command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-append", CMDLINE]
        command += ["-kernel", image, "-initrd", initrd, "-machine", "slots=demand,mem-share=on"]
        command += ["-m", "512", "-disk", f"{root},readonly=on,direct=off", "-disk", str(own)]
        command += ["-net", TAP, "-qmp", f"unix:{socket},server,nowait,throttle=off"]
        with side_by_side.running(command, subprocess.PIPE) as process:
            guest = Guest(process)
            pid = process.pid
            guest.ask(f"until {LOADED}; do sleep 1; done 2>/dev/null")
            with closing(Client(socket, lambda _: None)) as client:
                step = cycles(client, other)
                for _ in range(WARM_UP):
                    next(step)
                start = time.monotonic()
                rows.append([0, *look(guest, pid)])
                for cycle in range(1, count + 1):
                    next(step)
                    if cycle % (count // ROWS) == 0:
                        rows.append([cycle, *look(guest, pid)])
                    if cycle % WARM_UP == 0:
                        progress(cycle, count, start)
                over(guest)
                client.execute("quit")
    return {KERNEL: rows}


def draw(rows: list[list[float]]) -> None:
    """Draw what each cycle leaves, in the guest and in its monitor, to results/replug.svg."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "replug"
    columns = list(zip(*rows, strict=True))
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for name, number in (("guest: other slab", 2), ("monitor: memory of its own", 6)):
        first = columns[number][0]
        axes.plot(columns[0], [value - first for value in columns[number]], label=name)
    axes.set_xlabel("plugs and unplugs")
    axes.set_ylabel("KiB more than at first")
    axes.legend()
    figure.savefig(side_by_side.RESULTS / "replug.svg", metadata={"Date": None})
    plt.close(figure)


def report(rows: list[list[float]]) -> str:
    """Return the table as Markdown."""
    cycled = rows[-1][0] - rows[0][0]
    grown = {name: rows[-1][n] - rows[0][n] for n, name in enumerate(COLUMNS, 1)}
    return "\n".join(
        [
            f"Debian's kernel for cloud machines ({KERNEL}), slots on demand, 1 vCPU, 512 MiB;",
            f"{cycled:.0f} cycles after {WARM_UP}, disks and NICs in turn.",
            f"A cycle leaves {grown['other slab, KiB'] / cycled:.1f} KiB of slab in the guest,",
            "with a loaded table, of which Linux lists 999 at most, and",
            f"{grown['memory of its own, KiB'] / cycled:.2f} KiB in the monitor.",
            "fio has read back what it wrote, iperf3 has kept its connection.",
            "",
            "| cycles | " + " | ".join(f"{what}: {name}" for name, what in COLUMNS.items()) + " |",
            "|---" * (len(COLUMNS) + 1) + "|",
            *("| " + " | ".join(f"{value:.0f}" for value in row) + " |" for row in rows),
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    count = side_by_side.how_many("CYCLES", CYCLES_MIN, CYCLES)
    guest = kernel.find(KERNEL)
    initrd = initramfs.build(guest, script=SCRIPT, modules=MODULES)
    words = (str(guest.image), str(initrd), str(rootfs.build(rootfs.MEASURE)), str(round_trip()))
    (found,) = side_by_side.turns(lambda: measure(count, *words), 1, LAB_SECONDS)
    side_by_side.keep("replug", report(found[KERNEL]))
    draw(found[KERNEL])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-replug: {error}")
