"""A pytest plugin that writes down what becomes of each test, and reads it back.

The file has a line of JSON for each event, on disk before the next test starts: it is complete up
to the moment in which a lab hangs or an interpreter dies: `pytest -p tests.outcomes --outcomes F`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="write what becomes of each test to this file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("outcomes")
    if path and not hasattr(config, "workerinput"):  # a worker of xdist reports to its controller
        config.pluginmanager.register(Recorder(path))


class Recorder:
    """Writes a line for each test that is found, and for each of its phases that says something."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _write(self, tests: Iterable[str], event: str, seconds: float = 0.0) -> None:
        lines = [json.dumps([test, event, round(seconds, 3)]) + "\n" for test in tests]
        os.write(self._fd, "".join(lines).encode())
        os.fsync(self._fd)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write((item.nodeid for item in session.items), "found")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write([report.nodeid], "failed")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A set-up that passed says so, and no more; a tear-down, that the test is over.
        passed = {"setup": "ready", "call": "passed", "teardown": "over"}[report.when]
        event = passed if report.passed else report.outcome
        self._write([report.nodeid], event, report.duration)

    def pytest_unconfigure(self) -> None:
        os.close(self._fd)


class Outcomes:
    """What became of the tests of several processes that shared them."""

    def __init__(self) -> None:
        self._events: dict[str, set[str]] = {}
        self.seconds: dict[str, float] = {}

    def read(self, path: Path) -> None:
        """Add what a process wrote down; no file is one that came to no test."""
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            test, event, seconds = json.loads(line)
            self._events.setdefault(test, set()).add(event)
            self.seconds[test] = self.seconds.get(test, 0.0) + seconds

    def __bool__(self) -> bool:
        """Say whether there was any test."""
        return bool(self._events)

    def longest(self, most: int) -> list[tuple[str, float]]:
        """Return the files that took longest, so many, with their seconds."""
        files: dict[str, float] = {}
        for test, seconds in self.seconds.items():
            file = test.partition("::")[0]
            files[file] = files.get(file, 0.0) + seconds
        return sorted(files.items(), key=lambda pair: -pair[1])[:most]

    @property
    def failed(self) -> list[str]:
        """Those that failed, or that nobody brought to an end."""
        return [t for t, e in self._events.items() if "failed" in e or "over" not in e]

    @property
    def skipped(self) -> list[str]:
        """Those that lacked something."""
        return [t for t, e in self._events.items() if "skipped" in e and "failed" not in e]

    @property
    def passed(self) -> int:
        """How many passed."""
        return len(self._events) - len(self.failed) - len(self.skipped)
