"""Boots of one kernel and initramfs under each monitor, to their end."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence

from pyvirt.harness.guest import initramfs, kernel

from ..part import Budget, Part, Place, Round, Row, Table, Turn
from ..peers import PYVIRT, QEMU, present
from ..peers.peer import BZIMAGE, ELF, LAST, Guest, Peer, image
from ..peers.run import guest_lines

BOOT_SECONDS = 300
SCRIPT = f"echo up: $(cut -d' ' -f1 /proc/uptime)\n{LAST}"
PROCESS, UPTIME = Row("whole process", "s", less=True), Row("init's uptime", "s", less=True)
ROWS = (PROCESS, UPTIME)


def boot(peer: Peer, guest: Guest, kind: str) -> tuple[float, float]:
    """Return the seconds of a boot's whole process, and its init's uptime; RuntimeError."""
    start = time.monotonic()
    said = "\n".join(guest_lines(peer, guest, BOOT_SECONDS, kind))
    took = time.monotonic() - start
    found = re.search(r"up: ([0-9.]+)", said)
    if found is None:
        raise RuntimeError(f"{peer.name}, {kind}: no uptime in {said!r}")
    return took, float(found[1])


def ready() -> Callable[[Turn], Round]:
    """Return what boots each monitor with each format once."""
    micro = kernel.find("micro")
    guest = Guest(image(micro), str(initramfs.build(micro, script=SCRIPT)))

    def measure(turn: Turn) -> Round:
        found: dict[str, dict[str, list[float]]] = {}
        boots = [(peer, kind) for peer in present(turn) for kind in peer.formats]
        for peer, kind in turn.order(boots):
            try:
                times = boot(peer, guest, kind)
            except RuntimeError as error:
                if peer.name == PYVIRT:
                    raise
                turn.absent[f"{peer.name}, {kind}"] = str(error)[:200]
                continue
            one = found.setdefault(peer.name, {})
            one |= {f"{kind}: {row.name}": [time] for row, time in zip(ROWS, times, strict=True)}
        # The columns of the report are in this order.
        return {peer.name: found[peer.name] for peer in present(turn) if peer.name in found}

    return measure


def better(rounds: Sequence[Round]) -> list[Round]:
    """Return rounds that have each monitor's better format as well, by the whole process."""
    best: dict[str, str] = {}
    for name in dict.fromkeys(name for one in rounds for name in one):
        middles = {}
        for kind in (BZIMAGE, ELF):
            key = f"{kind}: {PROCESS.name}"
            times = [time for one in rounds for time in one.get(name, {}).get(key, [])]
            if times:
                middles[kind] = statistics.median(times)
        best[name] = min(middles, key=lambda kind: middles[kind])

    def both(name: str, found: Round) -> dict[str, list[float]]:
        mine = found[name]
        keys = {row.name: f"{best[name]}: {row.name}" for row in ROWS}
        return {**mine, **{row: mine[key] for row, key in keys.items() if key in mine}}

    return [{name: both(name, one) for name in one} for one in rounds]


PART = Part(
    name="boot",
    title="A boot to its end",
    what="The micro kernel and an initramfs, whose script says its uptime and ends the "
    "machine; 1 vCPU, 256 MiB. Whole process: from fork to the end of the monitor's "
    "process. First each monitor with the better of ELF and bzImage, then each format "
    "by itself.",
    place=Place.GUESTS,
    rounds=11,
    at_once=None,
    warm_up=1,
    seconds=600,
    ready=ready,
    derive=better,
    tables=(Table(ROWS), Table(ROWS, BZIMAGE), Table(ROWS, ELF)),
    budgets=(Budget((PYVIRT, QEMU), 0.8, rows=(PROCESS.name,)),),
)
