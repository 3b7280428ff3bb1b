"""Boots with prepared slots and with slots on demand, of a machine that can be plugged into.

The micro kernel has its drivers built in; Debian's loads those of virtio-mmio, disks and NICs.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable

from pyvirt.harness.guest import initramfs, kernel

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers.peer import CONSOLE, LAST, Launch
from ..peers.pyvirt import PROGRAM
from ..peers.run import lines

BOOT_SECONDS = 100
KERNELS = {"micro": (), "cloud": ("virtio_mmio", "virtio_blk", "virtio_net")}
DEMAND, PREPARED = "demand", "prepared"
SCRIPT = f"echo up: $(cut -d' ' -f1 /proc/uptime)\n{LAST}"
ROWS = {
    name: (
        Row(f"{name} kernel: whole process", "s", less=True),
        Row(f"{name} kernel: init's uptime", "s", less=True),
    )
    for name in KERNELS
}


def boot(guest: kernel.Kernel, initrd: str, slots: str) -> tuple[float, float]:
    """Run one boot; return the seconds of the whole process, and the guest's uptime at init."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        command = [str(PROGRAM), "run", "-accel", "kvm", "-m", "256", "-append", CONSOLE]
        command += ["-kernel", str(guest.image), "-initrd", initrd]
        command += ["-machine", f"slots={slots}", "-qmp", f"unix:{folder}/qmp,server,nowait"]
        start = time.monotonic()
        said = "\n".join(lines(Launch(command), BOOT_SECONDS))
        took = time.monotonic() - start
    found = re.search(r"up: ([0-9.]+)", said)
    if found is None:
        raise RuntimeError(f"{guest.name}, {slots}: no uptime in {said!r}")
    return took, float(found[1])


def ready() -> Callable[[Turn], Round]:
    """Return what boots each kernel with either kind of slots."""
    guests = {}
    for name, modules in KERNELS.items():
        guest = kernel.find(name)
        guests[name] = guest, str(initramfs.build(guest, script=SCRIPT, modules=modules))

    def measure(turn: Turn) -> Round:
        found: dict[str, dict[str, list[float]]] = {DEMAND: {}, PREPARED: {}}
        for name, (guest, initrd) in guests.items():
            for slots in turn.order(found):
                for row, time_s in zip(ROWS[name], boot(guest, initrd, slots), strict=True):
                    found[slots][row.name] = [time_s]
        return found

    return measure


PART = Part(
    name="slots",
    title="Slots on demand, and prepared ones",
    what="A boot to its end of a machine that devices can be plugged into: with slots that "
    "come on demand, and with 8 empty ones; 1 vCPU, 256 MiB.",
    place=Place.GUESTS,
    rounds=11,
    at_once=None,
    warm_up=1,
    seconds=1100,
    ready=ready,
    tables=(Table(tuple(row for rows in ROWS.values() for row in rows)),),
)
