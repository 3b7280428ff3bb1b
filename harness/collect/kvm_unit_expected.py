"""What is expected of each section of kvm-unit-tests, and how a run compares with that.

The file beside has a line for each section: SECTION OUTCOME [WHY], the outcome passed, failed or
skipped. A section that is expected to fail is an expected failure for pytest, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

FILE = Path(__file__).with_name("kvm_unit_tests.expected")
PASSED, FAILED, SKIPPED = OUTCOMES = ("passed", "failed", "skipped")


class Expected(NamedTuple):
    """An outcome, and why it is not `passed`."""

    outcome: str
    why: str = ""


def read(text: str) -> dict[str, Expected]:
    """Return what is expected, by section; lines that begin with # are comments. ValueError."""
    expected: dict[str, Expected] = {}
    for line in text.splitlines():
        words = line.split(None, 2)
        if not words or line.startswith("#"):
            continue
        if len(words) < 2 or words[1] not in OUTCOMES or words[0] in expected:
            raise ValueError(f"{FILE.name}: {line}: not a new section and {', '.join(OUTCOMES)}")
        expected[words[0]] = Expected(words[1], " ".join(words[2:]))
    return expected


class Comparison:
    """The plugin that compares: it hears of every item, also those of xdist's workers."""

    def __init__(self, suite: str, expected: dict[str, Expected]) -> None:
        """`suite` is the first part of the items' names."""
        self._prefix = f"{suite}::"
        self._expected = expected
        self._found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report of a section, or of one of its subtests."""
        if not report.nodeid.startswith(self._prefix):
            return
        name = report.nodeid.removeprefix(self._prefix)
        if report.failed or (report.skipped and hasattr(report, "wasxfail")):
            self._found[name] = FAILED
        elif report.skipped and not hasattr(report, "context"):  # not just a subtest
            self._found.setdefault(name, SKIPPED)
        elif report.when == "teardown":
            self._found.setdefault(name, PASSED)

    def differences(self) -> list[str]:
        """Return a line for each section that ended otherwise than expected."""
        return [
            f"{name}: {outcome}, expected {self._expected[name].outcome}"
            for name, outcome in self._found.items()
            if name in self._expected and self._expected[name].outcome != outcome
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how the run compares."""
        if not self._found:
            return
        known = sum(name in self._expected for name in self._found)
        differing = self.differences()
        terminalreporter.section("kvm-unit-tests and what is expected", "-")
        for line in differing:
            terminalreporter.line(line)
        terminalreporter.line(
            f"{known - len(differing)} sections as expected, {len(differing)} otherwise, "
            f"{len(self._found) - known} of which nothing is known"
        )
