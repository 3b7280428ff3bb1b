"""Slots prepared or on demand, as the options ask for them."""

from __future__ import annotations

import pytest
from pyvirt.cli.options.parse import parse
from pyvirt.cli.run import config

from ...refusal import refusal

MONITOR = ("-qmp", "unix:/tmp/none,server,nowait")


@pytest.mark.parametrize(
    ("words", "on_demand"),
    [
        (MONITOR, False),
        ((*MONITOR, "-machine", "slots=prepared"), False),
        ((*MONITOR, "-machine", "slots=demand"), True),
        ((*MONITOR, "-machine", "slots=demand,discovery=acpi"), True),
        # Nobody can plug anything; and a kernel that is told to do without ACPI is told of slots.
        (("-machine", "slots=demand"), False),
        ((*MONITOR, "-machine", "slots=demand", "-append", "acpi=off"), False),
    ],
)
def test_slots(words: tuple[str, ...], *, on_demand: bool) -> None:
    assert config(parse(list(words))).on_demand is on_demand


@pytest.mark.parametrize(
    "words", ["slots=demand,discovery=cmdline", "discovery=cmdline,slots=demand"]
)
def test_demand_without_acpi(words: str) -> None:
    assert refusal(lambda: parse(["-machine", words])) == (
        "-machine slots=demand: not with discovery=cmdline, as the guest is told of its devices by "
        "ACPI; drop one of them"
    )


def test_slots_of_another_kind() -> None:
    assert refusal(lambda: parse(["-machine", "slots=some"])) == (
        "-machine slots some: not one of prepared, demand"
    )
