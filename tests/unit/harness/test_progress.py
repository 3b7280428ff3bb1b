"""What the user sees of long work: nothing below a second, and few lines on a pipe."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness import progress
from pyvirt.harness.progress import Progress, render


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_S", 0.05)
    monkeypatch.setattr(progress, "PERIOD_S", 0.01)
    monkeypatch.setenv("TERM", "xterm")


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 10
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, f"{text!r} was not shown: {stream.getvalue()!r}"
        time.sleep(0.005)


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY_S", 60.0)
    stream = Terminal()
    with Progress("working", 10, stream=stream) as shown:
        shown.update(5)
    assert stream.getvalue() == ""


def test_long_work_shows_a_bar_and_wipes_it() -> None:
    stream = Terminal()
    with Progress("working", 10, stream=stream) as shown:
        shown.update(5)
        wait_for(stream, " 50%")
    assert "working [############............] 50% 0:00" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")
    assert "\n" not in stream.getvalue()


def test_unknown_total_shows_the_time() -> None:
    stream = Terminal()
    with Progress("working", stream=stream):
        wait_for(stream, "working 0:00")
    assert "%" not in stream.getvalue()


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_no_terminal_gets_plain_lines_now_and_then(
    stream: io.StringIO, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(progress, "LOG_PERIOD_S", 0.02)
    with Progress("working", 10, stream=stream) as shown:
        wait_for(stream, "working ...\n")
        shown.update(5)
        wait_for(stream, " 50% 0:00\n")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "working ..."
    assert lines[-1] == "working [############............] 50% 0:00"
    assert "\r" not in stream.getvalue()


def test_a_closed_stream_does_not_stop_the_work() -> None:
    stream = Terminal()
    stream.close()
    with Progress("working", stream=stream) as shown:
        time.sleep(0.1)
        shown.update(1, 2)


@given(
    label=st.text(max_size=60),
    done=st.floats(-10, 1e9),
    total=st.none() | st.floats(0, 1e9),
    elapsed=st.floats(0, 1e5),
    width=st.integers(1, 200),
)
def test_line_fits(
    label: str, done: float, total: float | None, elapsed: float, width: int
) -> None:
    line = render(label, done, total, elapsed, width)
    assert len(line) <= width
    if total:
        assert "100%" not in line.removeprefix(label), "the end is shown by its being over"


def test_narrow_terminal_keeps_the_figures() -> None:
    assert render("fetching a kernel", 1, 4, 61, 18) == "fetching  25% 1:01"
