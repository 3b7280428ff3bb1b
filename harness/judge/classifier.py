"""Finds the kernel's reports about itself in its log, as that comes; see splat.py for the kinds.

A report ends with a line that ends its kind, QUIET_S of silence, or LINES_MAX lines. It is kept
for QUIET_S more, or as many lines: a panic that comes then belongs to it, and the two
are one report, a panic's.

What programs print to the same console is told apart by printk's time stamps: where one of the
first lines has one, lines without are not the kernel's. All else is decided line by line, so that
it does not matter in which pieces the log comes.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from ..text import clean
from .splat import DEATH, HEADS, Splat, fingerprint, title
from .verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S = 0.5
QUIET_EMULATED_S = 1.5  # of an emulated machine, which on a busy host stands still now and then
LINES_MAX = 200
LINE_MAX = 2048  # bytes, of which those at the end count; printk's own limit is about 1000
# That many reports; then as many panics more, and then no more is looked for: a flood of reports
# is to cost no more than one of other lines.
SPLATS_MAX = 50
_FIRST_LINES = 16  # that tell whether the kernel stamps its lines

_RANK = {Verdict.WARNED: 0, Verdict.HUNG: 1, Verdict.OOPSED: 2, Verdict.PANICKED: 3}
_STAMP = r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? "
_LEVEL = r"(?:<\d+>)?"
# Parts of the kernel that put their names before what they report.
_OWNER = r"(?:rcu: |watchdog: |NMI watchdog: |traps: |workqueue: |kmemleak: )?"
_FIRST_LETTER = r"(?=[BIKNOPUVWa-dgiko-w])"  # of all of these, for speed
_STAMPED = re.compile(_STAMP.encode())
_BEFORE_MESSAGE = re.compile(rf"{_LEVEL}(?:{_STAMP})?{_OWNER}")
_BOOT = re.compile("Linux version ")  # the next kernel, or the same one after a reset
_KINDS = tuple((re.compile(head.start), re.compile(head.end), head) for head in HEADS)


@functools.cache
def _finder(*, stamped: bool, panics: bool) -> re.Pattern[bytes]:
    """Return what finds the next first line of a report (of panics only) in a log."""
    before = _STAMP if stamped else rf"\n{_LEVEL}(?:{_STAMP})?"
    kinds = (head for head in HEADS if head.kind == Verdict.PANICKED or not panics)
    starts = "|".join(head.start for head in kinds)
    return re.compile(f"{before}{_FIRST_LETTER}{_OWNER}(?:{starts})".encode())


def _message(text: str) -> str:
    found = _BEFORE_MESSAGE.match(text)
    return text[found.end() :] if found else text


class _Report:
    """A report that is being read."""

    def __init__(self, mark: int) -> None:
        self.kind = Verdict.WARNED
        self.length = 0  # of what belongs to it, once that is known
        self.last_at = 0.0  # when the last line of that came
        self._mark = mark
        self._lines: list[str] = []
        self._message = self._title_before = ""
        self._end = re.compile("")
        self._begin = 0

    def become(self, kind: Verdict, end: re.Pattern[str], message: str) -> None:
        """Be a report that begins with `message`, and with what is here already."""
        self._title_before = self._title() if self._message else ""
        self.kind, self._end, self._message = kind, end, message
        self._begin, self.length = len(self._lines), 0

    def add(self, text: str, at: float) -> bool:
        """Add a line; return whether nothing more can belong to it."""
        self._lines.append(text)
        if self.length:
            return len(self._lines) >= self.length + LINES_MAX
        self.last_at = at
        if self._end.match(_message(text)) or len(self._lines) >= self._begin + LINES_MAX:
            self.length = len(self._lines)
        return False

    def splat(self) -> Splat:
        """Return the report as it stands."""
        lines = self._own()
        place = fingerprint(self.kind, title(self._message), lines)
        return Splat(self.kind, self._title(), tuple(lines), self._mark, place)

    def _own(self) -> list[str]:
        return self._lines[: self.length or None]

    def _title(self) -> str:
        if self.kind != Verdict.PANICKED:
            return title(self._message, self._own())
        after = f" ({self._title_before})" if self._title_before else ""
        return title(self._message) + after


class Classifier:
    """Takes the log as it comes and tells of each report when it is complete; one thread."""

    def __init__(
        self, tell: Callable[[Splat], None], quiet: float = QUIET_S, mark: int = 0
    ) -> None:
        """Have `tell` called with each report, which `quiet` seconds of silence end.

        The log begins at `mark`.
        """
        self._tell = tell
        self._quiet = quiet
        self._told = 0
        self._finder: re.Pattern[bytes] | None = _finder(stamped=False, panics=False)
        self._is_stamped = False
        self._first_lines = _FIRST_LINES
        self._report: _Report | None = None
        self._at = 0.0
        self._rest = b"\n"  # of the last line, with the end of the one before
        self._offset = mark - 1  # of that in the stream

    def feed(self, data: bytes, at: float) -> None:
        """Take more of the log, which came at the time `at` (seconds); without NULs."""
        self.poll(at)
        self._at = at
        buffer = self._rest + data
        end = buffer.rfind(b"\n")
        if end > 0:
            self._scan(buffer, end)
        kept = max(end, len(buffer) - LINE_MAX, 0)
        self._rest = buffer[kept:]
        self._offset += kept

    def poll(self, at: float) -> float | None:
        """Close the report that has had its time; return how long the open one still has."""
        if self._report is None:
            return None
        left = self._report.last_at + self._quiet - at
        if left > 0:
            return left
        self._close()
        return None

    def finish(self) -> None:
        """Take what there is as all there will be."""
        self.feed(b"\n", self._at)
        self._close()

    def _scan(self, buffer: bytes, end: int) -> None:
        """Look at whole lines: `buffer` up to the line feed at `end`, each with that before it."""
        at = 0
        while at < end and self._finder is not None:
            limit = end
            if self._report is not None or self._first_lines:
                limit = buffer.index(b"\n", at + 1)
                at = max(at, limit - LINE_MAX)
                self._look_for_stamp(buffer, at, limit)
            found = self._finder.search(buffer, at, limit)
            if found is not None:
                limit = buffer.index(b"\n", found.end())
                if limit - found.start() > LINE_MAX:
                    limit = found.end()  # it ends in something else
                else:
                    start = found.start() + buffer.startswith(b"\n", found.start())
                    self._take_head(clean(buffer[start:limit]), self._offset + start)
            elif self._report is not None:
                self._take_line(buffer[at:limit].removeprefix(b"\n"))
            at = limit

    def _look_for_stamp(self, buffer: bytes, at: int, limit: int) -> None:
        if self._first_lines and not self._is_stamped:
            self._first_lines -= 1
            if _STAMPED.search(buffer, at, limit):
                self._is_stamped = True
                self._first_lines = 0
                self._set_finder()

    def _set_finder(self) -> None:
        self._finder = (
            None
            if self._told >= 2 * SPLATS_MAX
            else _finder(stamped=self._is_stamped, panics=self._told >= SPLATS_MAX)
        )

    def _take_head(self, text: str, mark: int) -> None:
        message = _message(text)
        report = self._report
        _, end, head = next(kind for kind in _KINDS if kind[0].match(message))
        if report is not None:
            above = _RANK[head.kind] - _RANK[report.kind]
            is_open, is_panic = not report.length, head.kind == Verdict.PANICKED
            if above > 0 and (is_open or is_panic):
                report.become(head.kind, end, message)
            elif not (is_open and (above < 0 or is_panic or head is DEATH)):
                self._close()
                report = None
        if report is None:
            report = self._report = _Report(mark)
            report.become(head.kind, end, message)
        report.add(text, self._at)

    def _take_line(self, line: bytes) -> None:
        """Add a line that begins no report to the one that is open, if it is the kernel's."""
        found = _STAMPED.search(line)
        if self._is_stamped and found is None:
            return
        text = clean(line[found.start() :] if found else line)
        assert self._report is not None
        if _BOOT.match(_message(text)) or self._report.add(text, self._at):
            self._close()

    def _close(self) -> None:
        if self._report is not None:
            splat = self._report.splat()
            self._report = None
            self._told += 1
            self._set_finder()
            self._tell(splat)
