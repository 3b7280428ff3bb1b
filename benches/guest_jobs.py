"""What the benchmarks share whose guest does the measuring, in jobs, one after the other.

Both monitors boot the same micro kernel with one vCPU and 512 MiB; the programs come from a Debian
root file system on /dev/vda.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import side_by_side

SECONDS = 100  # of a guest, at most
_MEMORY_MIB = "512"
_CMDLINE = "console=ttyS0 quiet panic=-1"


class Result(NamedTuple):
    """One job's end: its rate, how much that was in all, and the exits to user space."""

    rate: float
    amount: float
    exits: float


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
    return "\n".join([*lines, "reboot -f", ""])


def pyvirt_command(image: str, initrd: str, root: str) -> list[str]:
    """Return pyvirt's command line, to which a device is still to be added."""
    command = [str(side_by_side.PYVIRT), "run", "-accel", "kvm", "-m", _MEMORY_MIB]
    command += ["-kernel", image, "-initrd", initrd, "-append", _CMDLINE]
    return [*command, "-disk", f"{root},readonly=on,direct=off"]


def qemu_command(image: str, initrd: str, root: str) -> list[str]:
    """Return QEMU's, the same, with modern virtio."""
    command = [*side_by_side.QEMU_MICROVM, "-m", _MEMORY_MIB, "-smp", "1"]
    command += ["-kernel", image, "-initrd", initrd]
    command += ["-append", f"{_CMDLINE} {side_by_side.QEMU_APPEND}"]
    command += ["-global", "virtio-mmio.force-legacy=false"]
    command += ["-drive", f"if=none,id=root,file={root},format=raw,readonly=on"]
    return [*command, "-device", "virtio-blk-device,drive=root"]


def run(
    command: Sequence[str], count: int, counters: Callable[[], Sequence[int]]
) -> Iterator[tuple[str, list[int]]]:
    """Run a guest; yield for each of its `count` jobs its line, and what it added to `counters`."""
    lines: list[str] = []
    done = 0
    begin: Sequence[int] = ()
    added: list[int] = []
    for line in side_by_side.console(command, SECONDS):
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
        raise RuntimeError(f"{command[0]}: {done} jobs of {count}: {shown}")


def results(turns: Sequence[side_by_side.Figures]) -> dict[str, list[list[Result]]]:
    """Return by monitor, for each turn, its results."""
    return {name: [[Result(*job) for job in turn[name]] for turn in turns] for name in turns[0]}


def rates(turns: Sequence[Sequence[Result]], number: int) -> list[float]:
    """Return one job's rates."""
    return [turn[number].rate for turn in turns]


def exits(turns: Sequence[Sequence[Result]], number: int) -> str:
    """Return one job's exits for each that it counted, of all turns, in words."""
    done = [turn[number] for turn in turns]
    return f"{sum(r.exits for r in done) / max(1, sum(r.amount for r in done)):.3f}"


def headings(first: str) -> list[str]:
    """Return the first lines of a table of results; `first` heads the jobs."""
    return [
        f"| {first} | pyvirt | QEMU microvm | ratio | exits, pyvirt | exits, QEMU |",
        "|---|---|---|---|---|---|",
    ]
