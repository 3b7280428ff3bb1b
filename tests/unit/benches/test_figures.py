"""Medians, ratios, and the permutation test, against what can be counted by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.benches import figures

from .samples import rounds


@pytest.mark.parametrize("pairs", range(1, 8))
def test_all_on_one_side_is_one_of_two_assignments(pairs: int) -> None:
    assert figures.chance([0.5] * pairs) == 2 / 2**pairs
    assert figures.chance([-0.5] * pairs) == 2 / 2**pairs


def test_a_case_by_hand() -> None:
    """Of the 8 sums of ±1 ±2 ±3, those as far from 0 as 1 + 2 - 3 are all, as far as 4 four."""
    assert figures.chance([1.0, 2.0, -3.0]) == 1
    assert figures.chance([-1.0, 2.0, 3.0]) == 4 / 8
    assert figures.chance([]) == 1


def test_no_difference_is_chance() -> None:
    assert figures.chance([0.0] * 5) == 1


def test_many_pairs_are_drawn_the_same_each_time() -> None:
    differences = [0.1] * (figures.EXACT_PAIRS + 10)
    assert figures.chance(differences) == figures.chance(differences) < 0.001
    balanced = [0.1, -0.1] * figures.EXACT_PAIRS
    assert figures.chance(balanced) == pytest.approx(1, abs=0.01)


def test_drawn_and_counted_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [0.3, 0.1, -0.2, 0.4, 0.2, -0.1, 0.5]
    exact = figures.chance(differences)
    monkeypatch.setattr(figures, "EXACT_PAIRS", 0)
    assert figures.chance(differences) == pytest.approx(exact, abs=0.02)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8))
def test_a_p_is_a_share_of_all_assignments_and_has_no_side(differences: list[float]) -> None:
    p = figures.chance(differences)
    assert 2 / 2 ** len(differences) <= p <= 1
    assert p == figures.chance([-one for one in differences])


def test_ratios_are_of_rounds() -> None:
    found = figures.compare(rounds((1, 2), (3, 2), (2, 2)), "pyvirt", "other", "time")
    assert found is not None
    assert found.ratio == (1, 0.5, 1.5)


def test_a_round_with_several_values_counts_once() -> None:
    several = [{"a": {"x": [1.0, 2.0, 9.0]}, "b": {"x": [4.0]}}]
    found = figures.compare(several, "a", "b", "x")
    assert found is not None
    assert found.ratio.median == 0.5
    assert found.p == 1
    assert figures.spread(figures.values(several, "a", "x")) == (2, 1, 9)


def test_what_is_not_there_is_not_compared() -> None:
    assert figures.compare(rounds((1, 2)), "pyvirt", "nobody", "time") is None
    assert figures.compare(rounds((1, 0)), "pyvirt", "other", "time") is None
    assert figures.spread([]) is None


def test_a_ratio_of_nothing_has_no_p() -> None:
    found = figures.compare(rounds((0, 2)), "pyvirt", "other", "time")
    assert found is not None
    assert math.isnan(found.p)
