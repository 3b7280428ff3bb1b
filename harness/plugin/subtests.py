"""The `ktap` fixture: what tests in a guest say of themselves becomes subtests of pytest's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

from ...errors import PyvirtError
from .ktap import BAD, CRASHED, FAILED, SKIPPED, XFAILED, Lines, Parser, Point

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TIMEOUT_S = 60.0
KSFT_SKIP = 4  # tools/testing/selftests/kselftest.h
_STDOUT = 1
_TIMEOUT = "timeout"  # of the verdicts, the one of a guest that is alive
_TAIL = 20  # lines of a program's output in a message
_CHUNK = 1 << 16


class Console(Protocol):
    """What is wanted of a VM's console."""

    def text(self, mark: int = 0) -> str:
        """Return what came from a position on."""


class Guest(Protocol):
    """What is wanted of a VM."""

    @property
    def console(self) -> Console:
        """Return the console of the last boot."""

    def start(self) -> Any:
        """Boot, unless it runs."""

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> Any:
        """Run a command; the result has a `code`."""

    def wait_for_console(self, pattern: str, timeout: float | None = None) -> Any:
        """Wait until a line matches."""


class Ktap:
    """Turns test points into subtests; a failed one fails the test."""

    def __init__(self, subtests: pytest.Subtests, vm: Callable[[], Guest]) -> None:
        """`vm` returns the VM to use where none is named."""
        self._subtests = subtests
        self._vm = vm

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = TIMEOUT_S,
        vm: Guest | None = None,
        plain: bool = False,
    ) -> list[Point]:
        """Run a program in a guest and report its points; return them.

        A status other than 0 fails the test, but 4 skips it if nothing else happened. `plain`
        programs need not print points. When the VM ends, or `timeout` seconds have passed, what
        ran then is reported, and the error raised.
        """
        lines, parser, output = Lines(), Parser(), _Tail()

        def take(stream: int, data: bytes) -> None:
            output.feed(data)
            if stream == _STDOUT:
                for line in lines.feed(data):
                    parser.feed(line)

        def end() -> None:
            for line in lines.end():
                parser.feed(line)

        try:
            result = (vm or self._vm()).run(command, timeout=timeout, on_output=take)
        except PyvirtError as error:
            end()
            self._report_broken(parser, error, needs_points=not plain)
            raise
        end()
        if not parser.points and (plain or result.code == KSFT_SKIP):
            _judge_status(result.code, output.text())
            return []
        points = self.report(parser.finish())
        if result.code not in (0, KSFT_SKIP) and not any(point.outcome in BAD for point in points):
            pytest.fail(f"status {result.code}, though no point failed\n{output.text()}", False)
        return points

    def watch_console(
        self, until: str | None = None, *, timeout: float = TIMEOUT_S, vm: Guest | None = None
    ) -> list[Point]:
        """Boot a guest and report the points on its console, as of KUnit; return them.

        Those up to the end of the boot, or up to a line that matches `until`.
        """
        guest = vm or self._vm()
        parser = Parser()
        try:
            guest.start()
            if until is not None:
                guest.wait_for_console(until, timeout)
        except PyvirtError as error:
            _feed_text(parser, guest.console.text())
            self._report_broken(parser, error)
            raise
        _feed_text(parser, guest.console.text())
        return self.report(parser.finish())

    def feed_file(self, path: Path) -> list[Point]:
        """Report the points in a log; return them."""
        lines, parser = Lines(), Parser()
        with path.open("rb") as file:
            while data := file.read(_CHUNK):
                for line in lines.feed(data):
                    parser.feed(line)
        for line in lines.end():
            parser.feed(line)
        return self.report(parser.finish())

    def report(self, points: list[Point]) -> list[Point]:
        """Report each point as a subtest; return them."""
        for point in points:
            with self._subtests.test(msg=point.title):
                _judge(point)
        return points

    def _report_broken(
        self, parser: Parser, error: PyvirtError, *, needs_points: bool = True
    ) -> None:
        if parser.has_begun or needs_points:
            is_late = getattr(error, "verdict", "") == _TIMEOUT
            parser.crashed(str(error), FAILED if is_late else CRASHED)
            self.report(parser.finish())


class _Tail:
    """The last lines of a program's output, as they were."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > 2 * _CHUNK:
            del self._data[:-_CHUNK]

    def text(self) -> str:
        lines = Lines()
        return "\n".join((lines.feed(bytes(self._data)) + lines.end())[-_TAIL:])


def _feed_text(parser: Parser, text: str) -> None:
    for line in text.split("\n"):
        parser.feed(line)


def _judge_status(code: int, output: str) -> None:
    if code == KSFT_SKIP:
        pytest.skip(output.rpartition("\n")[2] or f"status {code}")
    if code != 0:
        pytest.fail(f"status {code}\n{output}", pytrace=False)


def _judge(point: Point) -> None:
    """End a subtest as the point did."""
    if point.outcome == SKIPPED:
        pytest.skip(point.reason)
    if point.outcome == XFAILED:
        pytest.xfail(point.reason)
    if point.outcome in BAD:
        reason = f": {point.reason}" if point.reason else ""
        text = "\n".join((f"{point.title}: {point.outcome}{reason}", *point.lines))
        pytest.fail(text, pytrace=False)


@pytest.fixture
def ktap(request: pytest.FixtureRequest, subtests: pytest.Subtests) -> Ktap:
    """Return what runs KTAP programs in the test's VM, or watches its console."""
    return Ktap(subtests, lambda: request.getfixturevalue("vm"))
