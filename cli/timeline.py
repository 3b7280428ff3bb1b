"""`-timeline`: where the time of a run went, as a table or as a picture.

Times are CLOCK_MONOTONIC. A process knows to 10 ms when it was started; who wants it exact
puts that clock's nanoseconds into PYVIRT_EXEC_NS just before exec (the benchmarks do).
"""

from __future__ import annotations

import os
import time

STAGES = (
    ("exec", "exec"),
    ("imports", "modules imported"),
    ("vm-ready", "VM ready"),
    ("kernel-loaded", "kernel loaded"),
    ("restored", "restored"),
    ("first-run", "first KVM_RUN"),
    ("first-byte", "first console byte"),
    ("init", "init runs"),
    ("end", "end"),
)


def exec_ns() -> int:
    """Return when this process was started; at the earliest what its CPU time says."""
    given = os.environ.get("PYVIRT_EXEC_NS", "")
    if given.isascii() and given.isdigit():
        return int(given)
    return time.monotonic_ns() - time.clock_gettime_ns(time.CLOCK_PROCESS_CPUTIME_ID)


class Timeline:
    """The moments of one run, by stage; marks may come from any thread."""

    __slots__ = ("_at",)

    def __init__(self, start_ns: int = 0) -> None:
        """Begin with this process, or at a moment."""
        self._at: dict[str, int] = {"exec": start_ns or exec_ns()}

    def mark(self, stage: str, at: int | None = None) -> None:
        """Note that `stage` was reached now, or at `at` (0: never); the first time counts."""
        if at != 0:
            self._at.setdefault(stage, at or time.monotonic_ns())

    def rows(self) -> list[tuple[str, float, float]]:
        """Return (label, ms since exec, ms since the row before) of the stages reached."""
        start = before = self._at["exec"]
        rows = []
        for stage, label in sorted(STAGES, key=lambda s: self._at.get(s[0], 0)):
            at = self._at.get(stage)
            if at is not None:
                rows.append((label, (at - start) / 1e6, (at - before) / 1e6))
                before = at
        return rows

    def table(self) -> str:
        """Return the rows as text."""
        lines = [f"{'stage':<20} {'at ms':>9} {'took ms':>9}"]
        lines += [f"{label:<20} {at:>9.1f} {took:>9.1f}" for label, at, took in self.rows()]
        return "\n".join(lines) + "\n"

    def svg(self) -> str:
        """Return the rows as a picture: a bar per stage, from the moment before it to its own."""
        rows = self.rows()[1:]
        total = max((at for _, at, _ in rows), default=0.0) or 1.0
        left, width, step = 160, 560, 26
        parts = []
        for i, (label, at, took) in enumerate(rows):
            y = 34 + step * i
            x = left + width * (at - took) / total
            bar = max(width * took / total, 1.0)
            parts.append(
                f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{label}</text>'
                f'<rect x="{x:.1f}" y="{y}" width="{bar:.1f}" height="18" fill="#4878a8"/>'
                f'<text x="{left + width + 10}" y="{y + 13}">{took:.1f} ms</text>'
            )
        height = 34 + step * len(rows) + 10
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" '
            f'height="{height}" font-family="sans-serif" font-size="13">'
            f'<rect width="100%" height="100%" fill="white"/>'
            f'<text x="{left}" y="20">from exec to the end: {total:.1f} ms</text>'
            + "".join(parts)
            + "</svg>\n"
        )
