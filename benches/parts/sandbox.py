"""What the sandbox costs a guest: its boot, its disk and its NIC, with it and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel, rootfs
from pyvirt.harness.lab import module

from ..part import Part, Place, Round, Table, Turn
from ..peers.peer import BZIMAGE, Disk, Guest, Launch, image
from ..peers.pyvirt import Pyvirt
from ..peers.run import lines
from . import block, boot, guest_jobs, net

JOB_SECONDS = 2
MODES = ("on", "off")
DISK_JOBS = [block.Job("randread", block.SMALL, depth, 1) for depth in (1, 32)]
NET_JOBS = [
    one
    for one in net.JOBS
    if one.name in {"TCP out, 1 stream", "TCP in, 1 stream", "TCP round trips"}
]
JOBS = (*(job.row for job in DISK_JOBS), *(job.row for job in NET_JOBS))


class Sandboxed(Pyvirt):
    """pyvirt with the sandbox on or off."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line."""
        launch = super().launch(guest, kernel, folder)
        return replace(launch, argv=[*launch.argv, "-sandbox", self.mode])


def jobs(launch: Launch) -> dict[str, list[float]]:
    """Return the rates of one guest's jobs."""
    rates: list[float] = []
    for words, _ in guest_jobs.run(lines(launch, guest_jobs.SECONDS), len(JOBS), tuple):
        if len(rates) < len(DISK_JOBS):
            requests, seconds = block.parse(words, DISK_JOBS[len(rates)])
            rates.append(requests / seconds)
        else:
            rates.append(net.parse(words, NET_JOBS[len(rates) - len(DISK_JOBS)]))
    return {row.name: [rate] for row, rate in zip(JOBS, rates, strict=True)}


def script() -> str:
    """Return what the guest that is measured at work runs."""
    first = [
        f"ip addr add {net.GUEST}/{net.PREFIX} dev eth0; ip link set eth0 up",
        f"chroot /mnt {DISK_JOBS[0].fio(1)}",
        f"{net.JOBS[0].command(1)} >/dev/null",
    ]
    steps = [
        f"chroot /mnt {job.fio(JOB_SECONDS)}; cp /mnt/tmp/result /tmp/result" for job in DISK_JOBS
    ]
    steps += [f"{job.command(JOB_SECONDS)} >/tmp/result" for job in NET_JOBS]
    return guest_jobs.script(first, steps, "/tmp/result")


def ready() -> Callable[[Turn], Round]:
    """Return what boots a guest and has one at work, with the sandbox and without."""
    micro = kernel.find("micro")
    images = image(micro)
    program = net.round_trip()
    booted = Guest(images, str(initramfs.build(micro, script=boot.SCRIPT)))
    files = {"/bin/round_trip": program}
    worked = Guest(
        images,
        str(initramfs.build(micro, script=script(), files=files)),
        guest_jobs.MEMORY_MIB,
        (guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE))), Disk(block.DISK)),
        net.TAP,
    )

    def measure(turn: Turn) -> Round:
        module.load("null_blk")
        monitors = {mode: Sandboxed(mode) for mode in turn.order(MODES)}
        for monitor in monitors.values():
            boot.boot(monitor, booted, BZIMAGE)
        found: dict[str, dict[str, list[float]]] = {}
        for mode, monitor in monitors.items():
            times = boot.boot(monitor, booted, BZIMAGE)
            found[mode] = {row.name: [time] for row, time in zip(boot.ROWS, times, strict=True)}
        with net.network(str(program)):
            for mode, monitor in monitors.items():
                found[mode] |= jobs(monitor.launch(worked, images[BZIMAGE], Path()))
        return found

    return measure


PART = Part(
    name="sandbox",
    title="What the sandbox costs a guest",
    what="With `-sandbox on` and `off`: a boot to its end; fio on `null_blk` and the NIC on "
    f"a tap, {JOB_SECONDS} s a job; micro kernel, 1 vCPU.",
    place=Place.GUESTS,
    rounds=9,
    ready=ready,
    tables=(Table((*boot.ROWS, *JOBS), subjects=MODES),),
)
