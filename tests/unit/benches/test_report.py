"""The page and the README's table are what the results say."""

from __future__ import annotations

import pytest
from pyvirt.benches import parts, report, results
from pyvirt.benches.part import Budget, Part, Table

from . import samples
from .samples import part, rounds


def text(made: Part, found: results.Results | None) -> str:
    return "\n".join(report.section(made, found))


def test_the_page_is_made_of_the_results() -> None:
    """`make bench-report` makes it anew."""
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.stored())


def test_the_readme_is_made_of_the_results() -> None:
    kept = report.README.read_text(encoding="utf-8")
    assert kept == report.readme(kept, report.stored())


def test_every_result_is_of_a_part_and_every_plot_is_drawn() -> None:
    assert {path.stem for path in results.FOLDER.glob("*.json")} <= set(parts.NAMES)
    drawn = {name for name in report.stored() if parts.load(name).plot}
    assert {path.stem for path in results.FOLDER.glob("*.svg")} == drawn


def test_a_note_is_of_a_part() -> None:
    notes = {path.stem for path in report.NOTES.glob("*.md")}
    assert notes <= {*parts.NAMES, "introduction"}


@pytest.mark.parametrize("name", parts.NAMES)
def test_a_part_is_well_formed(name: str) -> None:
    made = parts.load(name)
    assert made.name == name
    assert made.rounds >= 1
    assert made.what
    tables = {table.name: table for table in made.tables}
    assert len(tables) == len(made.tables)
    for budget in made.budgets:
        known = {row.name for row in tables[budget.table].rows}
        assert set(budget.rows) <= known
        assert len(budget.of) in {1, 2}
    if made.plot:
        assert made.plot.table in tables


def test_a_part_that_has_not_been_run() -> None:
    assert "Not measured yet: `make bench PART=made`." in text(part(), None)


def test_a_table_has_medians_spread_ratio_and_p() -> None:
    said = text(part(), samples.results(rounds((1, 2), (1.5, 2), (1, 4))))
    assert "On the host, 3 rounds, 2026-01-02, commit abc1234." in said
    assert "| | pyvirt | other | pyvirt / other |" in said
    row = "| time, s | 1.00 (1.00 to 1.50) | 2.00 (2.00 to 4.00) | 0.50 (0.25 to 0.75), p 0.250 |"
    assert row in said


def test_the_lab_is_named() -> None:
    said = text(part(), samples.results(rounds((1, 2)), samples.MACHINE))
    assert "In the nested lab, 1 round," in said


def test_a_busy_host_is_told() -> None:
    said = text(part(), samples.results(rounds((1, 2)), load=2.5))
    assert "commit abc1234, on a host with a load of 2.5 before." in said


def test_one_value_is_just_that() -> None:
    assert "| time, s | 1.00 | 2.00 | 0.50, p 1.000 |" in text(
        part(), samples.results(rounds((1, 2)))
    )


def test_found_rows_are_all_shown_the_most_first() -> None:
    found = samples.results([{"a": {"Ports: x": [1]}, "b": {"Ports: y": [5], "Ports: x": [2]}}])
    said = text(part(), found)
    assert "### Ports\n\n| | a | b |\n|---|---|---|\n| y |  | 5 |\n| x | 1 | 2 |" in said


def test_what_is_little_is_left_out() -> None:
    table = Table(name="Ports", least=5)
    found = samples.results([{"a": {"Ports: x": [4], "Ports: y": [5]}}])
    assert [row.name for row in report.rows(table, found)] == ["y"]


def test_who_is_absent_is_a_line() -> None:
    found = samples.results(rounds((1, 2)))
    found.absent["Firecracker"] = "it wants XSAVE"
    assert "\nFirecracker is not there: it wants XSAVE.\n" in text(part(), found)


@pytest.mark.parametrize(
    ("budget", "verdict"),
    [
        (Budget(("pyvirt",), 1, rows=("time",)), "- budget: time, pyvirt at most 1: met"),
        (
            Budget(("pyvirt",), 0.9, rows=("time",)),
            "- budget: time, pyvirt at most 0.9: **missed**: 1.00",
        ),
        (
            Budget(("pyvirt", "other"), 0.6, least=True, word="goal"),
            "- goal: every row, pyvirt / other at least 0.6: **missed**: 0.50",
        ),
        (Budget(("nobody",), 1), "- budget: every row, nobody at most 1: not measured"),
    ],
)
def test_a_budget_is_judged(budget: Budget, verdict: str) -> None:
    made = part(budgets=(budget,))
    assert verdict in text(made, samples.results(rounds((1, 2)))).splitlines()


def test_pairs_that_are_not_there_are_not_compared() -> None:
    table = Table(compare=(("a", "b"), ("a", "c")))
    assert report.pairs(table, ["a", "b"]) == [("a", "b")]


def test_a_readme_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place"):
        report.readme("# pyvirt\n", {})
