"""The list of mutants fits the code: `python -m tests.mutants` finds a place for each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ..mutants.listed import KINDS, Mutant, mutants, mutated, source
from ..tree import ROOT

LISTED = mutants()


def path_of(test: str) -> Path:
    name = test.partition(" ")[0]
    return ROOT / "native/tests" / name if name.endswith(".c") else ROOT / name


def test_each_is_found_once_in_the_code() -> None:
    wrong = []
    for mutant in LISTED:
        try:
            assert mutated(mutant, source(mutant)) != source(mutant)
        except ValueError as error:
            wrong.append(str(error))
    assert wrong == []


def test_none_is_listed_twice() -> None:
    assert [m for m, count in Counter(map(str, LISTED)).items() if count > 1] == []


def test_each_has_tests_that_are_there() -> None:
    names = {test for mutant in LISTED for test in mutant.tests}
    assert all(mutant.tests for mutant in LISTED)
    assert [name for name in names if not path_of(name).exists()] == []


def test_there_are_enough_of_every_kind() -> None:
    assert {mutant.kind for mutant in LISTED} == set(KINDS)
    assert len(LISTED) >= 100


C = "static int a(void)\n{\n\treturn b(1) + 1;\n}\n\nint b(int x)\n{\n\treturn x + 1;\n}\n"
PYTHON = "class A:\n    def f(self):\n        return 1\n\n\ndef f():\n    return 1\n"


@pytest.mark.parametrize(
    ("file", "function", "there", "expected"),
    [
        ("a.c", "b", "x + 1", C.replace("x + 1", "")),
        ("a.c", "a", " + 1", C.replace(" + 1", "", 1)),
        ("a.py", "A.f", "return 1", PYTHON.replace("return 1", "", 1)),
        (
            "a.py",
            "f",
            "\n    return 1",
            "class A:\n    def f(self):\n        return 1\n\n\ndef f():\n",
        ),
    ],
)
def test_only_the_function_is_changed(file: str, function: str, there: str, expected: str) -> None:
    mutant = Mutant(file, function, "check", there, "", ())
    assert mutated(mutant, C if file == "a.c" else PYTHON) == expected


@pytest.mark.parametrize(
    ("function", "there", "told"),
    [
        ("b", "y", "found 0 times"),
        ("b", "x", "found 2 times"),
        ("c", "x", "there are 0 functions c"),
    ],
)
def test_what_does_not_fit_any_more_is_told(function: str, there: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mutated(Mutant("a.c", function, "check", there, "", ()), C)
