"""Draws a part's plot to results/NAME.svg."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from . import figures, report
from .figures import Spread
from .part import Part, Plot, Table
from .results import FOLDER, Results


def draw(part: Part, found: Results) -> None:
    """Draw it, if the part has one."""
    if part.plot is None:
        return
    table = next(one for one in part.tables if one.name == part.plot.table)
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = part.name
    rows = report.rows(table, found)
    height = 3.2 if part.plot.lines else 0.9 + 0.36 * len(rows)
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    (_lines if part.plot.lines else _bars)(axes, part.plot, table, found)
    axes.set_title(part.plot.title)
    figure.savefig(FOLDER / f"{part.name}.svg", metadata={"Date": None})
    plt.close(figure)


def _better(spread: Spread, less: bool) -> Spread:
    """Return a ratio as times better, whichever way is better."""
    return Spread(1 / spread.median, 1 / spread.most, 1 / spread.least) if less else spread


def _bars(axes: Axes, plot: Plot, table: Table, found: Results) -> None:
    ours, theirs = plot.series
    labels, spreads = [], []
    for row in report.rows(table, found):
        pair = figures.compare(found.rounds, ours, theirs, table.key(row))
        if pair:
            labels.append(row.name)
            spreads.append(_better(pair.ratio, row.less))
    middles = [one.median for one in spreads]
    errors = [
        [one.median - one.least for one in spreads],
        [one.most - one.median for one in spreads],
    ]
    places = range(len(labels))
    axes.barh(places, middles, xerr=errors, height=0.6, color="#4878a8", ecolor="#333333")
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f"times better than {theirs} (1: the same)")


def _lines(axes: Axes, plot: Plot, table: Table, found: Results) -> None:
    rows = report.rows(table, found)
    for name in plot.series:
        spreads = [figures.spread(figures.values(found.rounds, name, table.key(r))) for r in rows]
        middles = [one.median if one else float("nan") for one in spreads]
        first = middles[0] if plot.from_first else 0
        axes.plot([row.name for row in rows], [m - first for m in middles], marker="o", label=name)
    axes.set_ylabel(plot.unit)
    axes.legend()
