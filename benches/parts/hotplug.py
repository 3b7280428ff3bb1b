"""How soon a guest sees a disk that is plugged into it, and that it is gone.

The guest does nothing but look at its second disk's size in sysfs and say on the console when that
is another. All times are taken by one clock in this process, the monitor's client: from just before
it sends a request until it has the answer, and until the guest's line has come through the console.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pyvirt.harness.guest import initramfs, kernel
from pyvirt.qmp.client import Client

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers.peer import CONSOLE, Launch
from ..peers.pyvirt import PROGRAM
from ..peers.run import running

PLUGS = 50  # of a round
WARM_UP = 3
DISK_BYTES = 64 << 20
LOOKS = 5000
LINE_SECONDS = 30.0
ANSWERED, SEEN = "answered", "seen by the guest"
OPEN, ADD, DELETE = (
    Row(name, "ms", 1, less=True) for name in ("blockdev-add", "device_add", "device_del")
)
LOOK = Row("between two looks of the guest", "ms", less=True)
LOOKING = Table((LOOK,), "How fine that is", (SEEN,))
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

    def __init__(self, console: BinaryIO) -> None:
        self._console = console
        self._lines: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._console:
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


def cycle(client: Client, guest: Guest, image: Path) -> dict[tuple[str, str], float]:
    """Plug and unplug once; return milliseconds by end and request."""
    file = {"driver": "file", "filename": str(image)}
    opened, is_open = timed(client, "blockdev-add", {"node-name": "drive-0", "file": file})
    plug = {"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}
    added, has_added = timed(client, "device_add", plug)
    seen = guest.when(f"size {DISK_BYTES // 512}")
    deleted, has_deleted = timed(client, "device_del", {"id": "drive-0"})
    gone = guest.when("size 0")
    spans = {
        (ANSWERED, OPEN.name): is_open - opened,
        (ANSWERED, ADD.name): has_added - added,
        (SEEN, ADD.name): seen - added,
        (ANSWERED, DELETE.name): has_deleted - deleted,
        (SEEN, DELETE.name): gone - deleted,
    }
    return {name: 1000 * seconds for name, seconds in spans.items()}


def ready() -> Callable[[Turn], Round]:
    """Return what boots a guest and plugs a disk into it, time and again."""
    micro = kernel.find("micro")
    image = ["-kernel", str(micro.image)]
    image += ["-initrd", str(initramfs.build(micro, script=SCRIPT))]

    def measure(turn: Turn) -> Round:
        with TemporaryDirectory(prefix="pyvirt-bench-", dir="/dev/shm") as folder:
            disk, socket = Path(folder, "disk.img"), f"{folder}/qmp.sock"
            disk.touch()
            os.truncate(disk, DISK_BYTES)
            command = [str(PROGRAM), "run", "-accel", "kvm", "-append", CONSOLE, *image]
            command += ["-qmp", f"unix:{socket},server,nowait,throttle=off"]
            with running(Launch(command)) as (_, console):
                guest = Guest(console)
                begin, end = guest.when("begin"), guest.when("end")
                with closing(Client(socket, lambda _: None)) as client:
                    cycles = [cycle(client, guest, disk) for _ in range(WARM_UP + PLUGS)][WARM_UP:]
        found: dict[str, dict[str, list[float]]] = {ANSWERED: {}, SEEN: {}}
        for subject, row in cycles[0]:
            found[subject][row] = [one[subject, row] for one in cycles]
        found[SEEN][LOOKING.key(LOOK)] = [1000 * (end - begin) / LOOKS]
        return found

    return measure


PART = Part(
    name="hotplug",
    title="How soon a guest has a disk that is plugged into it",
    what=f"{PLUGS} plugs a round, from the sending of the request; the guest's console is in "
    "its times. Micro kernel, 1 vCPU. No other monitor can do this with virtio-mmio.",
    place=Place.GUESTS,
    rounds=3,
    ready=ready,
    tables=(Table((OPEN, ADD, DELETE), subjects=(ANSWERED, SEEN), compare=()), LOOKING),
)
