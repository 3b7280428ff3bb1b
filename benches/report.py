"""Writes docs/performance.md, its plots, and the README's table, from what results/ has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import figures, headline, parts, results
from .figures import Comparison, Spread
from .part import Budget, Part, Place, Row, Table
from .results import Results

PAGE = results.ROOT / "docs/performance.md"
README = results.ROOT / "README.md"
# Of the host's load, beyond which it had something else to do.
QUIET = 0.5
NOTES = Path(__file__).with_name("notes")
BEGIN, END = "<!-- made by make bench-report -->\n", "<!-- as far as here -->\n"


def cell(found: Spread | None, digits: int) -> str:
    """Return a spread in words; one value is just that."""
    if found is None:
        return ""
    middle, least, most = (f"{value:.{digits}f}" for value in found)
    return middle if found.least == found.most else f"{middle} ({least} to {most})"


def ratio(found: Comparison | None) -> str:
    """Return a comparison in words."""
    if found is None:
        return ""
    p = "" if math.isnan(found.p) else f", p {'<0.001' if found.p < 0.001 else f'{found.p:.3f}'}"
    return cell(found.ratio, 2) + p


def subjects(table: Table, found: Results) -> list[str]:
    """Return the columns of a table: those it names, or all that have one of its rows."""
    keys = {table.key(row) for row in rows(table, found)}
    have = {name: None for one in found.rounds for name in one if keys & one[name].keys()}
    return [name for name in table.subjects or have if name in have]


def rows(table: Table, found: Results) -> Sequence[Row]:
    """Return the rows of a table: those it has, or all that were found, the most first."""
    if table.rows:
        return table.rows
    most: dict[str, float] = {}
    before = f"{table.name}: "
    for one in found.rounds:
        for there in one.values():
            for key, values in there.items():
                if key.startswith(before):
                    name = key.removeprefix(before)
                    most[name] = max(most.get(name, 0), *values)
    like = table.found
    names = sorted(
        (name for name in most if most[name] >= table.least), key=lambda name: (-most[name], name)
    )
    return [Row(name, like.unit, like.digits, like.less) for name in names]


def pairs(table: Table, columns: Sequence[str]) -> list[tuple[str, str]]:
    """Return which columns are compared."""
    if table.compare is None:
        return [(columns[0], other) for other in columns[1:]]
    return [pair for pair in table.compare if set(pair) <= set(columns)]


def show(table: Table, found: Results) -> list[str]:
    """Return a table as lines of Markdown."""
    columns = subjects(table, found)
    if not columns:
        return []
    compared = pairs(table, columns)
    heads = [*columns, *(f"{ours} / {theirs}" for ours, theirs in compared)]
    lines = [f"### {table.name}", ""] if table.name else []
    lines += ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in rows(table, found):
        key = table.key(row)
        cells = [f"{row.name}, {row.unit}" if row.unit else row.name]
        seen = [figures.spread(figures.values(found.rounds, name, key)) for name in columns]
        cells += [cell(one, row.digits) for one in seen]
        cells += [ratio(figures.compare(found.rounds, *pair, key)) for pair in compared]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _bounded(budget: Budget, table: Table, found: Results) -> list[tuple[str, float]]:
    """Return what a budget bounds: rows, and the figure of each that there is."""
    seen = []
    for row in rows(table, found):
        if budget.rows and row.name not in budget.rows:
            continue
        key = table.key(row)
        if len(budget.of) == 1:
            one = figures.spread(figures.values(found.rounds, budget.of[0], key))
        else:
            pair = figures.compare(found.rounds, budget.of[0], budget.of[1], key)
            one = pair and pair.ratio
        if one is not None:
            seen.append((row.name, one.median))
    return seen


def judge(budget: Budget, part: Part, found: Results) -> str:
    """Return a line: what the budget is, and whether it is met."""
    table = next(one for one in part.tables if one.name == budget.table)
    seen = _bounded(budget, table, found)
    worse = [
        f"{name} {value:.2f}"
        for name, value in seen
        if (value < budget.limit if budget.least else value > budget.limit)
    ]
    what = ", ".join(budget.rows) or "every row"
    bound = f"at {'least' if budget.least else 'most'} {budget.limit:g}"
    verdict = "not measured" if not seen else "met"
    if worse:
        # One bounded row needs no name.
        named = worse[0].rpartition(" ")[2] if len(seen) == 1 else ", ".join(worse)
        verdict = f"**missed**: {named}"
    return f"- {budget.word}: {what}, {' / '.join(budget.of)} {bound}: {verdict}"


def section(part: Part, found: Results | None) -> list[str]:
    """Return what the page says of a part."""
    lines = [f"## {part.title}", "", part.what, ""]
    if found is None:
        return [*lines, f"Not measured yet: `make bench PART={part.name}`.", ""]
    count = len(found.rounds)
    where = "In the nested lab" if found.in_lab else "On the host"
    where += ", whose clock counted instructions" if part.place is Place.COUNTED else ""
    rounds = f"{count} round{'s' if count != 1 else ''}"
    busy = f", on a host with a load of {found.load:g} before" if found.load > QUIET else ""
    lines += [f"*{where}, {rounds}, {found.date}, commit {found.commit}{busy}.*", ""]
    if part.budgets:
        lines += [*(judge(budget, part, found) for budget in part.budgets), ""]
    for table in part.tables:
        lines += show(table, found)
    for name, why in sorted(found.absent.items()):
        lines += [f"{name} is not there: {why}.", ""]
    if part.plot is not None:
        lines += [f"![{part.plot.title}](../benches/results/{part.name}.svg)", ""]
    note = NOTES / f"{part.name}.md"
    if note.exists():
        lines += [note.read_text(encoding="utf-8").strip(), ""]
    return lines


def machines(all_results: Mapping[str, Results]) -> list[str]:
    """Return the list of machines that parts were measured on, and which were."""
    of: dict[tuple[tuple[str, str], ...], list[str]] = {}
    lab: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}
    for name, found in all_results.items():
        one = tuple(found.machine.items())
        of.setdefault(one, []).append(name)
        if found.in_lab:
            lab[one] = tuple(found.host.items())
    lines = ["## Machines", ""]
    for one, names in of.items():
        words = ", ".join(f"{what} {value}" for what, value in one)
        where = ""
        if one in lab:
            where = f" The lab's; its host: {', '.join(' '.join(pair) for pair in lab[one])}."
        lines += [f"- {', '.join(names)}: {words}.{where}"]
    return [*lines, ""] if of else []


def page(all_results: Mapping[str, Results]) -> str:
    """Return the whole page."""
    lines = [(NOTES / "introduction.md").read_text(encoding="utf-8")]
    for name in parts.NAMES:
        lines += section(parts.load(name), all_results.get(name))
    return "\n".join([*lines, *machines(all_results)]).rstrip() + "\n"


def readme(text: str, all_results: Mapping[str, Results]) -> str:
    """Return the README with its table made anew; ValueError if it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has no place for figures")
    return before + begin + headline.table(all_results) + end + after


def stored() -> dict[str, Results]:
    """Return the results of all parts that have some, as the report shows them."""
    found = {name: results.load(name) for name in parts.NAMES}
    return {name: shown(parts.load(name), one) for name, one in found.items() if one is not None}


def shown(part: Part, found: Results) -> Results:
    """Return results with what is derived from their rounds."""
    return replace(found, rounds=list(part.derive(found.rounds)))


def write() -> None:
    """Write page, plots and README."""
    from . import plot  # noqa: PLC0415  (only this needs what the bench extra installs)

    all_results = stored()
    for name, found in all_results.items():
        plot.draw(parts.load(name), found)
    PAGE.write_text(page(all_results), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(readme(text, all_results), encoding="utf-8")
