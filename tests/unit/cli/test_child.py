"""What a fork in waiting knows of its words."""

from __future__ import annotations

import pytest
from pyvirt.cli.server.child import Rehearsal


def test_words_are_read_ahead_for_who_is_given_the_same() -> None:
    rehearsal = Rehearsal(["-name", "one"])
    options = rehearsal.options_of(["-name", "one"])
    assert options is not None
    assert options.name == "one"
    assert rehearsal.options_of(["-name", "two"]) is None


@pytest.mark.parametrize(
    "words", [["-config", "vm.toml"], ["--config=vm.toml"], ["-share", "."], ["-root", "."], ["-x"]]
)
def test_words_that_mean_something_else_elsewhere_are_not(words: list[str]) -> None:
    assert Rehearsal(words).options_of(words) is None
