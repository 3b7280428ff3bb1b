"""`pyvirt snapshot` and `pyvirt restore`: what they say to a monitor, and to `pyvirt run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.cli import main, run, snapshot
from pyvirt.errors import BackendError

from ..refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = {"total": 256 << 20, "remaining": 0, "written": 41 << 20}


class FakeClient:
    """A monitor whose answers to query-migrate are given; all share what they were asked."""

    answers: list[dict[str, Any]]
    asked: list[tuple[str, Any]]

    def __init__(self, place: str, _: Callable[[dict[str, Any]], None]) -> None:
        self.asked.append(("connect", place))

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        self.asked.append((command, arguments))
        return self.answers.pop(0) if command == "query-migrate" else {}

    def close(self) -> None:
        self.asked.append(("close", None))


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.asked, FakeClient.answers = [], []
    monkeypatch.setattr(snapshot, "Client", FakeClient)
    return FakeClient


def test_it_waits_until_all_is_written(
    monitor: type[FakeClient], capsys: pytest.CaptureFixture[str]
) -> None:
    monitor.answers = [{"status": "active"}, {"status": "completed", "x-memory": MEMORY}]
    assert main.dispatch(["snapshot", "sock", "/tmp/a/../b"]) == 0
    assert [name for name, _ in monitor.asked] == [
        *("connect", "migrate", "query-migrate", "query-migrate", "close")
    ]
    assert monitor.asked[1][1] == {"uri": "file:/tmp/b"}
    assert capsys.readouterr().out == "written: 41 MiB of 256 MiB of memory are not zeroes\n"


@pytest.mark.parametrize("option", ["-cont", "--cont"])
def test_the_machine_goes_on_when_asked_to(monitor: type[FakeClient], option: str) -> None:
    monitor.answers = [{"status": "completed", "x-memory": MEMORY}]
    assert main.dispatch(["snapshot", option, "sock", "dir"]) == 0
    assert monitor.asked[-2:] == [("cont", None), ("close", None)]


def test_what_has_changed(monitor: type[FakeClient], capsys: pytest.CaptureFixture[str]) -> None:
    monitor.answers = [{"status": "completed", "x-memory": MEMORY}]
    assert main.dispatch(["snapshot", "-incremental", "sock", "/tmp/b"]) == 0
    assert monitor.asked[1][1] == {"uri": "file:/tmp/b", "incremental": True}
    out = capsys.readouterr().out
    assert out == "written: 41 MiB of 256 MiB of memory have changed and are not zeroes\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"status": "failed", "error-desc": "/tmp/b: full\n"}, r"snapshot: /tmp/b: full\\n"),
        ({"status": "canceled"}, "snapshot: somebody has cancelled it"),
    ],
)
def test_what_went_wrong_is_told(
    monitor: type[FakeClient], answer: dict[str, Any], message: str
) -> None:
    monitor.answers = [answer]
    with pytest.raises(BackendError, match=message):
        main.dispatch(["snapshot", "sock", "dir"])
    assert monitor.asked[-1][0] == "close"


@pytest.mark.parametrize(
    "words", [[], ["sock"], ["sock", "dir", "more"], ["flatten", "-cont", "a", "b"]]
)
def test_a_socket_and_a_folder(words: list[str]) -> None:
    message = refusal(lambda: main.dispatch(["snapshot", *words]))
    assert message.startswith("snapshot: give a monitor's socket and a folder")


def test_restore_is_short_for_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def take(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr(run, "main", take)
    assert main.dispatch(["restore", "a,b", "-S", "-name", "x"]) == 7
    assert seen == [["-incoming", "file:a,,b", "-S", "-name", "x"]]


def test_restore_takes_a_folder_first() -> None:
    assert "name a snapshot's folder" in refusal(lambda: main.dispatch(["restore"]))
