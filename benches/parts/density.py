"""Many idle machines at once, started cold and by one `pyvirt serve`, on this host's own KVM.

Each is a tiny guest that stands halted, with a monitor, in the background; two start at a time. And
a few whose guests never leave their processor.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pyvirt.tests.kvm.support import GUESTS, build

from ..part import Budget, Part, Place, Plot, Round, Row, Table, Turn
from ..peers.pyvirt import PROGRAM, serving

MACHINES, AT_ONCE, POLLING = 200, 2, 4
GUEST_MIB = 128
SETTLE_SECONDS, IDLE_SECONDS = 2.0, 5.0
PATIENCE = 120.0
COLD, WARM = "cold", "pyvirt serve"
RATE = Row("starts, whole commands", "a second", 1)
WAKE_UPS = Row(f"wake-ups of all in {IDLE_SECONDS:.0f} s", "", 0, less=True)
CPU = Row(f"processor time of all in {IDLE_SECONDS:.0f} s", "s", less=True)
POLLED = "Guests that poll"
OWN_CPU = Row(f"processor time in {IDLE_SECONDS:.0f} s, but for vCPUs", "s", less=True)
GUEST = "guest"
PARTS = ("Python's memory", "C's heap and stacks", "programs and libraries")
KINDS = {"Pss": "share of all", "Private_Dirty": "its own, written to"}
MEMORY = "Memory of a machine"
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)")
_OPTIONS = ("-accel", "kvm", "-m", str(GUEST_MIB), "-serial", "none")
_SMALL = 256 << 10  # bytes; Python's own mappings are larger


def row(kind: str, part: str = "all but the guest") -> Row:
    """Return the row of a kind of memory that a part has."""
    return Row(f"{part}: {KINDS[kind]}", "MiB", less=True)


TABLE = Table(
    tuple(row(kind, *part) for kind in KINDS for part in ((), *((one,) for one in PARTS))),
    MEMORY,
    (WARM, COLD),
)


POLLED_TABLE = Table((WAKE_UPS, OWN_CPU), POLLED, (WARM, COLD))


def part_of(size: int, name: str) -> str:
    """Return which part a mapping of some bytes belongs to."""
    if size >= GUEST_MIB << 20:
        return GUEST
    if name in {"[heap]", "[stack]"} or (not name and size < _SMALL):
        return PARTS[1]
    return PARTS[2] if name else PARTS[0]


def memory(pid: int) -> dict[tuple[str, str], int]:
    """Return the KiB of a process, by kind and part."""
    found: Counter[tuple[str, str]] = Counter()
    where = GUEST
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        head = _HEAD.match(line)
        if head:
            where = part_of(int(head[2], 16) - int(head[1], 16), head[3])
            continue
        kind, _, value = line.partition(":")
        if kind in KINDS and where != GUEST:
            found[kind, where] += int(value.split()[0])
    return found


def memory_rows(pids: Sequence[int]) -> dict[str, list[float]]:
    """Return the rows of the table, medians of processes in MiB."""
    each = [memory(pid) for pid in pids]
    found = {}
    for kind in KINDS:
        for part in PARTS:
            middle = statistics.median(one[kind, part] for one in each)
            found[TABLE.key(row(kind, part))] = [middle / 1024]
        middle = statistics.median(sum(one[kind, part] for part in PARTS) for one in each)
        found[TABLE.key(row(kind))] = [middle / 1024]
    return found


def switches(pids: Sequence[int]) -> int:
    """Return how often threads of processes have gone to sleep."""
    return sum(
        int(line.split()[1])
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
        for line in (task / "status").read_text(encoding="utf-8").splitlines()
        if line.startswith("voluntary_ctxt_switches:")
    )


def cpu_seconds(pids: Sequence[int], *, of_vcpus: bool = True) -> float:
    """Return the processor time of all threads of processes, or of those that are no vCPU's."""
    ticks = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            name, _, stat = (task / "stat").read_text(encoding="utf-8").rpartition(")")
            if of_vcpus or not name.partition("(")[2].startswith("vcpu"):
                ticks += sum(map(int, stat.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a `pyvirt serve`; yield its socket."""
    path = str(folder / "serve")
    with serving("serve", path):
        yield path


def start(kernel: Path, folder: Path, number: int, via: Sequence[str]) -> int:
    """Start a machine in the background; return its process when its guest runs."""
    pid_file = folder / f"{number}.pid"
    command = [
        *(str(PROGRAM), "run", *via, *_OPTIONS, "-kernel", str(kernel)),
        *("-daemonize", "-pidfile", str(pid_file)),
        *("-qmp", f"unix:{folder}/{number}.qmp,server,nowait"),
    ]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return int(pid_file.read_text(encoding="utf-8"))


def end(folder: Path) -> None:
    """End the machines whose pid files are in a folder, and wait until they are gone."""
    until = time.monotonic() + PATIENCE
    for file in folder.glob("*.pid"):
        os.kill(int(file.read_text(encoding="utf-8")), signal.SIGTERM)
    while any(folder.glob("*.pid")) and time.monotonic() < until:
        time.sleep(0.05)


@contextmanager
def crowd(count: int, kernel: Path, folder: Path, via: Sequence[str]) -> Iterator[list[int]]:
    """Start machines; yield their processes when they have settled, and end them."""
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            pids = list(pool.map(lambda one: start(kernel, folder, one, via), range(count)))
        yield pids
    finally:
        end(folder)


def idle(pids: Sequence[int], *, of_vcpus: bool) -> tuple[float, float]:
    """Return the wake-ups of machines and their processor time while nothing is asked of them."""
    time.sleep(SETTLE_SECONDS)
    before, used = switches(pids), cpu_seconds(pids, of_vcpus=of_vcpus)
    time.sleep(IDLE_SECONDS)
    woken = switches(pids) - before
    return float(woken), cpu_seconds(pids, of_vcpus=of_vcpus) - used


def measure_all(
    kernels: Sequence[Path], folder: Path, via: Sequence[str]
) -> dict[str, list[float]]:
    """Return the rows of machines with either guest."""
    halted, polling = kernels
    begun = time.monotonic()
    with crowd(MACHINES, halted, folder, via) as pids:
        rate = MACHINES / (time.monotonic() - begun)
        woken, spent = idle(pids, of_vcpus=True)
        found = {RATE.name: [rate], WAKE_UPS.name: [woken], CPU.name: [spent]}
        found |= memory_rows(pids)
    with crowd(POLLING, polling, folder, via) as pids:
        woken, spent = idle(pids, of_vcpus=False)
    polled = {POLLED_TABLE.key(WAKE_UPS): [woken], POLLED_TABLE.key(OWN_CPU): [spent]}
    return found | polled


def ready() -> Callable[[Turn], Round]:
    """Return what starts a crowd in each way."""

    def cold(kernels: Sequence[Path], folder: Path) -> dict[str, list[float]]:
        return measure_all(kernels, folder, ())

    def warm(kernels: Sequence[Path], folder: Path) -> dict[str, list[float]]:
        with server(folder) as path:
            return measure_all(kernels, folder, ("-via", path))

    def measure(turn: Turn) -> Round:
        found = {}
        for name, way in turn.order(((WARM, warm), (COLD, cold))):
            with TemporaryDirectory(prefix="density-") as folder:
                place = Path(folder)
                kernels = [
                    build(GUESTS / f"{guest}.S", place / f"{guest}.elf")
                    for guest in ("halt", "spin")
                ]
                found[name] = way(kernels, place)
        return found

    return measure


PART = Part(
    name="density",
    title="Many idle machines at once",
    what=f"{MACHINES} machines in the background, each a tiny guest that stands halted, 1 vCPU, "
    f"{GUEST_MIB} MiB, with a monitor; started cold, and by one `pyvirt serve`, {AT_ONCE} at a "
    "time. Memory is the median of all machines, without the guest's; wake-ups are the voluntary "
    f"context switches of all threads. Then {POLLING} machines whose guests never halt.",
    place=Place.HOST,
    rounds=2,
    ready=ready,
    tables=(
        Table((RATE, WAKE_UPS, CPU), subjects=(WARM, COLD)),
        POLLED_TABLE,
        TABLE,
    ),
    budgets=(
        Budget((WARM,), 3, rows=(row("Private_Dirty").name,), table=MEMORY),
        Budget((COLD,), 16, rows=(row("Pss").name,), table=MEMORY),
        Budget((WARM,), 0, rows=(WAKE_UPS.name,)),
        Budget((WARM,), 0, rows=(WAKE_UPS.name,), table=POLLED),
    ),
    plot=Plot("Memory of a machine, cold / by pyvirt serve", (WARM, COLD), MEMORY),
)
