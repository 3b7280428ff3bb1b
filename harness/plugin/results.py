"""The results of a session as JSON lines, one for each test and subtest (`--vm-results`)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..judge.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# What the plugin puts on a report, in plain values that pytest-xdist carries over.
FACTS = "vm_facts"


class Results:
    """A file of results, and the pytest plugin that fills it: each line as soon as it is known."""

    def __init__(self, path: Path) -> None:
        """Begin the file anew; ConfigError."""
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--vm-results {path}: {error.strerror}; name a file in a writable folder"
            ) from None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write what a report says, unless it says nothing new.

        With pytest-xdist the controller gets the reports of all workers.
        """
        if report.when != "call" and report.passed:
            return
        facts: dict[str, Any] = getattr(report, FACTS, {})
        verdict = facts.get("verdict")
        outcome: str = report.outcome
        if report.skipped and hasattr(report, "wasxfail"):
            outcome = "xfailed"
        elif report.passed and verdict not in (None, Verdict.PASSED):
            outcome = "failed"  # by its subtests
        row = {
            "nodeid": report.nodeid,
            "subtest": subtest_path(report),
            "when": report.when,
            "outcome": outcome,
            "verdict": verdict,
            "seconds": round(report.duration, 3),
            "kernel": facts.get("kernel"),
            "fingerprint": facts.get("fingerprint"),
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def subtest_path(report: pytest.TestReport) -> list[str]:
    """Return the names that lead to a subtest, none for the test itself."""
    context = getattr(report, "context", None)
    return [] if context is None or context.msg is None else [str(context.msg)]
