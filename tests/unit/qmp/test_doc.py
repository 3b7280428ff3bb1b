"""docs/qmp.md says what the table says."""

from __future__ import annotations

import re
from pathlib import Path

from pyvirt.qmp import connection, events, framing, monitor, pending, server, throttle
from pyvirt.qmp.doc import renewed
from pyvirt.qmp.table import TABLE

MANUAL = (Path(__file__).resolve().parents[3] / "docs/qmp.md").read_text(encoding="utf-8")


def test_reference_is_current() -> None:
    assert renewed(MANUAL) == MANUAL, "run: python -m pyvirt.qmp.doc docs/qmp.md"


def test_everything_is_in_it() -> None:
    for name in [command.name for command in TABLE] + [event.name for event in events.TABLE]:
        assert f"### {name}\n" in MANUAL or f"| `{name}` |" in MANUAL


def test_numbers_in_the_text() -> None:
    text = " ".join(MANUAL.split())
    for phrase, number in (
        ("One has N KiB at most", framing.REQUEST_MAX >> 10),
        ("is nested N deep at most", framing.DEPTH_MAX),
        ("N requests a second are accepted", throttle.RATE),
        ("Up to N clients at once", server.CLIENTS_MAX),
        ("Of all others N may wait", pending.QUEUE_MAX),
        ("of one that has N KiB at most", monitor.GLANCE_BYTES >> 10),
        ("when N MiB waits for it", connection.OUTPUT_MAX >> 20),
    ):
        found = re.search(phrase.replace("N", "([0-9]+)"), text)
        assert found is not None, phrase
        assert int(found[1]) == number
