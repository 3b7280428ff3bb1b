"""What the parts share whose guest does the measuring, in jobs, one after the other.

Each monitor boots the same micro kernel with one vCPU and 512 MiB; the programs come from a Debian
root file system on /dev/vda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pyvirt.harness import cache
from pyvirt.harness.guest import tool

from ..part import Row, Table
from ..peers.peer import LAST, Disk

SECONDS = 100  # of a guest, at most
MEMORY_MIB = 512
COMPILER = ("gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror")
COMPILER_SECONDS = 60
EXITS = "Exits to user space for each request"
# What KVM counts of all VMs: MMIO, ports and signals that went to user space; and io_exits has
# the ports that are in the kernel as well, which devices at work do not use.
_EXITS = [Path("/sys/kernel/debug/kvm", f"{kind}_exits") for kind in ("mmio", "io", "signal")]


class Result(NamedTuple):
    """One job's end: its rate, how much that was in all, and the exits to user space."""

    rate: float
    amount: float
    exits: float


def root_disk(path: str) -> Disk:
    """Return the disk that the programs are on."""
    return Disk(path, readonly=True, direct=False)


def program(source: Path) -> Path:
    """Return the program of one C file here, which needs no C library, compiled on first use."""
    slug = cache.digest(" ".join(COMPILER), source.read_bytes())

    def build(place: Path) -> None:
        tool.run([*COMPILER, "-o", str(place), str(source)], timeout=COMPILER_SECONDS)

    return cache.entry(f"{source.stem.replace('_', '-')}-{slug}", build)


def script(first: Sequence[str], jobs: Sequence[str], result: str) -> str:
    """Return what the guest runs; each job leaves a line in its file `result`."""
    lines = [
        "mount -t ext4 -o ro /dev/vda /mnt",
        "for d in proc sys dev; do mount -o bind /$d /mnt/$d; done",
        "mount -t tmpfs tmpfs /mnt/tmp",
        *first,
    ]
    for number, job in enumerate(jobs):
        lines += [
            f"echo begin {number}",
            f"{job} || exit 1",
            f"echo end {number}",
            f'echo "result $(cat {result})"',
        ]
    return "\n".join([*lines, LAST])


def user_exits() -> int:
    """Return how often KVM has returned to user space so far."""
    return sum(int(path.read_text(encoding="ascii")) for path in _EXITS)


def run(
    console: Iterable[str], count: int, counters: Callable[[], Sequence[int]]
) -> Iterator[tuple[str, list[int]]]:
    """Yield for each of a guest's `count` jobs its line, and what it added to `counters`."""
    lines: list[str] = []
    done = 0
    begin: Sequence[int] = ()
    added: list[int] = []
    for line in console:
        lines.append(line)
        word, _, rest = line.partition(" ")
        if word == "begin":
            begin = counters()
        elif word == "end":
            added = [after - before for after, before in zip(counters(), begin, strict=True)]
        elif word == "result":
            done += 1
            yield rest, added
    if done < count:
        shown = "\n".join(lines)
        raise RuntimeError(f"{done} jobs of {count}: {shown}")


def exits_table(rows: Iterable[Row], name: str = EXITS) -> Table:
    """Return the table of the exits beside one of rates."""
    return Table(tuple(Row(row.name, "", 3, less=True) for row in rows), name, compare=())


def found(
    rows: Sequence[Row], results: Iterable[Result], rates: Table, exits: Table
) -> dict[str, list[float]]:
    """Return a round's rows of one subject."""
    one: dict[str, list[float]] = {}
    for row, result in zip(rows, results, strict=True):
        one[rates.key(row)] = [result.rate]
        one[exits.key(row)] = [result.exits / max(1, result.amount)]
    return one
