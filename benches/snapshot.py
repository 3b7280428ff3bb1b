"""Restores and forks: to the first KVM_RUN by memory, and to a guest's line beside QEMU's.

    make bench-snapshot               or: .venv/bin/python benches/snapshot.py [TURNS]

On this host's own KVM: a machine that was paused before its first instruction, with the micro
kernel in its memory, is restored from a folder in /dev/shm and forked from a template, and each
time ended at once. Times are from the exec of `pyvirt restore`, and from the moment at which the
template's process has read what is asked of it.

Where stock kernels run, in turns: the micro kernel with a script that runs `uname -r` over and
over, in 256 MiB, is saved once by each monitor: from the start of a process to its first line.
"""

from __future__ import annotations

import os
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import side_by_side
from matplotlib import pyplot as plt
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.vm.fork_server import SOCKETS, ForkServer, Process, Template
from pyvirt.qmp.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNS_MIN, TURNS = 3, 5
SIZES = (128, 512, 2048, 8192)  # MiB
RUNS, WARM_UP = 20, 2
EACH = 5  # of each monitor in a turn
SECONDS = 60
LAB_SECONDS = 240
RUN_S = 0.03  # that its vCPU may run before it is told to end
REST_S = 0.15  # between two forks, as between two tests; another one is prepared meanwhile
WORDS = ("-accel", "kvm", "-serial", "none", "-qmp", "fd:3,throttle=off")
STREAMS = {"qmp": (3,), "messages": (2,)}
WAYS = ("restore", "fork", "fork, none waiting")
# It is not asked: QEMU loses what comes by a serial port while it restores that.
SCRIPT = "dmesg -n 1; echo guest-is-ready; while sleep 0.02; do uname -r; done"
CMDLINE = "console=ttyS0 quiet panic=-1"
QEMU_INCOMING = "QEMU -incoming"


class Fork(NamedTuple):
    """Milliseconds to its first KVM_RUN, and KiB of its monitor that are its own."""

    took: float
    private: int


def first_run(text: str) -> float:
    """Return the milliseconds in a table of -timeline."""
    found = re.search(r"first KVM_RUN +([0-9.]+)", text)
    if found is None:
        raise RuntimeError(f"no timeline in {text!r}")
    return float(found[1])


def private(pid: int) -> int:
    """Return the KiB of a monitor that no other process has, without its guest's."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            # The guest's memory begins with what the template has of it, and is huge.
            low, high = (int(end, 16) for end in words[0].split("-"))
            counts = "pyvirt-memory" not in line and high - low < 64 << 20
        elif words[0] == "Private_Dirty:" and counts:
            total += int(words[1])
    return total


def fork(server: ForkServer, template: Template) -> Fork:
    """Make one, and end it."""
    with closing(Process(server.path, [*WORDS, "-timeline"], STREAMS, template=template)) as one:
        client = Client(one.streams["qmp"].dup(), lambda _: None)
        one.take()
        assert one.pid is not None
        size = private(one.pid)
        time.sleep(RUN_S)
        client.execute("quit")
        text = "".join(iter(lambda: one.streams["messages"].recv(65536).decode(), ""))
        client.close()
    time.sleep(REST_S)
    return Fork(first_run(text), size)


def restore(folder: str) -> float:
    """Restore one, and end it; return the milliseconds from exec to its first KVM_RUN."""
    command = [str(side_by_side.PYVIRT), "restore", folder, "-timeline"]
    command += [word.replace("fd:3", f"unix:{folder}.sock,server,nowait") for word in WORDS]
    environment = {**os.environ, "PYVIRT_EXEC_NS": str(time.monotonic_ns())}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + SECONDS
        while not os.path.exists(f"{folder}.sock"):
            assert time.monotonic() < until
            time.sleep(0.01)
        with closing(Client(f"{folder}.sock", lambda _: None)) as client:
            client.execute("quit")
        assert process.stderr is not None
        return first_run(process.stderr.read())


class Size(NamedTuple):
    """What was measured with a size of memory: milliseconds by way, and KiB of forks."""

    times: dict[str, list[float]]
    private: list[int]


def measure_size(server: ForkServer, mib: int, guest: list[str]) -> Size:
    """Measure one size of memory."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    sizes: list[int] = []
    with (
        TemporaryDirectory(dir=SOCKETS) as folder,
        closing(Process(server.path, [*WORDS, "-S", "-m", str(mib), *guest], STREAMS)) as first,
        closing(Client(first.streams["qmp"].dup(), lambda _: None)) as client,
        closing(Template(server.path)) as template,
        closing(Template(server.path, spares=0)) as bare,
    ):
        for uri in (f"file:{folder}/snapshot", template.uri, bare.uri):
            client.execute("migrate", {"uri": uri})
            while client.execute("query-migrate")["status"] == "active":
                time.sleep(0.01)
        template.wait(SECONDS)
        client.execute("quit")
        for turn in range(RUNS + WARM_UP):
            forks = fork(server, template), fork(server, bare)
            took = (restore(f"{folder}/snapshot"), *(one.took for one in forks))
            if turn >= WARM_UP:
                sizes.append(forks[0].private)
                for way, milliseconds in zip(WAYS, took, strict=True):
                    times[way].append(milliseconds)
    return Size(times, sizes)


class Guest:
    """A guest whose serial port is its process's stdout."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.stderr
        )
        self._text = b""

    def expect(self, text: bytes) -> None:
        """Read until it says something."""
        assert self.process.stdout is not None
        until = time.monotonic() + SECONDS
        while text not in self._text:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise RuntimeError(f"no {text!r} in {self._text!r}")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError(f"it ended, and had said {self._text!r}")
            self._text += data

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def line_s(command: Sequence[str], release: str) -> float:
    """Return the seconds from a process's start to its guest's line."""
    start = time.monotonic()
    with closing(Guest(command)) as guest:
        guest.expect(release.encode())
        return time.monotonic() - start


@contextmanager
def held(folder: str) -> Iterator[str]:
    """Hold the snapshot in a folder as a template; yield its socket."""
    path = f"{folder}/template"
    command = [str(side_by_side.PYVIRT), "template", f"{folder}/snapshot", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield path
        finally:
            process.terminate()


def qemu_monitor(path: str) -> list[str]:
    """Return QEMU's option for a monitor at a socket."""
    return ["-qmp", f"unix:{path},server=on,wait=off"]


def save(command: Sequence[str], path: str, uri: str) -> None:
    """Boot a guest whose monitor is at `path`, and have it saved when it is ready.

    It runs, for one that was paused is paused again where QEMU restores it.
    """
    with closing(Guest(command)) as guest:
        guest.expect(b"guest-is-ready")
        with closing(Client(path, lambda _: None)) as client:
            client.execute("migrate", {"uri": uri})
            while client.execute("query-migrate")["status"] not in {"completed", "failed"}:
                time.sleep(0.05)


def measure() -> side_by_side.Figures:
    """Return the seconds to each line, one guest of each way in turn."""
    guest = kernel.find("micro")
    initrd = str(initramfs.build(guest, script=SCRIPT))
    image = ["-kernel", str(guest.image), "-initrd", initrd]
    pyvirt, qemu = str(side_by_side.PYVIRT), [*side_by_side.QEMU_MICROVM, "-m", "256"]
    qemu += [*image, "-append", f"{CMDLINE} {side_by_side.QEMU_APPEND}"]
    found: side_by_side.Figures = {name: [] for name in ("restore", "fork", QEMU_INCOMING)}
    with TemporaryDirectory(dir=SOCKETS) as folder:
        ours, theirs = f"{folder}/ours", f"{folder}/theirs"
        boot = [pyvirt, "run", "-accel", "kvm", "-m", "256", *image, "-append", CMDLINE]
        save([*boot, "-qmp", f"unix:{ours},server,nowait"], ours, f"file:{folder}/snapshot")
        save([*qemu, *qemu_monitor(theirs)], theirs, f"exec:cat >{folder}/qemu")
        with held(folder) as socket:
            commands = {
                "restore": [pyvirt, "restore", f"{folder}/snapshot", "-accel", "kvm"],
                "fork": [pyvirt, "fork", socket],
                QEMU_INCOMING: [*qemu, "-incoming", f"exec:cat {folder}/qemu"],
            }
            for turn in range(EACH + 1):
                for name, command in commands.items():
                    seconds = line_s(command, guest.release)
                    if turn:
                        found[name].append([seconds])
    return found


def plot(sizes: dict[int, Size]) -> None:
    """Draw the medians by memory to results/snapshot.svg."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "snapshot"
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for way in WAYS:
        middles = [statistics.median(size.times[way]) for size in sizes.values()]
        axes.plot(list(sizes), middles, marker="o", label=way)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), [f"{mib} MiB" for mib in sizes])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms to the first KVM_RUN")
    axes.set_title("Restore and fork, by guest memory")
    axes.legend()
    figure.savefig(side_by_side.RESULTS / "snapshot.svg", metadata={"Date": None})
    plt.close(figure)


def report(sizes: dict[int, Size], turns: list[side_by_side.Figures]) -> str:
    """Return the tables as Markdown; draw the plot."""
    plot(sizes)
    show = side_by_side.spread
    lines = [
        f"{RUNS} runs of each on this host's KVM; milliseconds to the first KVM_RUN, and the KiB",
        "of a fork's monitor that are its own; median (least to most).",
        "",
        f"| memory | {' | '.join(WAYS)} | own memory of a fork |",
        "|---|" + "---|" * (len(WAYS) + 1),
    ]
    for mib, size in sizes.items():
        times = " | ".join(show(size.times[way], 1) for way in WAYS)
        lines.append(f"| {mib} MiB | {times} | {show(size.private, 0)} |")
    lines += [
        "",
        f"{len(turns)} turns of {EACH} of each; micro kernel, 1 vCPU, 256 MiB.",
        f"{side_by_side.qemu_version()}, -M {side_by_side.MACHINE}.",
        "Seconds to the first line of `uname -r`, median (least to most).",
        "",
        "| `pyvirt restore` | `pyvirt fork` | QEMU's `-incoming` | restore / QEMU | fork / QEMU |",
        "|---|---|---|---|---|",
    ]
    ways = ("restore", "fork", QEMU_INCOMING)
    times = {way: [one[0] for turn in turns for one in turn[way]] for way in ways}
    ratios = [side_by_side.ratios(times[way], times[QEMU_INCOMING]) for way in ways[:2]]
    cells = [*(show(times[way]) for way in ways), *map(show, ratios)]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |", ""])


def main() -> int:
    """Measure here and in the lab; print the tables and keep them, with a plot."""
    count = side_by_side.how_many("TURNS", TURNS_MIN, TURNS)
    turns = side_by_side.turns(measure, count, LAB_SECONDS)
    guest = kernel.find("micro")
    words = ["-kernel", str(guest.image)]
    with closing(ForkServer()) as server:
        sizes = {mib: measure_size(server, mib, words) for mib in SIZES}
    side_by_side.keep("snapshot", report(sizes, turns))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyvirtError as error:
        sys.exit(f"bench-snapshot: {error}")
