"""A guest's console: what came when, what a test waits for, and the kernel's reports in it.

A position ("mark") counts the bytes of the whole stream, NULs left out. The newest KEPT_MAX bytes
stay in memory, all of them go to a file if one is named.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from ...errors import PyvirtError
from ..judge.classifier import QUIET_S, Classifier
from ..text import Line, clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..judge.splat import Splat

KEPT_MAX = 4 << 20
_SLACK = 1 << 20  # that much more is kept for a while, so that not every chunk moves memory
_TIMES_MAX = 1 << 16
_TICK_S = 0.01  # lines that come within such a time have the same
_LOOK_BACK = 4096  # bytes of a line without an end that are looked at again when more comes
_SHOWN = 120  # characters of a line in a message


class ConsoleError(PyvirtError):
    """What was waited for did not come."""


class ConsoleTimeoutError(ConsoleError):
    """It did not come in time."""


class ConsoleEndedError(ConsoleError):
    """Nothing more will come."""


class History(NamedTuple):
    """What a console has shown: the bytes that are kept, the mark of the first, and when."""

    data: bytes
    base: int
    times: tuple[tuple[int, float], ...]  # from which mark on, what time it was


NOTHING = History(b"", 0, ())


class Console:
    """One console. One thread calls `feed`, `poll` and `close`; any thread the rest."""

    def __init__(
        self, path: Path | None = None, quiet: float = QUIET_S, before: History = NOTHING
    ) -> None:
        """Write all that comes to a new file `path`; OSError when it cannot be made.

        A report is over after `quiet` seconds without a byte. A guest that goes on from where
        another stood has that one's `before` on its console, reports included.
        """
        self.quiet = quiet
        self.splats: list[Splat] = []
        # Called with each report on the feeding thread, as soon as the report is complete.
        self.on_splat: Callable[[Splat], None] | None = None
        self.last_byte_at = time.monotonic()
        self._file = path.open("wb", buffering=0) if path else None
        self._classifier = Classifier(self._on_report, quiet, before.base)
        self._changed = threading.Condition()
        self._kept = bytearray()
        self._base = 0  # position of the first byte of that
        self._times: deque[tuple[int, float]] = deque()  # from which position on, what time it was
        self._is_closed = False
        self._begin(before)

    def _begin(self, before: History) -> None:
        self._write(before.data)
        self._base = before.base
        self._kept += before.data
        self._times.extend(before.times)
        # What came at one time is known of the first of its lines.
        places = [position - before.base for position, _ in before.times[1:]]
        for (_, at), start, end in zip(before.times, [0, *places], [*places, None], strict=False):
            self._classifier.feed(before.data[start:end], at)

    def history(self) -> History:
        """Return what it has shown so far."""
        with self._changed:
            return History(bytes(self._kept), self._base, tuple(self._times))

    def feed(self, data: bytes) -> None:
        """Take what has come from the guest: any bytes, in any pieces."""
        at = time.monotonic()
        self._write(data)
        if b"\0" in data:
            data = data.translate(None, b"\0")
        with self._changed:
            self.last_byte_at = at
            if not self._times or at - self._times[-1][1] >= _TICK_S:
                self._times.append((self._base + len(self._kept), at))
            self._kept += data
            self._trim()
            self._changed.notify_all()
        self._classifier.feed(data, at)

    def poll(self) -> float | None:
        """Tell of a report that had its time; return seconds until the next call may do so.

        To be called when nothing has come for that long; None: not before the next `feed`.
        """
        return self._classifier.poll(time.monotonic())

    def close(self) -> None:
        """Nothing more comes: tell of an open report, wake who waits."""
        self._classifier.finish()
        self._close_file()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _on_report(self, splat: Splat) -> None:
        self.splats.append(splat)
        if self.on_splat is not None:
            self.on_splat(splat)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is not None:
                self._file.write(data)
        except OSError:
            # A full disk costs the rest of the file, not the guest.
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _trim(self) -> None:
        start = self._base
        if len(self._kept) > KEPT_MAX + _SLACK:
            start += len(self._kept) - KEPT_MAX
        if len(self._times) > _TIMES_MAX:
            start = max(start, self._times[1][0])
        if start > self._base:
            del self._kept[: start - self._base]
            self._base = start
            while len(self._times) > 1 and self._times[1][0] <= start:
                self._times.popleft()

    def mark(self) -> int:
        """Return the position that the next byte will have."""
        with self._changed:
            return self._base + len(self._kept)

    def _from(self, mark: int) -> tuple[int, bytes]:
        """Return what is kept from a position on, and where that really begins."""
        start = min(max(mark, self._base), self._base + len(self._kept))
        return start, bytes(self._kept[start - self._base :])

    def since(self, mark: int = 0) -> list[Line]:
        """Return the lines from a position on, the last one perhaps unfinished."""
        with self._changed:
            position, data = self._from(mark)
            times = list(self._times)
        starts = [start for start, _ in times]
        lines = []
        for line in data.removesuffix(b"\n").split(b"\n") if data else ():
            at = times[bisect_right(starts, position) - 1][1]
            lines.append(Line(at, clean(line), position))
            position += len(line) + 1
        return lines

    def text(self, mark: int = 0) -> str:
        """Return what came from a position on, ready to be shown."""
        with self._changed:
            _, data = self._from(mark)
        return clean(data)

    def wait_for(
        self, pattern: str | re.Pattern[str], timeout: float, mark: int = 0
    ) -> re.Match[str]:
        """Return the first match in a line, finished or not, from a position on.

        ConsoleTimeoutError after `timeout` seconds, ConsoleEndedError when nothing more comes.
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen, last, is_last_look = -1, "", False
        while not is_last_look:
            is_last_look = self._wait_beyond(seen, deadline)
            with self._changed:
                mark, data = self._from(mark)
            seen = mark + len(data)
            for line in clean(data).split("\n"):
                found = wanted.search(line)
                if found is not None:
                    return found
                last = line or last
            mark = max(mark + data.rfind(b"\n") + 1, seen - _LOOK_BACK)
        shown = f"the last line is {last[-_SHOWN:]!r}" if last else "nothing came"
        if self._is_closed:
            raise ConsoleEndedError(f"console: ended without {wanted.pattern!r}; {shown}")
        raise ConsoleTimeoutError(f"console: no {wanted.pattern!r} in {timeout:g} s; {shown}")

    def _wait_beyond(self, seen: int, deadline: float) -> bool:
        """Wait for more than `seen` bytes; return whether this was the last time to."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or self._base + len(self._kept) > seen,
                deadline - time.monotonic(),
            )
            return self._is_closed or time.monotonic() >= deadline
