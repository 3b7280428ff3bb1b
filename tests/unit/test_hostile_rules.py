"""docs/hostile.md says of each promise what holds it: rules and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..hostile import report

ROOT = Path(__file__).resolve().parents[2]
MANUAL = (ROOT / "docs/hostile.md").read_text(encoding="utf-8")
RULES = report.rules()
# By chapter: the columns that name what holds a row, of which one does at least.
CHAPTERS = {"What devices are held to": (1, 2), "What others have been hit by": (1,)}


def rows(chapter: str) -> list[list[str]]:
    """Return the rows of a chapter's table, each by its cells."""
    text = MANUAL.split(f"\n## {chapter}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def is_there(name: str) -> bool:
    """Say whether a rule, or a test by its file and name, exists."""
    path, _, test = name.partition("::")
    if not test:
        return name in RULES
    text = (ROOT / path).read_text(encoding="utf-8")
    kind = r"static void" if path.endswith(".c") else r" *def"
    return re.search(rf"^{kind} {test}\(", text, re.MULTILINE) is not None


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_row_is_held_by_what_is_there(chapter: str) -> None:
    found = rows(chapter)
    assert len(found) > 10
    for row in found:
        names = [name for at in CHAPTERS[chapter] for name in re.findall(r"`([^`]+)`", row[at])]
        assert names, row[0]
        assert [name for name in names if not is_there(name)] == [], row[0]


def test_each_rule_has_its_row_and_its_number() -> None:
    numbered = re.findall(r"^\| (\d+) \| `([a-z0-9-]+)` \|", MANUAL, re.MULTILINE)
    assert [name for _, name in numbered] == RULES
    assert [int(number) for number, _ in numbered] == list(range(1, len(RULES) + 1))
