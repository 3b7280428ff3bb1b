"""A guest's sockets, through the monitor's own device and through the kernel's vhost-vsock.

Both guests run at the same time; while one is measured the other waits. The same program
(tests/guest/vsock/peer.c) is at all four ends.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.guest.program import program
from pyvirt.harness.lab import module

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers.pyvirt import PROGRAM
from ..results import ROOT

SAMPLES = 5  # of each job in a round
JOB_SECONDS = 60
CID = 42
MIB = 1 << 20
BYTES = 32 * MIB
TRIPS = 200
PEER = ROOT / "tests/guest/vsock"
OWN, VHOST = "own", "vhost-vsock"
# What is measured: the client's role, the guest's port, its number, and how much.
JOBS = {
    Row("to the guest", "MiB/s", 0): ("send", 2, BYTES, BYTES / MIB),
    Row("from the guest", "MiB/s", 0): ("read", 3, 0, BYTES / MIB),
    Row("round trips", "trips/s", 0): ("trips", 1, TRIPS, TRIPS),
}
SCRIPT = f"""
peer echo vsock:-1:1 >/tmp/1 &
peer sink vsock:-1:2 >/tmp/2 &
peer source vsock:-1:3 {BYTES} >/tmp/3 &
until [ "$(cat /tmp/1 /tmp/2 /tmp/3 | wc -l)" = 3 ]; do sleep 0.1; done
echo servers-ready
wait
"""


@contextmanager
def guest(image: str, initrd: str, device: str) -> Iterator[None]:
    """Run a guest with a socket device, from when its servers are there."""
    command = [str(PROGRAM), "run", "-accel", "kvm", "-kernel", image]
    command += ["-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1", "-device", device]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            if not any(b"servers-ready" in line for line in process.stdout):
                raise RuntimeError(f"{device}: the guest ended")
            yield
        finally:
            process.terminate()


def rate(peer: Path, address: str, job: tuple[str, int, int, float]) -> float:
    """Return how much of a job is done in a second."""
    role, port, number, amount = job
    done = subprocess.run(
        [peer, role, f"{address}:{port}", str(number)],
        capture_output=True,
        check=True,
        text=True,
        timeout=JOB_SECONDS,
    )
    time_ns, _, found = done.stdout.partition(" ")
    if role != "trips" and found.split() != [str(BYTES), "whole"]:
        raise RuntimeError(f"{address}: {role}: {found}")
    return amount * 1e9 / int(time_ns)


def ready() -> Callable[[Turn], Round]:
    """Return what runs both guests through all jobs."""
    peer = program("vsock-peer", PEER)
    image = kernel.find("cloud")
    initrd = initramfs.build(
        image,
        script=SCRIPT,
        modules=("virtio_mmio", "vmw_vsock_virtio_transport"),
        files={"/bin/peer": peer},
    )
    words = (str(image.image), str(initrd))

    def measure(turn: Turn) -> Round:
        module.load("vhost_vsock")
        found: dict[str, dict[str, list[float]]] = {OWN: {}, VHOST: {}}
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            addresses = {OWN: f"hybrid:{folder}/v", VHOST: f"vsock:{CID}"}
            own = f"vsock-device,guest-cid={CID},uds={folder}/v"
            stack.enter_context(guest(*words, own))
            stack.enter_context(guest(*words, f"vhost-vsock-device,guest-cid={CID}"))
            for row, job in JOBS.items():
                for sample in range(SAMPLES):
                    for kind in Turn(turn.number + sample).order(addresses):
                        found[kind].setdefault(row.name, []).append(
                            rate(peer, addresses[kind], job)
                        )
        return found

    return measure


PART = Part(
    name="vsock",
    title="A guest's sockets",
    what=f"AF_VSOCK by the monitor's own device and by the kernel's vhost-vsock, {SAMPLES} "
    "samples a round: one stream of writes of 64 KiB in each direction, and round trips"
    " of a byte; cloud kernel, 1 vCPU, 256 MiB.",
    place=Place.GUESTS,
    rounds=5,
    ready=ready,
    tables=(Table(tuple(JOBS)),),
    budgets=(
        Budget((OWN, VHOST), 1, least=True, rows=("to the guest", "from the guest"), word="goal"),
    ),
)
