"""A test's round trip: a fresh VM, `uname -r` in it, its end.

Both monitors serve the same client of the harness's agent over a virtio-serial port, and are killed
when the answer is there, as a test's VM is. pyvirt's is a fork of the harness's fork server, as in
a test session.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from pyvirt.harness.agent import image
from pyvirt.harness.agent.client import Agent
from pyvirt.harness.guest import kernel
from pyvirt.harness.vm import config
from pyvirt.harness.vm.place import Session
from pyvirt.harness.vm.vm import VM

from ..part import Budget, Part, Place, Plot, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, qemu

VMS = 5  # of each in a round
SECONDS = 60
COMMAND = ("/bin/sh", "-c", "uname -r")
TRIP = Row("boot, `uname -r`, end", "s", less=True)


def under_pyvirt(guest: kernel.Kernel, session: Session, folder: Path) -> float:
    """Return the seconds of one round trip."""
    start = time.monotonic()
    with VM(guest, config.VmConfig(), session, folder) as vm:
        answer = vm.run(COMMAND).stdout.strip()
    took = time.monotonic() - start
    assert answer == guest.release
    return took


def under_qemu(guest: kernel.Kernel, initrd: Path) -> float:
    """Return the seconds of one round trip."""
    ours, theirs = socket.socketpair()
    command = [*qemu.MICROVM, "-m", "256", "-smp", "1"]
    command += ["-kernel", str(guest.image), "-initrd", str(initrd)]
    command += ["-append", f"{config.CMDLINE} {qemu.APPEND}"]
    command += ["-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
    command += ["-device", "virtio-serial-device"]
    command += ["-device", "virtserialport,chardev=agent,name=pyvirt.agent"]
    start = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    ) as process:
        theirs.close()
        try:
            agent = Agent(ours)
            agent.wait_ready(SECONDS)
            answer = agent.spawn(COMMAND).wait(SECONDS).stdout.decode().strip()
        finally:
            process.kill()
    agent.close()
    took = time.monotonic() - start
    assert answer == guest.release
    return took


def ready() -> Callable[[Turn], Round]:
    """Return what times a few VMs of each monitor, after one that is not counted."""
    guest = kernel.find("micro")
    initrd = image.initramfs(guest)

    def measure(turn: Turn) -> Round:
        session = Session(lambda line: print(line, file=sys.stderr))
        times: dict[str, list[float]] = {PYVIRT: [], QEMU: []}
        with TemporaryDirectory(prefix="pyvirt-bench-") as folder:
            try:
                for _ in range(VMS + 1):
                    times[PYVIRT].append(under_pyvirt(guest, session, Path(folder)))
                    times[QEMU].append(under_qemu(guest, initrd))
            finally:
                session.close()
        return {name: {TRIP.name: seen[1:]} for name, seen in times.items()}

    return measure


PART = Part(
    name="fresh_vm",
    title="A test's fresh VM",
    what=f"A test's round trip, {VMS} a round: a fresh VM, whose monitor is a fork of the "
    "harness's warm one, `uname -r` by the agent, its end; micro kernel, 1 vCPU, 256 "
    "MiB.",
    place=Place.GUESTS,
    rounds=7,
    ready=ready,
    tables=(Table((TRIP,)),),
    budgets=(Budget((PYVIRT, QEMU), 0.8),),
    plot=Plot("A fresh VM for uname -r", (PYVIRT, QEMU)),
)
