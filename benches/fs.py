"""A folder of the host under pyvirt and under QEMU microvm, in turn, by the same virtiofsd.

    make bench-fs                     or: .venv/bin/python benches/fs.py [RUNS]

Both get the same micro kernel, initramfs, one vCPU and 512 MiB of shared memory; fio comes from a
Debian root file system on /dev/vda. The folder is in the host's memory; each guest has a virtiofsd
of its own with the same options. fio reads and writes past the guest's page cache; small files are
made, looked at, read and removed by small_files.c, from the second on with the guest's caches
dropped. Exits to user space are what KVM counts: MMIO, ports and signals.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import guest_jobs
import side_by_side
from pyvirt.devices.vhost_user.virtiofsd import PROGRAM
from pyvirt.errors import PyvirtError
from pyvirt.harness import cache
from pyvirt.harness.guest import initramfs, kernel, rootfs

RUNS_MIN, RUNS = 3, 5
JOB_SECONDS = 2
FILES = 50
FILE_MIB = 64
LAB_SECONDS = 400
WAIT_SECONDS = 20
GOAL = 1.0
SMALL_FILES = Path(__file__).with_name("small_files.c")
SHARE = "/mnt/mnt"  # of the root below /mnt
RESULT = "/mnt/tmp/result"


class Job(NamedTuple):
    """A name, what the guest runs, and the unit of its result: MiB or files, each second."""

    name: str
    command: str
    unit: str


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
SCRIPT_FIRST = (
    f"mount -t virtiofs shared {SHARE}",
    f"mkdir {SHARE}/small",
    # Brings fio into memory, and makes the file.
    fio("write", 1024, 1),
)


def small_files() -> Path:
    """Return the program of that name, compiled on first use."""
    compiler = ("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror")

    def build(place: Path) -> None:
        subprocess.run([*compiler, "-o", str(place), str(SMALL_FILES)], check=True)

    slug = cache.digest(" ".join(compiler), SMALL_FILES.read_bytes())
    return cache.entry(f"small-files-{slug}", build)


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


def pyvirt_command(image: str, initrd: str, root: str, socket: str) -> list[str]:
    """Return pyvirt's command line."""
    command = guest_jobs.pyvirt_command(image, initrd, root)
    command += ["-chardev", f"socket,id=c,path={socket}"]
    return [*command, "-device", "vhost-user-fs-device,chardev=c,tag=shared"]


def qemu_command(image: str, initrd: str, root: str, socket: str) -> list[str]:
    """Return QEMU's, with memory that others can see."""
    command = guest_jobs.qemu_command(image, initrd, root)
    command += ["-object", "memory-backend-memfd,id=m,size=512M,share=on"]
    command += ["-machine", "memory-backend=m", "-chardev", f"socket,id=c,path={socket}"]
    return [*command, "-device", "vhost-user-fs-device,chardev=c,tag=shared"]


def parse(words: str, job: Job) -> tuple[float, float, float]:
    """Return the rate in the job's unit, the requests or files, and how many those were."""
    if job.unit == "files/s":
        count, seconds = words.split()
        return int(count) / float(seconds), int(count), float(seconds)
    fields = words.split(";")
    # Of fio's terse output, version 3.
    error, kib = int(fields[4]), int(fields[5]) + int(fields[46])
    seconds_ = (int(fields[8]) or int(fields[49])) / 1000
    if error or not kib:
        raise RuntimeError(f"{job.name}: fio failed: {words}")
    return kib / 1024 / seconds_, kib / int(job.name.split()[2]), seconds_


def run(command: list[str]) -> list[guest_jobs.Result]:
    """Run one guest through all jobs."""
    results: list[guest_jobs.Result] = []
    done = guest_jobs.run(command, len(JOBS), lambda: (side_by_side.user_exits(),))
    for words, (exits,) in done:
        rate, amount, _ = parse(words, JOBS[len(results)])
        results.append(guest_jobs.Result(rate, amount, exits))
    return results


def report(turns: list[side_by_side.Figures]) -> str:
    """Return the table as Markdown."""
    results = guest_jobs.results(turns)
    lines = [
        f"{len(turns)} runs of each, in turn; {JOB_SECONDS} s a job of fio, direct and psync,",
        f"or {FILES} files of 4 KiB; micro kernel, 1 vCPU, 512M.",
        f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}, vhost-user-fs-device.",
        "The same virtiofsd, cache=auto. Median (least to most); exits to user space per request",
        "or file, with fio's own start and end.",
        "",
        *guest_jobs.headings("in the folder"),
    ]
    middles = []
    for number, job in enumerate(JOBS):
        ours, theirs = (guest_jobs.rates(results[name], number) for name in results)
        ratios = side_by_side.ratios(ours, theirs)
        middles.append(statistics.median(ratios))
        digits = 1 if job.unit == "MiB/s" else 0
        lines.append(
            f"| {job.name}, {job.unit} | {side_by_side.spread(ours, digits)} | "
            f"{side_by_side.spread(theirs, digits)} | {side_by_side.spread(ratios)} | "
            f"{guest_jobs.exits(results['pyvirt'], number)} | "
            f"{guest_jobs.exits(results['QEMU'], number)} |"
        )
    lines += ["", f"Geometric mean of the ratios: {statistics.geometric_mean(middles):.2f}.", ""]
    return "\n".join(lines)


def main() -> int:
    """Measure here or in the lab; print the table and keep it under results/."""
    runs = side_by_side.how_many("RUNS", RUNS_MIN, RUNS)
    guest = kernel.find("micro")
    program = small_files()
    steps = guest_jobs.script(SCRIPT_FIRST, [job.command for job in JOBS], RESULT)
    initrd = initramfs.build(guest, script=steps, files={"/bin/small_files": program})
    words = (str(guest.image), str(initrd), str(rootfs.build(rootfs.MEASURE)))
    makers = {"pyvirt": pyvirt_command, "QEMU": qemu_command}

    def measure() -> side_by_side.Figures:
        found: side_by_side.Figures = {}
        for name in side_by_side.order(makers):
            with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, daemon(folder) as socket:
                found[name] = [list(job) for job in run(makers[name](*words, socket))]
        return found

    side_by_side.keep("fs", report(side_by_side.turns(measure, runs, LAB_SECONDS)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-fs: {error}")
