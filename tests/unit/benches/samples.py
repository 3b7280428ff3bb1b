"""A part and results that are made up."""

from __future__ import annotations

from collections.abc import Callable

from pyvirt.benches.part import Budget, Part, Place, Round, Row, Table, Turn
from pyvirt.benches.results import Results

MACHINE = {"processor": "made up", "cores": "2"}
TIME, RATE = Row("time", "s", less=True), Row("rate", "MiB/s", 0)


def part(
    ready: Callable[[], Callable[[Turn], Round]] = lambda: lambda turn: {},
    budgets: tuple[Budget, ...] = (),
    at_once: int | None = None,
    warm_up: int = 0,
    place: Place = Place.HOST,
) -> Part:
    """Return a part of two rows, and a table of what is found."""
    return Part(
        name="made",
        title="Made up",
        what="Nothing.",
        place=place,
        rounds=4,
        at_once=at_once,
        warm_up=warm_up,
        ready=ready,
        tables=(Table((TIME, RATE)), Table(name="Ports", compare=(), found=Row("", "", 0))),
        budgets=budgets,
    )


def rounds(*pairs: tuple[float, float]) -> list[Round]:
    """Return rounds of one row."""
    return [{"pyvirt": {"time": [ours]}, "other": {"time": [theirs]}} for ours, theirs in pairs]


def results(found: list[Round], host: dict[str, str] | None = None, load: float = 0.1) -> Results:
    """Return results of rounds."""
    return Results("made", "2026-01-02", "abc1234", MACHINE, host or {}, load, found)
