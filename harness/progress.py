"""Progress of what takes longer than a second: on the terminal of stderr, else in plain lines.

A bar when the total is known, the elapsed time alone otherwise; the line is wiped at the end. A
log gets a line at the start and one every 20 seconds.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

DELAY_S = 1.0
PERIOD_S = 0.2
LOG_PERIOD_S = 20.0
BAR_CELLS = 24
LOG_COLUMNS = 100


class Progress:
    """A context manager that shows how far its body is.

    A thread of its own draws, so a body that blocks still shows the time pass. `update` may
    be called from any thread.
    """

    def __init__(
        self, label: str, total: float | None = None, *, stream: TextIO | None = None
    ) -> None:
        self.label = label
        self._total = total
        self._done = 0.0
        self._stream = sys.stderr if stream is None else stream
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._start = 0.0

    def update(self, done: float, total: float | None = None) -> None:
        """Say that `done` of the total is behind us; `total` replaces an unknown or old one."""
        self._done = done
        if total is not None:
            self._total = total

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        if self._ended.wait(DELAY_S):
            return
        if not _is_terminal(self._stream):
            self._write(f"{self.label} ...\n")
            while not self._ended.wait(LOG_PERIOD_S):
                self._write(f"{self._line(LOG_COLUMNS)}\n")
            return
        while True:
            columns = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{self._line(columns - 1)}")
            if self._ended.wait(PERIOD_S):
                break
        self._write("\r\x1b[K")

    def _line(self, width: int) -> str:
        elapsed = time.monotonic() - self._start
        return render(self.label, self._done, self._total, elapsed, width)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # A terminal that went away, or a closed stream: the work matters more.
            self._ended.set()


def render(label: str, done: float, total: float | None, elapsed: float, width: int) -> str:
    """Return the line for `elapsed` seconds, at most `width` characters long.

    An estimated total may be passed: the bar then stands at 99% until the end.
    """
    clock = f"{int(elapsed) // 60}:{int(elapsed) % 60:02}"
    if not total:
        return f"{label} {clock}"[:width]
    part = min(max(done / total, 0.0), 0.99)
    bar = ("#" * int(part * BAR_CELLS)).ljust(BAR_CELLS, ".")
    tail = f" {int(part * 100):2}% {clock}"
    full = f"{label} [{bar}]{tail}"
    return full if len(full) <= width else f"{label[: max(width - len(tail), 0)]}{tail}"[:width]


def _is_terminal(stream: TextIO) -> bool:
    return os.environ.get("TERM") not in (None, "", "dumb") and stream.isatty()
