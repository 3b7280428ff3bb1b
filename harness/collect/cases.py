"""Items that are made, not found in a Python file; they use fixtures and marks as any test."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Case(NamedTuple):
    """One item: `test` asks for fixtures by the names of its parameters.

    `keywords` are more words that `-k` matches.
    """

    name: str
    test: Callable[..., None]
    marks: tuple[pytest.MarkDecorator, ...] = ()
    keywords: tuple[str, ...] = ()


class Suite(pytest.Module):
    """A module of cases; its items are NAME::CASE."""

    @classmethod
    def of(cls, session: pytest.Session, name: str, cases: Iterable[Case]) -> Suite:
        """Return a suite; of cases of the same name the first counts."""
        module = ModuleType(name)
        for case in cases:
            test: Any = case.test
            for mark in case.marks:
                test = mark(test)
            vars(test).update(dict.fromkeys(case.keywords, True))
            vars(module).setdefault(case.name.replace("::", ":"), test)
        suite: Suite = cls.from_parent(session, path=session.config.rootpath / name)
        suite.obj = module
        return suite

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        """Return the items, which are nowhere but here."""
        for item in super().collect():
            if isinstance(item, pytest.Item):
                item.location = (self.name, None, item.name)
            yield item

    def funcnamefilter(self, name: str) -> bool:
        """Take every function for a test, whatever its name."""
        return True
