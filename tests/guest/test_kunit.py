"""KUnit in a real kernel, run and reported by pytest."""

from __future__ import annotations

import re

import pytest
from pyvirt.vmm.paths import cache_folder

pytest_plugins = ["pytester"]
ARGS = ("-p", "no:cacheprovider", "-vv")
CACHE = cache_folder()  # the user's, before a test has a home of its own


@pytest.fixture(autouse=True)
def kernels_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_CACHE", CACHE)


def passed(result: pytest.RunResult) -> set[str]:
    """Return the names of the items that passed."""
    found = re.findall(r"(?m)^kunit::([\w-]+)\b.*? PASSED", result.stdout.str())
    return set(found)


def test_suites_in_one_boot(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(*ARGS, "--kunit", "list*")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes["subtests"] > 30
    assert "failed" not in outcomes
    result.stdout.fnmatch_lines(["*SUBPASSED?list-kunit-test > list_test_list_init?*"])
    result.stdout.fnmatch_lines(["*SUBPASSED?list-kunit-test?*"])


def test_one_boot_for_each_suite(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(*ARGS, "--kunit", "[bc]*", "--kunit-isolated")
    assert passed(result) == {"bitfields", "cmdline"}
    result.stdout.fnmatch_lines(["*SUBPASSED?cmdline > cmdline_test_range?*"])


def test_no_such_suite(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest(*ARGS, "--kunit", "nothing-of-that-name")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*the whole: failed: no test points*"])
