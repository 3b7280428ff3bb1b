"""Rounds are run in processes, kept whole or not at all, and said as they go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.benches import __main__ as bench
from pyvirt.benches import parts, report, results, runner
from pyvirt.benches.part import Part, Place, Round, Turn
from pyvirt.benches.parts import cost
from pyvirt.benches.runner import Span
from pyvirt.errors import BackendError, PyvirtError

from . import samples
from .samples import part


def numbered() -> Callable[[Turn], Round]:
    def one(turn: Turn) -> Round:
        turn.absent["Firecracker"] = "why"
        return {"pyvirt": {"time": [float(turn.number)]}}

    return one


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Part:
    one = part(numbered, warm_up=2)
    monkeypatch.setattr(parts, "load", lambda name: one)
    return one


def in_this_process(part: Part, span: Span, place: Path) -> int:
    runner.run_span(part.name, span, place)
    return 0


def test_rounds_are_measured(made: Part, capsys: pytest.CaptureFixture[str]) -> None:
    found = runner.measure(made, 3, in_this_process)
    assert [one["pyvirt"]["time"] for one in found.rounds] == [[0], [1], [2]]
    assert found.absent == {"Firecracker": "why"}
    assert not found.in_lab
    assert found.machine["cores"]
    said = capsys.readouterr().err
    assert "made: round 3 of 3: pyvirt 2\n" in said
    assert said.count("round") == 3, "what warms up is not said"


def test_what_is_counted_is_counted_in_a_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    one = part(numbered, place=Place.COUNTED)
    monkeypatch.setattr(parts, "load", lambda name: one)
    asked = []

    def run(command: list[str], *, icount: bool, **_: object) -> int:
        asked.append(icount)
        return in_this_process(one, Span(0, 1, 1), Path(command[-1]))

    monkeypatch.setattr("pyvirt.harness.lab.run", run)
    found = runner.measure(one, 1)
    assert asked == [True]
    assert found.in_lab
    assert "whose clock counted instructions" in "\n".join(report.section(one, found))


def test_the_processor_time_of_a_process_grows_by_what_it_does() -> None:
    before = cost.processor(os.getpid())
    sum(range(1 << 20))
    assert cost.processor(os.getpid()) > before


def test_spans_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    one = part(numbered, at_once=2)
    monkeypatch.setattr(parts, "load", lambda name: one)
    spans = []

    def spawn(part: Part, span: Span, place: Path) -> int:
        spans.append(span)
        return in_this_process(part, span, place)

    found = runner.measure(one, 5, spawn)
    assert spans == [(0, 2, 5), (2, 2, 5), (4, 1, 5)]
    assert len(found.rounds) == 5


def test_a_span_that_fails_is_tried_again(made: Part) -> None:
    failures = [BackendError("the lab hangs"), None]

    def spawn(part: Part, span: Span, place: Path) -> int:
        failure = failures.pop(0)
        if failure:
            raise failure
        return in_this_process(part, span, place)

    assert len(runner.measure(made, 2, spawn).rounds) == 2


def test_what_somebody_has_ended_is_not_tried_again(made: Part) -> None:
    asked: list[Span] = []

    def ended(_part: Part, span: Span, _place: Path) -> int:
        asked.append(span)
        return 128 + signal.SIGTERM

    with pytest.raises(KeyboardInterrupt):
        runner.measure(made, 1, ended)
    assert len(asked) == 1


def test_rounds_that_always_fail_are_an_error(made: Part) -> None:
    with pytest.raises(PyvirtError, match=f"^made: round 1 failed {runner.TRIES} times$"):
        runner.measure(made, 2, lambda *_: 1)


def test_every_other_round_begins_with_the_last() -> None:
    assert [Turn(number).order("abc") for number in (0, 1, 2)] == [
        ["a", "b", "c"],
        ["c", "b", "a"],
        ["a", "b", "c"],
    ]


def test_a_commit_is_marked_where_other_files_than_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()

    monkeypatch.setattr(results, "ROOT", tmp_path)
    assert results.commit() == results.UNKNOWN
    places = [tmp_path / name for name in ("README.md", "benches/results/boot.json", "code.py")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("a")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=a")
    named = git("rev-parse", "--short", "HEAD")
    for place, mark in zip(places, ("", "", "+"), strict=True):
        place.write_text("b")
        assert results.commit() == named + mark


def test_results_are_kept_whole(tmp_path: Path) -> None:
    found = samples.results(samples.rounds((1, 2), (3, 4)), samples.MACHINE)
    results.save(found, tmp_path)
    assert results.load("made", tmp_path) == found
    assert results.load("other", tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]
    assert len(json.loads((tmp_path / "made.json").read_text())["rounds"]) == 2


@pytest.fixture
def kept(tmp_path: Path, made: Part, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with results of an earlier run."""
    results.save(samples.results(samples.rounds((1, 2))), tmp_path)
    monkeypatch.setattr(results, "save", lambda found: pytest.fail("saved"))
    monkeypatch.setattr(report, "write", lambda: pytest.fail("written"))
    return tmp_path / "made.json"


@pytest.mark.usefixtures("kept")
def test_an_interruption_leaves_the_last_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(part: Part, rounds: int) -> results.Results:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "measure", interrupted)
    assert bench.run(["made", "made"], None) == 130
    assert capsys.readouterr().err == "\nbench: made was interrupted; its last results stay\n"


@pytest.mark.usefixtures("kept")
def test_a_part_that_fails_leaves_the_last_results_and_the_next_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def fails(part: Part, rounds: int) -> results.Results:
        ran.append(rounds)
        raise runner.RoundsFailedError("made: round 1 failed 2 times")

    monkeypatch.setattr(runner, "measure", fails)
    assert bench.run(["made", "made"], None) == 1
    assert ran == [4, 4]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "bench: made: round 1 failed 2 times; its last results stay"
    assert said[-1] == "bench: failed: made, made"


@pytest.mark.parametrize("word", ["0", "-1", "x", "1.5", "٣", "1001"])
def test_runs_that_are_none(word: str) -> None:
    with pytest.raises(PyvirtError) as caught:
        bench.main([f"--runs={word}", "--part", "boot"])
    assert str(caught.value) == (
        f"RUNS={word}: give a number of rounds from 1 to 1000, or leave it out"
    )


def test_a_part_that_is_none() -> None:
    with pytest.raises(PyvirtError, match=r"^PART=bot: no such part; there are startup, boot, "):
        bench.main(["--part", "boot bot", "--runs", ""])


def test_parts_that_are_chosen() -> None:
    assert bench.chosen("") == list(parts.NAMES)
    assert bench.chosen("boot, net fs") == ["boot", "net", "fs"]
    assert bench.how_many("11") == 11
