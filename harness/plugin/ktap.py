"""KTAP and TAP, as kernels and their tests print them: lines in, test points out.

Accepted: KTAP version 1, TAP 13 and 14, with or without version lines and plans; nested by spaces,
by tabs, or by "# " as kselftest's runner does; behind printk's time stamps; with other lines in
between. What a log lacks is told as a point of its own, so that a broken log never passes.

Sans I/O, and bounded whatever comes. Sources: Documentation/dev-tools/ktap.rst; the TAP 13 and
14 specifications; tools/testing/selftests/kselftest/runner.sh.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS_MAX = 100_000
DEPTH_MAX = 16  # lines nested deeper are taken for output
LINE_MAX = 4096  # bytes or characters of a line that count
LINES_MAX = 200  # kept for a point, the newest

PASSED, FAILED, SKIPPED, XFAILED = "passed", "failed", "skipped", "xfailed"
ERROR, CRASHED, NOT_RUN = "error", "crashed", "not-run"
BAD = frozenset((FAILED, ERROR, CRASHED, NOT_RUN))

_TAB_WIDTH = 4
_STAMP = re.compile(r"(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? ?")
_LINE = re.compile(
    r"(?P<indent>(?:[ \t]|# )*?)(?:"
    r"(?P<version>K?TAP version \d+)\s*"
    r"|1\.\.(?P<plan>\d{1,9})\s*(?:#\s*(?P<plan_note>.*))?"
    r"|(?P<bad>not )?ok(?:[ \t]+(?P<number>\d{1,9})(?=\s|$))?(?P<rest>[ \t].*)?"
    r"|Bail out!\s*(?P<bail>.*)"
    r"|# Subtest: (?P<subtest>.*)"
    r"|# (?P<program>selftests: .*)"
    r")"
)
_DIRECTIVE = re.compile(
    r"(?:^|\s)#\s*(?P<word>SKIP|TODO|XFAIL|TIMEOUT|ERROR)\b:?\s*(?P<reason>.*)", re.IGNORECASE
)
_DIAGNOSTIC = re.compile(r"(?:^|\s)# (?P<reason>.*)")
_OUTCOMES = {
    "SKIP": SKIPPED,
    "TODO": XFAILED,
    "XFAIL": XFAILED,
    "TIMEOUT": FAILED,
    "ERROR": ERROR,
}
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Point(NamedTuple):
    """One test point, or (number 0) what is wrong with a whole log.

    `path` names its parents, outermost first; a parent that the log has not named is "#N".
    `lines` are those since the point before, with its own.
    """

    number: int
    name: str
    outcome: str
    reason: str = ""
    lines: tuple[str, ...] = ()
    path: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Return path and name in one line."""
        own = self.name or (f"#{self.number}" if self.number else "the whole")
        return " > ".join((*self.path, own))


class _Level:
    """The points at one indentation, from a version line or the first of them on."""

    __slots__ = ("child", "count", "indent", "last", "plan", "problem")

    def __init__(self, indent: int) -> None:
        self.indent = indent
        self.plan: int | None = None
        self.count = 0
        self.last = 0  # the number of the latest point
        self.child = ""  # the name of the point that runs, if the log told it
        self.problem = ""  # what is wrong here, the first of it

    def is_fresh(self) -> bool:
        return self.count == 0 and self.plan is None

    def is_complete(self) -> bool:
        return self.plan is not None and self.count >= self.plan

    def running(self) -> str:
        return self.child or f"#{self.last + 1}"

    def blame(self, problem: str) -> None:
        self.problem = self.problem or problem


class Parser:
    """Reads one log, a line at a time."""

    def __init__(self, on_point: Callable[[Point], None] | None = None) -> None:
        """`on_point` is called with each point as soon as it is known."""
        self.points: list[Point] = []
        self._on_point = on_point
        self._levels: list[_Level] = []
        self._below = ""  # what is wrong with the levels that the next point is to sum up
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._left_out = 0
        self._is_over = False

    @property
    def has_begun(self) -> bool:
        """Tell whether anything of a log has come."""
        return bool(self._levels or self.points)

    def feed(self, line: str) -> None:
        """Take the next line, with its end or without."""
        if self._is_over:
            return
        line = printable(line[:LINE_MAX].rstrip("\r\n"))
        stamp = _STAMP.match(line)
        found = _LINE.fullmatch(line, stamp.end() if stamp else 0)
        if found is not None and found["version"] is not None and not self._levels:
            self._lines.clear()  # what came before is not this log's
        self._lines.append(line)
        if found is not None:
            self._take(found)

    def crashed(self, reason: str, outcome: str = CRASHED) -> None:
        """Tell that nothing more comes: the point that ran ends so, the rest will not run."""
        if self._is_over:
            return
        self._is_over = True
        where = ""
        while self._levels:
            level = self._levels[-1]
            if where:
                self._emit(level.last + 1, level.child, FAILED, f"did not get beyond {where}")
            elif not level.is_complete():
                self._emit(level.last + 1, level.child, outcome, reason)
            if where or not level.is_complete():
                self._not_run(level)
                where = level.running()
            self._levels.pop()
        if not where:
            self._emit(0, "", outcome, f"after the last point: {reason}")

    def finish(self) -> list[Point]:
        """Tell that the log has ended; return all points."""
        if not self._is_over:
            self._is_over = True
            self._end_log()
            if not self.points:
                self._emit(0, "", FAILED, "no test points")
        if self._left_out:
            problem = f"{self._left_out} points are left out: more than {POINTS_MAX}"
            self._left_out = 0
            self._publish(Point(0, "", FAILED, problem))
        return self.points

    def _take(self, found: re.Match[str]) -> None:
        level = self._level(_width(found["indent"]), anew=found["version"] is not None)
        if level is None:
            return
        if found["plan"] is not None:
            self._take_plan(level, int(found["plan"]), found["plan_note"] or "")
        elif found["bail"] is not None:
            level.blame(f"bailed out: {found['bail']}")
        elif found["subtest"] is not None:
            # KUnit names a test within its own level, TAP 14 ahead of it.
            above = self._levels[-2] if len(self._levels) > 1 else None
            is_own = above is not None and not above.child and level.is_fresh()
            (above if above is not None and is_own else level).child = found["subtest"].strip()
        elif found["program"] is not None:
            level.child = found["program"].strip()
        elif found["version"] is None:
            self._take_point(level, found)

    def _take_plan(self, level: _Level, plan: int, note: str) -> None:
        if level.plan is not None:
            level.blame(f"a second plan: 1..{plan} after 1..{level.plan}")
        level.plan = plan
        if plan == 0 and note.upper().startswith("SKIP") and len(self._levels) == 1:
            self._emit(0, "", SKIPPED, note)

    def _take_point(self, level: _Level, found: re.Match[str]) -> None:
        name, word, reason = _described(found["rest"] or "")
        outcome = _OUTCOMES.get(word) or (FAILED if found["bad"] else PASSED)
        if self._below:
            if outcome not in BAD:
                outcome, reason = FAILED, self._below
            reason = reason or self._below
            self._below = ""
        expected = level.last + 1
        number = int(found["number"]) if found["number"] else expected
        if number != expected:
            level.blame(f"point {number} where {expected} was to come")
        level.count += 1
        level.last = number
        level.child = ""
        self._emit(number, name, outcome, reason)

    def _level(self, indent: int, *, anew: bool) -> _Level | None:
        """Return the level of a line; None when it is nested too deep.

        Deeper levels have ended with it, and so has its own if the line begins one `anew`.
        """
        self._close_deeper_than(indent)
        here = self._levels[-1] if self._levels else None
        if anew and here is not None and here.indent == indent and not here.is_fresh():
            self._close_deeper_than(indent - 1)
            if not self._levels:
                self._end_log()
        if not self._levels or self._levels[-1].indent < indent:
            if len(self._levels) == DEPTH_MAX:
                return None
            self._levels.append(_Level(indent))
        return self._levels[-1]

    def _close_deeper_than(self, indent: int) -> None:
        while self._levels and self._levels[-1].indent > indent:
            level = self._levels.pop()
            level.blame(self._below)
            if level.plan is not None and level.count != level.plan:
                kind = "incomplete" if level.count < level.plan else "too many points"
                level.blame(f"{kind}: {level.count} of {level.plan}")
            self._below = level.problem

    def _end_log(self) -> None:
        """Close every level; what is wrong with the outermost has no point to sum it up."""
        self._close_deeper_than(-1)
        if self._below:
            self._emit(0, "", FAILED, self._below)
            self._below = ""

    def _not_run(self, level: _Level) -> None:
        first = level.last + 2
        if level.plan is not None and first <= level.plan:
            name = "" if first == level.plan else f"#{first} to #{level.plan}"
            self._emit(first, name, NOT_RUN, "not run")

    def _emit(self, number: int, name: str, outcome: str, reason: str) -> None:
        path = tuple(level.running() for level in self._levels[:-1])
        lines = tuple(self._lines)
        self._lines.clear()
        if len(self.points) < POINTS_MAX:
            self._publish(Point(number, name, outcome, reason, lines, path))
        else:
            self._left_out += 1

    def _publish(self, point: Point) -> None:
        self.points.append(point)
        if self._on_point is not None:
            self._on_point(point)


class Lines:
    """Cuts a stream of bytes into lines; what a line has beyond LINE_MAX bytes is dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes, without their ends."""
        *whole, rest = data.split(b"\n")
        if whole:
            whole[0] = self._rest + whole[0]
            self._rest = b""
        self._rest = (self._rest + rest[:LINE_MAX])[:LINE_MAX]
        return [_text(line) for line in whole]

    def end(self) -> list[str]:
        """Return the last line, if it has no end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []


def printable(text: str) -> str:
    """Return `text` without what could move a terminal's cursor or break a report."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _text(line: bytes) -> str:
    return line[:LINE_MAX].decode(errors="replace").removesuffix("\r")


def _width(indent: str) -> int:
    return len(indent) + (_TAB_WIDTH - 1) * indent.count("\t")


def _described(text: str) -> tuple[str, str, str]:
    """Return a point's name, its directive in capitals or "", and the reason given."""
    word = reason = ""
    found = _DIRECTIVE.search(text)
    if found is not None:
        word = found["word"].upper()
    else:
        found = _DIAGNOSTIC.search(text)
    if found is not None:
        reason = found["reason"].strip()
        text = text[: found.start()]
    name = text.strip().removeprefix("- ").strip()
    return re.sub(r"\\([\\#])", r"\1", name), word, reason
