"""From exec to the first KVM_RUN, on this host's own KVM; and from a request to a pyvirt serve.

What the guest does after that does not matter, so any KVM will do; it is ended by SIGTERM.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyvirt
from pyvirt.harness.guest import initramfs, kernel

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT
from ..peers.pyvirt import PROGRAM, serving

# After which it has begun, and is ended; the second for a host that is busy.
SETTLE_SECONDS = (0.3, 3.0)
END_SECONDS = 10
FIRST_RUN = "first KVM_RUN"
STAGES = ("modules imported", "VM ready", "kernel loaded", FIRST_RUN)
VIA, REQUEST, INTERPRETER = "run -via", "request alone", "python3 -IS -c pass"
RUN = Row(FIRST_RUN, "ms", 1, less=True)
WARM = Table(
    (RUN,),
    "By pyvirt serve",
    (REQUEST, VIA, PYVIRT, INTERPRETER),
    ((REQUEST, PYVIRT), (VIA, PYVIRT), (REQUEST, INTERPRETER), (VIA, INTERPRETER)),
)


def guest() -> list[str]:
    """Return the options of the micro kernel with a script that does nothing."""
    micro = kernel.find("micro")
    initrd = initramfs.build(micro, script="true")
    words = ["-accel", "kvm", "-timeline"]
    return [*words, "-kernel", str(micro.image), "-initrd", str(initrd)]


def command(*more: str) -> list[str]:
    """Return pyvirt's command line for that guest."""
    return [str(PROGRAM), "run", *more, *guest()]


def stages(start: Callable[[float], str]) -> dict[str, float]:
    """Return the milliseconds of each stage of a start, which is given seconds to settle."""
    messages = ""
    for settle_s in SETTLE_SECONDS:
        messages = start(settle_s)
        at = {}
        for line in messages.splitlines():
            for stage in STAGES:
                if line.startswith(stage):
                    at[stage] = float(line.removeprefix(stage).split()[0])
        if len(at) == len(STAGES):
            return at
    raise RuntimeError(f"no timeline in {messages!r}")


def by_command(words: Sequence[str]) -> Callable[[float], str]:
    """Return what starts a command, ends it, and returns what it has said of itself."""

    def start(settle_s: float) -> str:
        process = subprocess.Popen(
            words,
            env={**os.environ, "PYVIRT_EXEC_NS": str(time.monotonic_ns())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(settle_s)
        process.send_signal(signal.SIGTERM)
        return process.communicate(timeout=END_SECONDS)[1]

    return start


def by_request(path: str, words: Sequence[str]) -> Callable[[float], str]:
    """Return the same for one who only asks the server at `path`; stages are from then on."""
    package = os.path.dirname(os.path.abspath(pyvirt.__file__))

    def start(settle_s: float) -> str:
        reader, writer = os.pipe()
        with open(reader, encoding="utf-8") as said, socket.socket(socket.AF_UNIX) as client:
            env = {**os.environ, "PYVIRT_EXEC_NS": str(time.monotonic_ns())}
            caller = {"version": pyvirt.__version__, "package": package, "umask": 0o22, "env": env}
            asked = {"run": words, "cwd": "/", "fds": [2], "caller": caller}
            client.connect(path)
            socket.send_fds(client, [json.dumps(asked).encode() + b"\n"], [writer])
            os.close(writer)
            time.sleep(settle_s)
            client.shutdown(socket.SHUT_WR)
            return said.read()

    return start


def interpreter() -> float:
    """Return the milliseconds of Python's own start and end."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-IS", "-c", "pass"], check=True)
    return (time.monotonic() - begun) * 1000


def ready() -> Callable[[Turn], Round]:
    """Return what starts pyvirt once in each way."""
    words = guest()

    def measure(turn: Turn) -> Round:
        with TemporaryDirectory(prefix="startup-") as folder:
            path = str(Path(folder, "serve"))
            with serving("serve", path):
                ways = {
                    PYVIRT: by_command(command()),
                    VIA: by_command(command("-via", path)),
                    REQUEST: by_request(path, words),
                }
                stages(ways[REQUEST])  # a server's first is not like the others
                found = {name: stages(ways[name]) for name in turn.order(ways)}
        rows = {name: {WARM.key(RUN): [at[FIRST_RUN]]} for name, at in found.items()}
        rows[PYVIRT] |= {stage: [at] for stage, at in found[PYVIRT].items()}
        return rows | {INTERPRETER: {WARM.key(RUN): [interpreter()]}}

    return measure


PART = Part(
    name="startup",
    title="From exec to the guest's first instruction",
    what="`pyvirt run` with the micro kernel and its initramfs, 1 vCPU, 256 MiB; and by a "
    "`pyvirt serve`: `run -via` from its exec, and a client that does no more than ask, from the "
    "request. Beside them Python's own start and end.",
    place=Place.HOST,
    rounds=20,
    at_once=None,
    warm_up=2,
    ready=ready,
    tables=(
        Table(tuple(Row(stage, "ms", 1, less=True) for stage in STAGES), subjects=(PYVIRT,)),
        WARM,
    ),
    budgets=(
        Budget((PYVIRT,), 35, rows=(FIRST_RUN,)),
        Budget((PYVIRT,), 15, rows=(FIRST_RUN,), word="goal"),
        Budget((REQUEST,), 6, rows=(FIRST_RUN,), table=WARM.name),
    ),
)
