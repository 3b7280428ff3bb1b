"""What a benchmark is: what it measures, where, how a round of it goes, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

T = TypeVar("T")
# What one round found: for each subject (a monitor, or a way), for each row, one value or several.
Round = Mapping[str, Mapping[str, list[float]]]


class Place(Enum):
    """Where rounds are run."""

    HOST = "on this host"
    # Here if this host's KVM runs stock kernels, else in the nested lab.
    GUESTS = "where stock kernels run"
    # In a nested lab whose clock counts instructions (docs/lab.md).
    COUNTED = "counted"


@dataclass(frozen=True)
class Row:
    """One thing that is measured; `less` says that less of it is better."""

    name: str
    unit: str = ""
    digits: int = 2
    less: bool = False


@dataclass(frozen=True)
class Table:
    """Rows that are shown together, a column for each subject.

    A table's `name` heads it, and stands before its rows' in a round. Without `subjects` it has
    all that were found; without `rows`, all that were found too, as `found` shows them. Pairs in
    `compare` get a ratio; None: the first subject with each of the others. Rows of which no subject
    has `least` are left out.
    """

    rows: tuple[Row, ...] = ()
    name: str = ""
    subjects: tuple[str, ...] = ()
    compare: tuple[tuple[str, str], ...] | None = None
    found: Row = Row("")
    least: float = 0

    def key(self, row: Row) -> str:
        """Return what a row of this table is called in a round."""
        return f"{self.name}: {row.name}" if self.name else row.name


@dataclass(frozen=True)
class Budget:
    """A bound of one subject's median, or a pair's ratio, for `rows` of a table; none: for all."""

    of: tuple[str, ...]
    limit: float
    least: bool = False
    rows: tuple[str, ...] = ()
    table: str = ""
    word: str = "budget"


@dataclass(frozen=True)
class Plot:
    """A picture of one table: how much better a pair's first is by row, or medians along the rows.

    `series` names the pair, or the subjects; lines may begin at their first value.
    """

    title: str
    series: tuple[str, ...]
    table: str = ""
    lines: bool = False
    unit: str = ""
    from_first: bool = False


class Turn:
    """One round: its number, from 0, by which the order changes, and who could not take part."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.absent: dict[str, str] = {}

    def order(self, subjects: Iterable[T]) -> list[T]:
        """Return whom this round takes first to last: every other one begins with the last."""
        return list(subjects)[:: -1 if self.number % 2 else 1]


@dataclass(frozen=True)
class Part:
    """One benchmark.

    `ready` makes, once in each process, what rounds need, and returns what carries one out.
    `at_once` rounds are run by one process, which is one boot of the nested lab of at most
    `seconds`; None is all of them. The first `warm_up` of a process are not counted. `derive` adds
    to the rounds that are kept what the report shows of them.
    """

    name: str
    title: str
    what: str
    place: Place
    rounds: int
    tables: tuple[Table, ...]
    ready: Callable[[], Callable[[Turn], Round]]
    seconds: int = 300
    at_once: int | None = 1
    warm_up: int = 0
    budgets: tuple[Budget, ...] = ()
    plot: Plot | None = None
    derive: Callable[[Sequence[Round]], Sequence[Round]] = list
