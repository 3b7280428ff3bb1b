"""What is made of rounds: medians, spread, ratios, and how likely chance alone gives as much."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .part import Round

# Up to so many pairs every assignment of signs is tried; beyond, so many at random.
EXACT_PAIRS = 14
DRAWS = 20_000
SEED = 1


class Spread(NamedTuple):
    """A median, and the least and most beside it."""

    median: float
    least: float
    most: float


class Comparison(NamedTuple):
    """The rounds' ratios of two subjects, and the p of `chance`."""

    ratio: Spread
    p: float


def values(rounds: Sequence[Round], subject: str, key: str) -> list[float]:
    """Return all values of one row, of every round that has some."""
    return [value for one in rounds for value in one.get(subject, {}).get(key, [])]


def spread(found: Sequence[float]) -> Spread | None:
    """Return their median, least and most; None of nothing."""
    return Spread(statistics.median(found), min(found), max(found)) if found else None


def chance(differences: Sequence[float]) -> float:
    """Return the two-sided p of a paired permutation test, whose null is that signs are chance.

    Exact for few pairs; n of them cannot give less than 2 / 2**n.
    """
    seen = abs(sum(differences)) * (1 - 1e-12)
    if len(differences) <= EXACT_PAIRS:
        signs = list(itertools.product((1, -1), repeat=len(differences)))
        many = sum(abs(sum(map(float.__mul__, differences, map(float, s)))) >= seen for s in signs)
        return many / len(signs)
    draw = random.Random(SEED)
    many = 1 + sum(
        abs(sum(one if draw.random() < 0.5 else -one for one in differences)) >= seen
        for _ in range(DRAWS)
    )
    return many / (DRAWS + 1)


def compare(rounds: Sequence[Round], ours: str, theirs: str, key: str) -> Comparison | None:
    """Compare two subjects, one ratio of medians for each round that has both; None: none has."""
    ratios = []
    for one in rounds:
        mine, other = one.get(ours, {}).get(key), one.get(theirs, {}).get(key)
        if mine and other and statistics.median(other):
            ratios.append(statistics.median(mine) / statistics.median(other))
    found = spread(ratios)
    if found is None:
        return None
    if min(ratios) <= 0:
        return Comparison(found, math.nan)
    return Comparison(found, chance([math.log(ratio) for ratio in ratios]))
