"""A guest's sockets through the monitor's own device and through the kernel's vhost-vsock, in turn.

    make bench-vsock                  or: .venv/bin/python benches/vsock.py [RUNS]

Both guests run at the same time, with the same cloud kernel, initramfs, one vCPU and 256 MiB; while
one is measured the other waits. One stream of 64 KiB writes in each direction, and round trips of a
byte, by the same program (tests/guest/vsock/peer.c) at all four ends.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import side_by_side
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.guest.program import program
from pyvirt.harness.lab import module

RUNS_MIN, RUNS = 3, 5
ROUNDS = 5  # of a turn, of which the median counts
LAB_SECONDS = 300
JOB_SECONDS = 60
CID = 42
MIB = 1 << 20
BYTES = 32 * MIB
TRIPS = 200
PEER = Path(__file__).parents[1] / "tests/guest/vsock"
# What is measured, in what unit: the client's role, the guest's port, its number, and how much.
JOBS = {
    "to the guest, MiB/s": ("send", 2, BYTES, BYTES / MIB),
    "from the guest, MiB/s": ("read", 3, 0, BYTES / MIB),
    "round trips/s": ("trips", 1, TRIPS, TRIPS),
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
    command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-kernel", image]
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


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"{len(turns)} runs of {ROUNDS} rounds, in turn; cloud kernel, 1 vCPU, 256M.",
        "Median (least to most).",
        "",
        "| | own | vhost-vsock | ratio |",
        "|---|---|---|---|",
    ]
    for number, name in enumerate(JOBS):
        own, vhost = ([turn[kind][number][0] for turn in turns] for kind in ("own", "vhost"))
        ratio = side_by_side.ratios(own, vhost)
        lines.append(
            f"| {name} | {side_by_side.spread(own, 0)} | {side_by_side.spread(vhost, 0)} | "
            f"{side_by_side.spread(ratio)} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    runs = side_by_side.how_many("RUNS", RUNS_MIN, RUNS)
    peer = program("vsock-peer", PEER)
    image = kernel.find("cloud")
    initrd = initramfs.build(
        image,
        script=SCRIPT,
        modules=("virtio_mmio", "vmw_vsock_virtio_transport"),
        files={"/bin/peer": peer},
    )
    words = (str(image.image), str(initrd))

    def measure() -> side_by_side.Figures:
        module.load("vhost_vsock")
        found: dict[str, list[list[float]]] = {"own": [], "vhost": []}
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
            addresses = {"own": f"hybrid:{folder}/v", "vhost": f"vsock:{CID}"}
            own = f"vsock-device,guest-cid={CID},uds={folder}/v"
            stack.enter_context(guest(*words, own))
            stack.enter_context(guest(*words, f"vhost-vsock-device,guest-cid={CID}"))
            for job in JOBS.values():
                rates: dict[str, list[float]] = {kind: [] for kind in addresses}
                for number in range(ROUNDS):
                    for kind in list(addresses)[:: -1 if number % 2 else 1]:
                        rates[kind].append(rate(peer, addresses[kind], job))
                for kind, several in rates.items():
                    found[kind].append([statistics.median(several)])
        return found

    side_by_side.keep("vsock", report(side_by_side.turns(measure, runs, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-vsock: {error}")
