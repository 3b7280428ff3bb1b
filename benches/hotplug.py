"""How soon a guest sees a disk that is plugged into it, and that it is gone.

    make bench-hotplug                or: .venv/bin/python benches/hotplug.py [TURNS]

The guest, the micro kernel on one vCPU, does nothing but look at its second disk's size in sysfs
and say on the console when that is another. All times are taken by one clock in this process, the
monitor's client: from just before it sends a request until it has the answer, and until the
guest's line has come through the console. No other monitor can do this with virtio-mmio.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.qmp.client import Client
from pyvirt.vmm.accel import kvm_failure

TURNS_MIN, TURNS = 3, 3
PLUGS = 50  # of a turn
WARM_UP = 3
DISK_BYTES = 64 << 20
LOOKS = 5000
LINE_SECONDS = 30.0
LAB_SECONDS = 300
CMDLINE = "console=ttyS0 quiet panic=-1"
SCRIPT = f"""\
dmesg -n 1
look() {{ read -r size </sys/block/vdb/size; }}
echo begin
for i in $(seq {LOOKS}); do look; [ "$size" = 0 ] || exit 1; done
echo end
seen=0
while look; do
    [ "$size" = "$seen" ] || {{ echo "size $size"; seen=$size; }}
done
"""


class Guest:
    """A running guest; a thread notes when each line of its console comes."""

    def __init__(self, process: side_by_side.Process) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put((time.monotonic(), line.decode(errors="replace").strip()))

    def when(self, line: str) -> float:
        """Return when the next line, which must be this one, came; the kernel's do not count."""
        at, seen = self._lines.get(timeout=LINE_SECONDS)
        while seen.startswith("["):
            at, seen = self._lines.get(timeout=LINE_SECONDS)
        if seen != line:
            raise RuntimeError(f"the guest says {seen!r} instead of {line!r}")
        return at


def timed(client: Client, command: str, arguments: dict[str, Any]) -> tuple[float, float]:
    """Return when a request was sent, and when its answer was there."""
    sent = time.monotonic()
    client.execute(command, arguments)
    return sent, time.monotonic()


def cycle(client: Client, guest: Guest, image: Path) -> dict[str, float]:
    """Plug and unplug once; return milliseconds by what they were spent on."""
    file = {"driver": "file", "filename": str(image)}
    opened, ready = timed(client, "blockdev-add", {"node-name": "drive-0", "file": file})
    plug = {"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}
    added, has_added = timed(client, "device_add", plug)
    seen = guest.when(f"size {DISK_BYTES // 512}")
    deleted, has_deleted = timed(client, "device_del", {"id": "drive-0"})
    gone = guest.when("size 0")
    spans = {
        "blockdev-add": ready - opened,
        "device_add": has_added - added,
        "seen": seen - added,
        "device_del": has_deleted - deleted,
        "gone": gone - deleted,
    }
    return {name: 1000 * seconds for name, seconds in spans.items()}


def measure(image: str, initrd: str) -> side_by_side.Figures:
    """Return the milliseconds of each plug, and how many pass between two looks of the guest."""
    with TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
        disk, socket = Path(folder, "disk.img"), f"{folder}/qmp.sock"
        disk.touch()
        os.truncate(disk, DISK_BYTES)
        command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-append", CMDLINE]
        command += ["-kernel", image, "-initrd", initrd]
        command += ["-qmp", f"unix:{socket},server,nowait,throttle=off"]
        with side_by_side.running(command) as process:
            guest = Guest(process)
            begin, end = guest.when("begin"), guest.when("end")
            with closing(Client(socket, lambda _: None)) as client:
                cycles = [cycle(client, guest, disk) for _ in range(WARM_UP + PLUGS)][WARM_UP:]
    figures = {name: [[one[name]] for one in cycles] for name in cycles[0]}
    return {**figures, "look": [[1000 * (end - begin) / LOOKS]]}


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""

    def words(name: str, digits: int = 1) -> str:
        return side_by_side.spread([one[0] for turn in turns for one in turn[name]], digits)

    place = "in the nested lab, which is emulated" if kvm_failure() else "on this host's KVM"
    return "\n".join(
        [
            f"{len(turns)} boots of a guest, {PLUGS} plugs each, {place}; micro kernel, 1 vCPU.",
            "Milliseconds from the sending of the request, median (least to most). The guest looks",
            f"at the disk's size every {words('look', 2)} ms; its console is in its times.",
            "",
            "| request | answered | seen by the guest |",
            "|---|---|---|",
            f"| blockdev-add | {words('blockdev-add')} | |",
            f"| device_add | {words('device_add')} | {words('seen')} |",
            f"| device_del | {words('device_del')} | {words('gone')} |",
            "",
        ]
    )


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else TURNS
    if turns < TURNS_MIN:
        sys.exit(f"TURNS {turns}: fewer than {TURNS_MIN} say nothing; give more")
    guest = kernel.find("micro")
    words = (str(guest.image), str(initramfs.build(guest, script=SCRIPT)))
    found = side_by_side.turns(lambda: measure(*words), turns, LAB_SECONDS)
    side_by_side.keep("hotplug", report(found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-hotplug: {error}")
