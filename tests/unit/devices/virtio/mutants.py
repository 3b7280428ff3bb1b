"""States that somebody has changed: fields of another value, of another type, or gone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_INTEGERS = st.sampled_from(
    [0, 1, 2, 3, 7, 15, 16, 63, 64, 255, 256, 1023, 1024, 1025, 4096, 65535, 65536, -1]
    + [(1 << bits) - more for bits in (28, 31, 32, 33, 63, 64, 65, 128, 4096) for more in (0, 1)]
)
_OTHERS = st.sampled_from(
    [None, True, False, 0.5, float("nan"), "", "0", "zz", "00", "ff" * 300, [], [0], {}, {"": 0}]
)
_GONE = object()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container with each of its keys."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


def _flipped(value: Any) -> st.SearchStrategy[Any]:
    """Return values that are nearly the one that was there."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.integers(0, 127).map(lambda bit: value ^ 1 << bit) | st.sampled_from(
            [value + 1, value - 1]
        )
    if isinstance(value, str):
        return st.integers(0, 15).map(lambda digit: f"{value[:-1]}{digit:x}")
    if isinstance(value, list):
        return st.sampled_from([value[:-1], value + value[-1:]])
    return st.just({})


@st.composite
def mutants(draw: st.DrawFn, state: Any) -> Any:
    """Return a state with one change or a few."""
    state = copy.deepcopy(state)
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(state))
        if not places:
            break
        where, key = places[draw(st.integers(0, len(places) - 1))]
        to = draw(st.just(_GONE) | _INTEGERS | _OTHERS | _flipped(where[key]))
        if to is _GONE:
            del where[key]
        else:
            where[key] = copy.deepcopy(to)
        if isinstance(where, dict) and draw(st.integers(0, 15)) == 0:
            where["colour"] = 3
    return state
