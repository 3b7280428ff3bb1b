"""From a process's start to a saved guest's next line, beside QEMU's -incoming.

The micro kernel with a script that runs `uname -r` over and over is saved once by each monitor.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory

from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.vm.fork_server import SOCKETS
from pyvirt.qmp.client import Client

from ..part import Part, Place, Round, Row, Table, Turn
from ..peers import qemu
from ..peers.peer import CONSOLE
from ..peers.pyvirt import PROGRAM, serving

EACH = 5  # of each in a round
SECONDS = 60
# It is not asked: QEMU loses what comes by a serial port while it restores that.
SCRIPT = "dmesg -n 1; echo guest-is-ready; while sleep 0.02; do uname -r; done"
RESTORE, FORK, INCOMING = "pyvirt restore", "pyvirt fork", "QEMU -incoming"
LINE = Row("to the first line of `uname -r`", "s", less=True)


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
    with serving("template", f"{folder}/snapshot", path):
        yield path


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


def ready() -> Callable[[Turn], Round]:
    """Return what saves a guest of each monitor, and times it going on."""
    guest = kernel.find("micro")
    initrd = str(initramfs.build(guest, script=SCRIPT))
    image = ["-kernel", str(guest.image), "-initrd", initrd]
    theirs = [*qemu.MICROVM, "-m", "256", *image, "-append", f"{CONSOLE} {qemu.APPEND}"]
    ours = [str(PROGRAM), "run", "-accel", "kvm", "-m", "256", *image, "-append", CONSOLE]

    def measure(turn: Turn) -> Round:
        times: dict[str, list[float]] = {name: [] for name in (RESTORE, FORK, INCOMING)}
        with TemporaryDirectory(dir=SOCKETS) as folder:
            qmp = f"{folder}/qmp"
            save([*ours, "-qmp", f"unix:{qmp},server,nowait"], qmp, f"file:{folder}/snapshot")
            save([*theirs, *qemu_monitor(f"{qmp}2")], f"{qmp}2", f"exec:cat >{folder}/qemu")
            with held(folder) as socket:
                commands = {
                    RESTORE: [str(PROGRAM), "restore", f"{folder}/snapshot", "-accel", "kvm"],
                    FORK: [str(PROGRAM), "fork", socket],
                    INCOMING: [*theirs, "-incoming", f"exec:cat {folder}/qemu"],
                }
                for sample in range(EACH + 1):
                    for name in Turn(turn.number + sample).order(commands):
                        seconds = line_s(commands[name], guest.release)
                        if sample:
                            times[name].append(seconds)
        return {name: {LINE.name: several} for name, several in times.items()}

    return measure


PART = Part(
    name="incoming",
    title="A saved guest's next line",
    what=f"From the start of a process to the next line of a guest that was saved, {EACH} of "
    "each a round; micro kernel, 1 vCPU, 256 MiB.",
    place=Place.GUESTS,
    rounds=3,
    ready=ready,
    tables=(
        Table(
            (LINE,),
            subjects=(RESTORE, FORK, INCOMING),
            compare=((RESTORE, INCOMING), (FORK, INCOMING)),
        ),
    ),
)
