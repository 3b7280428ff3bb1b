"""KUnit in a real kernel, run and reported by pytest."""

from __future__ import annotations

import re
from typing import Protocol

import pytest
from pyvirt.harness.plugin.plugin import state_of
from pyvirt.harness.vm.place import Place
from pyvirt.vmm.paths import cache_folder

pytest_plugins = ["pytester"]
ARGS = ("-p", "no:cacheprovider", "-vv")
CACHE = cache_folder()  # the user's, before a test has a home of its own


class Lent:
    """A plugin that lets a session's VMs run where those of another do, which owns the place."""

    def __init__(self, place: Place) -> None:
        self.server = place.server
        self.is_alive = place.is_alive
        self.why = place.why

    def close(self) -> None:
        """Leave it to the other."""

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        state_of(config).place = self  # type: ignore[assignment]


class Run(Protocol):
    def __call__(self, *options: str) -> pytest.RunResult: ...


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, vm_place: Place) -> Run:
    """Return a function that runs pytest with options, in the lab that there is, if any."""
    monkeypatch.setenv("PYVIRT_CACHE", CACHE)

    def run(*options: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess(*ARGS, *options, plugins=[Lent(vm_place)])

    return run


def passed(result: pytest.RunResult) -> set[str]:
    """Return the names of the items that passed."""
    found = re.findall(r"(?m)^kunit::([\w-]+)\b.*? PASSED", result.stdout.str())
    return set(found)


def test_suites_in_one_boot(run: Run) -> None:
    result = run("--kunit", "[bc]*")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes["subtests"] > 5
    assert "failed" not in outcomes
    result.stdout.fnmatch_lines(["*SUBPASSED?bitfields?*"])
    result.stdout.fnmatch_lines(["*SUBPASSED?cmdline > cmdline_test_range?*"])


def test_a_boot_for_each_suite(run: Run) -> None:
    result = run("--kunit", "b*", "--kunit-isolated")
    assert passed(result) == {"bitfields"}
    result.stdout.fnmatch_lines(["*SUBPASSED?bitfields?*"])
