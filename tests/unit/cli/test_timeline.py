"""The timeline: moments in the order in which they came, as a table and as a picture."""

from __future__ import annotations

import subprocess
import sys
import time
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.cli.timeline import STAGES, Timeline, exec_ns

SVG = "{http://www.w3.org/2000/svg}"
MS = 1_000_000


@pytest.fixture
def timeline(monkeypatch: pytest.MonkeyPatch) -> Timeline:
    """A timeline whose exec was at 1 s."""
    monkeypatch.setenv("PYVIRT_EXEC_NS", str(1000 * MS))
    return Timeline()


def filled(timeline: Timeline, *stages: str) -> Timeline:
    """Reach `stages`, 10 ms apart."""
    for number, stage in enumerate(stages, start=1):
        timeline.mark(stage, (1000 + 10 * number) * MS)
    return timeline


def test_rows_are_since_exec_and_since_the_row_before(timeline: Timeline) -> None:
    timeline.mark("imports", 1012 * MS)
    timeline.mark("vm-ready", 1015 * MS)
    assert timeline.rows() == [
        ("exec", 0.0, 0.0),
        ("modules imported", 12.0, 12.0),
        ("VM ready", 15.0, 3.0),
    ]


def test_rows_come_in_the_order_of_time(timeline: Timeline) -> None:
    timeline.mark("init", 1005 * MS)
    timeline.mark("first-byte", 1009 * MS)
    timeline.mark("vm-ready", 1002 * MS)
    labels = [label for label, _, _ in timeline.rows()]
    assert labels == ["exec", "VM ready", "init runs", "first console byte"]


def test_the_first_mark_of_a_stage_counts(timeline: Timeline) -> None:
    timeline.mark("end", 1010 * MS)
    timeline.mark("end", 1020 * MS)
    timeline.mark("end")
    assert timeline.rows()[-1] == ("end", 10.0, 10.0)


def test_mark_without_a_time_is_now(timeline: Timeline) -> None:
    before = time.monotonic_ns()
    timeline.mark("end")
    after = time.monotonic_ns()
    ((_, at, _),) = [row for row in timeline.rows() if row[0] == "end"]
    assert (before - 1000 * MS) / 1e6 <= at <= (after - 1000 * MS) / 1e6


def test_moment_that_never_came_is_no_row(timeline: Timeline) -> None:
    timeline.mark("first-byte", 0)
    assert [label for label, _, _ in timeline.rows()] == ["exec"]


def test_table(timeline: Timeline) -> None:
    text = filled(timeline, *(stage for stage, _ in STAGES[1:])).table()
    head, *lines = text.splitlines()
    assert head.split() == ["stage", "at", "ms", "took", "ms"]
    assert [line[:20].strip() for line in lines] == [label for _, label in STAGES]
    assert [float(line.split()[-2]) for line in lines] == [10.0 * n for n in range(len(STAGES))]
    assert [float(line.split()[-1]) for line in lines] == [0.0] + [10.0] * (len(STAGES) - 1)
    assert text.endswith("\n")


@given(st.lists(st.tuples(st.sampled_from([stage for stage, _ in STAGES[1:]]),
                          st.integers(1, 10**15)), max_size=10))  # fmt: skip
def test_picture_is_well_formed_and_has_a_bar_for_each_row(marks: list[tuple[str, int]]) -> None:
    exec_at = time.monotonic_ns() - 1000 * MS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVIRT_EXEC_NS", str(exec_at))
        timeline = Timeline()
    for stage, after in marks:
        timeline.mark(stage, exec_at + after)
    root = ET.fromstring(timeline.svg())
    assert root.tag == f"{SVG}svg"
    background, *bars = root.findall(f"{SVG}rect")
    assert background.get("width") == "100%"
    rows = timeline.rows()[1:]
    assert len(bars) == len(rows)
    texts = [text.text for text in root.findall(f"{SVG}text")]
    for label, _, took in rows:
        assert label in texts
        assert f"{took:.1f} ms" in texts
    width = float(root.attrib["width"])
    end = 0.0
    for bar in bars:
        x, length = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert length >= 1
        assert x >= end - 1.5, "a bar begins where the one before ends"
        end = x + length
        assert end <= width
        assert float(bar.attrib["y"]) + float(bar.attrib["height"]) <= float(root.attrib["height"])


@pytest.mark.parametrize("value", ["", "soon", "-5", "²", "1.5"])
def test_exec_time_that_is_no_number_is_measured(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVIRT_EXEC_NS", value)
    assert 0 < exec_ns() < time.monotonic_ns()


def test_measured_exec_time_lies_within_the_process() -> None:
    program = "from pyvirt.cli.timeline import exec_ns; print(exec_ns())"
    before = time.monotonic_ns()
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, timeout=60
    )
    assert before < int(result.stdout) < time.monotonic_ns()
