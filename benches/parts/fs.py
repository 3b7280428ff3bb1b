"""A folder of the host in the guest, by the same virtiofsd under each monitor.

The folder is in the host's memory; each guest has a virtiofsd of its own. fio, from a Debian root
file system on /dev/vda, reads and writes past the guest's page cache; small files are made, looked
at, read and removed by small_files.c, from the second on with the guest's caches dropped.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pyvirt.devices.vhost_user.virtiofsd import PROGRAM
from pyvirt.harness.guest import initramfs, kernel, rootfs

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU
from ..peers.peer import Guest, Launch, Peer, image
from ..peers.pyvirt import Pyvirt
from ..peers.qemu import Qemu
from ..peers.run import lines
from . import guest_jobs

JOB_SECONDS = 2
FILES = 50
FILE_MIB = 64
WAIT_SECONDS = 20
SMALL_FILES = Path(__file__).with_name("small_files.c")
SHARE = "/mnt/mnt"  # of the root below /mnt
RESULT = "/mnt/tmp/result"
DEVICE = "vhost-user-fs-device,chardev=c,tag=shared"
# QEMU shares what is told it so; pyvirt sees by itself that a device needs it.
SHARED = ("-object", "memory-backend-memfd,id=m,size=512M,share=on", "-machine", "memory-backend=m")
MONITORS: tuple[tuple[Peer, tuple[str, ...]], ...] = ((Pyvirt(), ()), (Qemu(), SHARED))


class Job(NamedTuple):
    """A name, what the guest runs, and the unit of its result: MiB or files, each second."""

    name: str
    command: str
    unit: str

    @property
    def row(self) -> Row:
        """What the report has of it."""
        return Row(self.name, self.unit, 1 if self.unit == "MiB/s" else 0)


def fio(pattern: str, kib: int, seconds: int = JOB_SECONDS) -> str:
    """Return fio's command in the root."""
    return (
        f"chroot /mnt fio --name=j --filename=/mnt/large --size={FILE_MIB}m --direct=1 "
        f"--ioengine=psync --rw={pattern} --bs={kib}k --eta=never --time_based "
        f"--runtime={seconds} --output-format=terse --terse-version=3 --output=/tmp/result"
    )


def files(what: str) -> str:
    """Return the command for small files; all but the first begins with empty caches."""
    drop = "" if what == "create" else "echo 3 >/proc/sys/vm/drop_caches; "
    return f"{drop}small_files {what} {SHARE}/small {FILES} >{RESULT}"


JOBS = [
    *(
        Job(f"{pattern} of {kib} KiB", fio(pattern, kib), "MiB/s")
        for pattern in ("read", "write")
        for kib in (1024, 4)
    ),
    *(Job(f"{what} small files", files(what), "files/s") for what in ("create", "stat", "read")),
    Job("unlink small files", files("unlink"), "files/s"),
]
ROWS = tuple(job.row for job in JOBS)
RATES = Table(ROWS)
EXITS = guest_jobs.exits_table(ROWS, "Exits to user space for each request or file")
SCRIPT_FIRST = (
    f"mount -t virtiofs shared {SHARE}",
    f"mkdir {SHARE}/small",
    # Brings fio into memory, and makes the file.
    fio("write", 1024, 1),
)


@contextmanager
def daemon(folder: str) -> Iterator[str]:
    """Run a virtiofsd for a new folder in `folder`; give its socket."""
    shared, path = f"{folder}/shared", f"{folder}/socket"
    os.mkdir(shared)
    words = [PROGRAM, f"--socket-path={path}", "-o", f"source={shared},cache=auto"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + WAIT_SECONDS
            while not os.path.exists(path):
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError("virtiofsd does not listen")
                time.sleep(0.01)
            yield path
        finally:
            process.terminate()


def parse(words: str, job: Job) -> tuple[float, float]:
    """Return the rate in the job's unit, and how many requests or files those were."""
    if job.unit == "files/s":
        count, seconds = words.split()
        return int(count) / float(seconds), int(count)
    fields = words.split(";")
    # Of fio's terse output, version 3.
    error, kib = int(fields[4]), int(fields[5]) + int(fields[46])
    seconds_ = (int(fields[8]) or int(fields[49])) / 1000
    if error or not kib:
        raise RuntimeError(f"{job.name}: fio failed: {words}")
    return kib / 1024 / seconds_, kib / int(job.name.split()[2])


def run(launch: Launch) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    console = lines(launch, guest_jobs.SECONDS)
    counters = lambda: (guest_jobs.user_exits(),)  # noqa: E731
    for words, (exits,) in guest_jobs.run(console, len(JOBS), counters):
        rate, amount = parse(words, JOBS[len(results)])
        results.append(guest_jobs.Result(rate, amount, exits))
    return results


def ready() -> Callable[[Turn], Round]:
    """Return what runs a guest of each monitor through all jobs."""
    micro = kernel.find("micro")
    steps = guest_jobs.script(SCRIPT_FIRST, [job.command for job in JOBS], RESULT)
    files = {"/bin/small_files": guest_jobs.program(SMALL_FILES)}
    initrd = initramfs.build(micro, script=steps, files=files)
    root = guest_jobs.root_disk(str(rootfs.build(rootfs.MEASURE)))
    guest = Guest(image(micro), str(initrd), guest_jobs.MEMORY_MIB, (root,))

    def measure(turn: Turn) -> Round:
        found: dict[str, dict[str, list[float]]] = {}
        for peer, more in turn.order(MONITORS):
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, daemon(folder) as socket:
                launch = peer.launch(guest, guest.image[peer.formats[0]], Path(folder))
                words = ["-chardev", f"socket,id=c,path={socket}", "-device", DEVICE]
                results = run(replace(launch, argv=[*launch.argv, *more, *words]))
                found[peer.name] = guest_jobs.found(ROWS, results, RATES, EXITS)
        return found

    return measure


PART = Part(
    name="fs",
    title="A folder of the host",
    what="By virtiofs, with the same virtiofsd, cache=auto, under both; the folder is in "
    f"memory. {JOB_SECONDS} s a job of fio, direct and psync, or {FILES} files of 4 KiB;"
    " micro kernel, 1 vCPU, 512 MiB. Exits have fio's own start and end in them.",
    place=Place.GUESTS,
    rounds=3,
    seconds=400,
    ready=ready,
    tables=(RATES, EXITS),
    budgets=(Budget((PYVIRT, QEMU), 1, least=True, word="goal"),),
)
