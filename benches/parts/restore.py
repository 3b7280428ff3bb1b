"""Restores and forks, to the first KVM_RUN, by the guest's memory; on this host's own KVM.

A machine that was paused before its first instruction, with the micro kernel in its memory, is
restored from a folder in /dev/shm and forked from a template, and each time ended at once. Times
are from the exec of `pyvirt restore`, and from the moment at which the template's process has read
what is asked of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pyvirt.harness.guest import kernel
from pyvirt.harness.vm.fork_server import SOCKETS, ForkServer, Process, Template
from pyvirt.qmp.client import Client

from ..part import Budget, Part, Place, Plot, Round, Row, Table, Turn
from ..peers.pyvirt import PROGRAM

SIZES = (128, 512, 2048, 8192)  # MiB
SAMPLES, WARM_UP = 4, 2  # of a round
SECONDS = 60
RUN_S = 0.03  # that its vCPU may run before it is told to end
REST_S = 0.15  # between two forks, as between two tests; another one is prepared meanwhile
WORDS = ("-accel", "kvm", "-serial", "none", "-qmp", "fd:3,throttle=off")
STREAMS = {"qmp": (3,), "messages": (2,)}
RESTORE, FORK, BARE, OWN = "restore", "fork", "fork, none waiting", "own memory of a fork"
WAYS = (RESTORE, FORK, BARE)
TIMES = Table(tuple(Row(f"{mib} MiB", "ms", 1, less=True) for mib in SIZES), compare=())
MEMORY = Table(
    tuple(Row(f"{mib} MiB", "KiB", 0, less=True) for mib in SIZES),
    "Memory of a fork's monitor that is its own",
    (OWN,),
)


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
    command = [str(PROGRAM), "restore", folder, "-timeline"]
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


def measure_size(server: ForkServer, mib: int, guest: list[str]) -> dict[str, list[float]]:
    """Return the milliseconds of each way with so much memory, and the KiB of forks' own."""
    found: dict[str, list[float]] = {name: [] for name in (*WAYS, OWN)}
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
        for sample in range(SAMPLES + WARM_UP):
            waiting, none = fork(server, template), fork(server, bare)
            took = (restore(f"{folder}/snapshot"), waiting.took, none.took, waiting.private)
            if sample >= WARM_UP:
                for name, value in zip(found, took, strict=True):
                    found[name].append(value)
    return found


def ready() -> Callable[[Turn], Round]:
    """Return what measures all sizes."""
    guest = ["-kernel", str(kernel.find("micro").image)]

    def measure(turn: Turn) -> Round:
        found: dict[str, dict[str, list[float]]] = {name: {} for name in (*WAYS, OWN)}
        with closing(ForkServer()) as server:
            for mib in turn.order(SIZES):
                for name, several in measure_size(server, mib, guest).items():
                    table = MEMORY if name == OWN else TIMES
                    found[name][table.key(Row(f"{mib} MiB"))] = several
        return found

    return measure


PART = Part(
    name="restore",
    title="A machine that goes on from where another stood",
    what=f"To the first KVM_RUN, {SAMPLES} of each a round: restored from a folder in memory,"
    " from the exec of `pyvirt restore`; forked from a template, from its reading of "
    "the request, with another fork prepared meanwhile and with none waiting.",
    place=Place.HOST,
    rounds=5,
    at_once=None,
    ready=ready,
    tables=(TIMES, MEMORY),
    budgets=(Budget((FORK,), 6), Budget((OWN,), 3072, table=MEMORY.name)),
    plot=Plot(
        "Restore and fork, by guest memory", WAYS, lines=True, unit="ms to the first KVM_RUN"
    ),
)
