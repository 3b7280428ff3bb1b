"""Test points as pytest's subtests, in a pytest of its own with a VM that is none."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]
Run = Callable[..., tuple[dict[str, int], str]]
CONFTEST = """
import pytest
from pyvirt.tests.unit.harness.fake_vm import EndedError, FakeVm

PANIC = EndedError("panicked", "Kernel panic - not syncing: Fatal exception")
LATE = EndedError("timeout", "./slow: not within 60 s in a guest that is alive")
PROGRAMS = {
    "good": ("TAP version 13\\n1..2\\nok 1 one\\nok 2 two # SKIP none here\\n", 0),
    "bad": ("1..3\\nok 1 one\\n# because of this\\nnot ok 2 two\\nok 3 three # XFAIL known\\n", 1),
    "liar": ("1..1\\nok 1 one\\nsomething broke\\n", 7),
    "mute": ("no points here\\n", 0),
    "skip": ("not on this machine\\n", 4),
    "crash": ("1..4\\nok 1 one\\n# in two", PANIC),
    "slow": ("1..4\\nok 1 one\\n", LATE),
    "early": ("", PANIC),
}

@pytest.fixture
def vm():
    return FakeVm(PROGRAMS)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Return a function that runs the lines of a test with the fixtures ktap and vm."""
    pytester.makeconftest(CONFTEST)

    def go(*lines: str, args: tuple[str, ...] = ()) -> tuple[dict[str, int], str]:
        body = "\n    ".join(lines)
        pytester.makepyfile(
            "import pytest\nfrom pathlib import Path\nfrom conftest import *\n\n"
            f"def test_it(ktap, vm):\n    {body}\n"
        )
        result = pytester.runpytest("-p", "no:cacheprovider", "-rA", *args)
        return result.parseoutcomes(), result.stdout.str()

    return go


def test_points_become_subtests(run: Run) -> None:
    outcomes, text = run("assert len(ktap.run('./good')) == 2", args=("-vv",))
    assert outcomes == {"subtests": 1, "skipped": 1, "passed": 1}
    assert re.search(r"SUBPASSED.*\[one\]", text)
    assert "none here" in text


def test_a_failed_point_shows_its_lines(run: Run) -> None:
    outcomes, text = run("ktap.run('./bad')", "raise AssertionError('the test goes on')")
    assert outcomes == {"failed": 2}
    assert "SUBFAILED[two]" in text
    assert "two: failed\n# because of this\nnot ok 2 two\n" in text
    assert "the test goes on" in text


def test_points_alone_fail_the_test(run: Run) -> None:
    outcomes, text = run("ktap.run('./bad')")
    assert outcomes["failed"] == 2
    assert "contains 1 failed subtest" in text


def test_xfail(run: Run) -> None:
    outcomes, _ = run("ktap.run('./bad')", args=("-vv",))
    assert outcomes["xfailed"] == 1


def test_a_status_that_no_point_explains(run: Run) -> None:
    outcomes, text = run("ktap.run('./liar')")
    assert outcomes == {"failed": 1}
    assert "status 7, though no point failed\n1..1\nok 1 one\nsomething broke" in text


def test_a_program_without_points(run: Run) -> None:
    outcomes, text = run("ktap.run('./mute')")
    assert outcomes == {"failed": 2}
    assert "the whole: failed: no test points\nno points here" in text


def test_a_plain_program_without_points(run: Run) -> None:
    assert run("assert ktap.run('./mute', plain=True) == []")[0] == {"passed": 1}


def test_a_plain_program_that_fails(run: Run) -> None:
    outcomes, text = run("vm.programs['mute'] = ('why\\n', 3)", "ktap.run('mute', plain=True)")
    assert outcomes == {"failed": 1}
    assert "status 3\nwhy" in text


def test_a_program_that_skips(run: Run) -> None:
    outcomes, text = run("ktap.run('./skip')")
    assert outcomes == {"skipped": 1}
    assert "not on this machine" in text


def test_a_crash_is_pinned_on_the_point_that_ran(run: Run) -> None:
    outcomes, text = run("ktap.run('./crash')")
    assert outcomes == {"failed": 3}
    assert "#2: crashed: Kernel panic - not syncing: Fatal exception\n# in two\n" in text
    assert "#3 to #4: not-run: not run" in text
    assert "EndedError: Kernel panic" in text


def test_a_timeout_is_no_crash(run: Run) -> None:
    outcomes, text = run("ktap.run('./slow')")
    assert outcomes == {"failed": 3}
    assert "#2: failed: ./slow: not within 60 s" in text


def test_a_crash_before_anything(run: Run) -> None:
    assert run("ktap.run('./early')")[0] == {"failed": 2}
    assert run("ktap.run('./early', plain=True)")[0] == {"failed": 1}


def test_console(run: Run) -> None:
    log = "noise\\n[    1.0] KTAP version 1\\n[    1.0] 1..1\\n[    1.0] ok 1 suite\\nready\\n"
    outcomes, text = run(f"vm = FakeVm(log='{log}')", "ktap.watch_console('ready', vm=vm)")
    assert outcomes == {"passed": 1}
    outcomes, text = run(f"vm = FakeVm(log='{log}')", "ktap.watch_console('never', vm=vm)")
    assert outcomes == {"failed": 2}
    assert "after the last point: console: no never" in text


def test_console_of_a_guest_that_dies(run: Run) -> None:
    log = "KTAP version 1\\n1..2\\n    # Subtest: a\\n    1..2\\n    ok 1 b\\nBUG: oops\\n"
    outcomes, text = run(f"ktap.watch_console(vm=FakeVm(log='{log}', end=PANIC))")
    assert outcomes == {"failed": 4}
    assert "a > #2: crashed: Kernel panic - not syncing: Fatal exception\nBUG: oops" in text


def test_file(run: Run) -> None:
    outcomes, text = run("Path('log').write_text('ok 1 a\\nnot ok 2 b')",
                         "ktap.feed_file(Path('log'))")  # fmt: skip
    assert outcomes == {"failed": 2}
    assert "SUBFAILED[b]" in text


def test_under_xdist(run: Run) -> None:
    outcomes, text = run("ktap.run('./bad')", args=("-n", "2"))
    assert outcomes["failed"] == 2
    assert "SUBFAILED[two]" in text
    assert "# because of this" in text
