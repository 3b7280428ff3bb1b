"""What runs the suite: files shared among processes, outcomes written down, second runs counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import __main__ as suite
from ..claims import LONGEST
from ..outcomes import Outcomes

ROOT = Path(suite.__file__).parents[1]
MIXED = """
import pytest

@pytest.fixture
def broken():
    yield
    assert False

def test_passes(): pass
def test_fails(): assert False
def test_ends_badly(broken): pass
def test_lacks_something(): pytest.skip("a thing")
"""
DIES = """
import os

def test_passes(): pass
def test_dies(): os._exit(3)
def test_is_not_reached(): pass
"""


def run(folder: Path, *arguments: str) -> Outcomes:
    """Run the tests in `folder` with the plugins; return what was written down."""
    written = folder / "outcomes"
    plugins = ("-p", "tests.outcomes", "-p", "tests.claims", "-p", "no:cacheprovider")
    place = ("--rootdir", str(folder), "-c", "/dev/null", "--outcomes", str(written), str(folder))
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *place, *arguments]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=120
    )
    outcomes = Outcomes()
    outcomes.read(written)
    written.unlink(missing_ok=True)
    return outcomes


def names(tests: list[str]) -> set[str]:
    """Return the tests' names alone."""
    return {test.rpartition(":")[2] for test in tests}


def test_outcomes(tmp_path: Path) -> None:
    (tmp_path / "test_mixed.py").write_text(MIXED)
    outcomes = run(tmp_path)
    assert outcomes.passed == 1
    assert names(outcomes.failed) == {"test_fails", "test_ends_badly"}
    assert names(outcomes.skipped) == {"test_lacks_something"}


def test_what_a_dead_interpreter_left_has_failed(tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text(DIES)
    outcomes = run(tmp_path)
    assert outcomes.passed == 1
    assert names(outcomes.failed) == {"test_dies", "test_is_not_reached"}


@pytest.mark.long
def test_a_file_that_cannot_be_imported_has_failed(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    assert run(tmp_path).failed == ["test_broken.py"]


@pytest.mark.long
def test_a_file_belongs_to_who_comes_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(f"def test_{name}(): pass\n")
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / f"{tmp_path.name}-test_a.py").touch()  # as the other process leaves it
    first = run(tmp_path, "--claims", str(claims))
    assert (first.passed, names(first.failed)) == (1, {"test_a"})
    second = run(tmp_path, "--claims", str(claims))
    assert second.passed == 0


def test_the_longest_files_come_first(tmp_path: Path) -> None:
    assert all((ROOT / f"tests/guest/test_{name}.py").exists() for name in LONGEST)
    folder = tmp_path / "guest"
    folder.mkdir()
    for name in ("a", LONGEST[1], LONGEST[0]):
        (folder / f"test_{name}.py").write_text("def test_it(): pass\n")
    claims = tmp_path / "claims"
    claims.mkdir()
    order = [test.partition("::")[0] for test in run(tmp_path, "--claims", str(claims)).seconds]
    assert order == [f"guest/test_{name}.py" for name in (LONGEST[0], LONGEST[1], "a")]


def test_what_a_folder_of_tests_shares_ends_with_it(tmp_path: Path) -> None:
    """Also where its last file is another's."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "test_a.py").write_text("def test_a(): pass\n")
        (tmp_path / name / "test_b.py").write_text("def test_b(): pass\n")
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "one-test_b.py").touch()
    (claims / "two-test_a.py").touch()
    outcomes = run(tmp_path, "--claims", str(claims))
    assert outcomes.passed == 2
    assert {test.partition("::")[0] for test in outcomes.failed} == {
        "one/test_b.py",
        "two/test_a.py",
    }


def outcomes_of(tmp_path: Path, **events: list[str]) -> Outcomes:
    """Return outcomes with these events of each test."""
    path = tmp_path / "written"
    rows = [[test, event, 0.5] for test, all_of_it in events.items() for event in all_of_it]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcomes = Outcomes()
    outcomes.read(path)
    return outcomes


@pytest.mark.long
def test_labs_are_given_only_files_that_have_tests_for_them() -> None:
    files = [f"tests/kvm/test_layers{name}.py" for name in ("", "_refused")]
    assert suite.files_with_tests(files, ["-m", "not any_kvm"]) == files[:1]
    assert suite.files_with_tests(files, []) == files
    broken = [*files, "tests/kvm/test_that_is_not_there.py"]
    assert suite.files_with_tests(broken, []) == broken


def test_a_second_run_has_none_of_what_chose_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An expression of marks is an error where the file that has them is not among the tests."""
    monkeypatch.setattr(suite, "files_with_tests", lambda paths, _: paths)
    lab = suite.guest_groups(tmp_path, "a reason to need labs")[-1]
    first, second = (suite.command(group, tmp_path, []) for group in (lab, lab.again()))
    assert "--claims" in first
    assert {"--claims", "not any_kvm"}.isdisjoint(second)


def test_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = ["passed", "over"], ["failed", "over"]
    first = suite.Group("host", ["tests"])
    first.outcomes = outcomes_of(tmp_path, one=good, two=bad, three=bad, four=["skipped", "over"])
    second = first.again()
    assert second.paths == ["two", "three"]
    second.outcomes = outcomes_of(tmp_path, two=good, three=bad)
    assert suite.report([first], [second]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "failed: three",
        "1 test needed a second run: two",
        "2 passed, 1 failed, 1 skipped",
    ]
    second.outcomes = outcomes_of(tmp_path, two=good, three=good)
    assert suite.report([first], [second]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 tests needed a second run: two, three"


def test_a_run_without_an_end_is_a_failure(tmp_path: Path) -> None:
    group = suite.Group("host", ["tests"], sound=False)
    group.outcomes = outcomes_of(tmp_path, one=["passed", "over"])
    assert suite.report([group], []) == 1


def test_no_test_is_a_failure() -> None:
    assert suite.report([suite.Group("host", ["tests"])], []) == 1
    assert suite.report([suite.Group("host", ["tests"], may_be_empty=True)], []) == 0
