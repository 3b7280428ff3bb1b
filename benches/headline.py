"""The README's table: a few figures of a few parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from . import figures
from .peers import PYVIRT, QEMU
from .peers.peer import ELF
from .results import Results


class Headline(NamedTuple):
    """A line: what it says, whose row it is, whose figures, and how they are written."""

    text: str
    part: str
    key: str
    ours: str
    theirs: str
    format: str


FIRST_RUN = "first KVM_RUN"
TRIP = "boot, `uname -r`, end"
FORK = "to `uname -r`, end"
READ = "4 KiB randread, depth 1, 1 job"
EXITS = f"Exits to user space for each request: {READ}"
OUT, IN = "TCP out, 1 stream", "TCP in, 1 stream"
COUNTED = (f"{PYVIRT}, {ELF}", f"{QEMU}, {ELF}")
TIME, TO_USER = "processor time", "exits to user space"
BOTH, FORKS = (PYVIRT, QEMU), ("fork", "fresh VM")
LINES = (
    Headline("a boot to the end, whole process", "boot", "whole process", *BOTH, "{:.2f} s"),
    Headline("a boot, instructions (one a nanosecond)", "account", TIME, *COUNTED, "{:.3f} s"),
    Headline("exits to user space in a boot", "account", TO_USER, *COUNTED, "{:.0f}"),
    Headline(f"a test's fresh VM: {TRIP}", "fresh_vm", TRIP, *BOTH, "{:.2f} s"),
    Headline("a test in a fork, beside one that boots", "fork_vm", FORK, *FORKS, "{:.2f} s"),
    Headline("4 KiB random reads, depth 1", "block", READ, *BOTH, "{:.0f} a second"),
    Headline("exits to user space for each of them", "block", EXITS, *BOTH, "{:.3f}"),
    Headline("TCP out of the guest, one stream", "net", OUT, *BOTH, "{:.0f} Mbit/s"),
    Headline("TCP into the guest, one stream", "net", IN, *BOTH, "{:.0f} Mbit/s"),
    Headline(
        "exec to the guest's first instruction", "startup", FIRST_RUN, PYVIRT, "", "{:.1f} ms"
    ),
    Headline("a fork with 8 GiB, to that", "restore", "8192 MiB", "fork", "", "{:.1f} ms"),
)


def table(all_results: Mapping[str, Results]) -> str:
    """Return the lines of the table; a line that was not measured is left out."""
    lines = ["| | where | pyvirt | beside | ratio |", "|---|---|---|---|---|"]
    for line in LINES:
        found = all_results.get(line.part)
        ours = found and figures.spread(figures.values(found.rounds, line.ours, line.key))
        if not found or not ours:
            continue
        theirs = figures.spread(figures.values(found.rounds, line.theirs, line.key))
        both = figures.compare(found.rounds, line.ours, line.theirs, line.key)
        cells = [
            line.text,
            "lab" if found.in_lab else "host",
            line.format.format(ours.median),
            line.format.format(theirs.median) if theirs else "",
            f"{both.ratio.median:.2f}" if both else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
