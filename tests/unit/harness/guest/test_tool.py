"""How the host's tools are run: quietly, in bounded time, failures in one line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pyvirt.errors import BackendError
from pyvirt.harness.guest.tool import ToolMissingError, run, run_watched


def test_output_and_input() -> None:
    assert run(["cat"], timeout=30, feed=b"bytes\0") == b"bytes\0"
    assert run(["cat"], timeout=30) == b"", "stdin is empty, not the terminal"


def test_messages_are_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run(["sh", "-c", "echo $LC_ALL"], timeout=30) == b"C\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo first; echo 'x.c:1: error: bad' >&2; echo 'E: last' >&2; exit 2",
            "x.c:1: error: bad",
        ),
        ("echo one >&2; echo two >&2; exit 1", "two"),
        (
            "echo Get: libgpg-error0; echo libgpg-error-l10n; echo dpkg: error: bad; exit 1",
            "dpkg: error: bad",
        ),
        ("echo only; exit 1", "only"),
        ("exit 9", "status 9"),
    ],
)
def test_failure_is_one_line(script: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"^sh .* failed: {reason}$"):
        run(["sh", "-c", script], timeout=30)
    tool = tmp_path / "make"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    with pytest.raises(BackendError, match=r"^make target failed: "):
        run_watched([str(tool), "-x", "target"], lambda _: None, timeout=30, cwd=tmp_path)


def test_environment_is_added_to(tmp_path: Path) -> None:
    command = ["sh", "-c", 'echo "$EPOCH $LC_ALL" >out']
    run_watched(command, timeout=30, cwd=tmp_path, env={"EPOCH": "7"})
    assert (tmp_path / "out").read_text() == "7 C\n"


def test_missing_tool(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError, match=r"^no-such-tool is not installed$"):
        run(["no-such-tool"], timeout=30)
    with pytest.raises(ToolMissingError, match=r"^no-such-tool is not installed$"):
        run_watched(["no-such-tool"], lambda _: None, timeout=30, cwd=tmp_path)


def test_timeout() -> None:
    with pytest.raises(BackendError, match=r"^sleep 60 did not end within 0 s$"):
        run(["sleep", "60"], timeout=0.2)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def end_of(pid: int) -> None:
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


SPAWN = ["sh", "-c", "sleep 60 & echo $!; echo $$; wait"]


def pids(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def test_watched_tool_is_watched_and_killed_with_its_children(tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(log: Path) -> None:
        seen[:] = pids(log)

    with pytest.raises(BackendError, match="did not end within"):
        run_watched(SPAWN, watch, timeout=1, cwd=tmp_path)
    assert len(seen) == 2
    for pid in seen:
        end_of(pid)


def test_interrupt_kills_the_tool(tmp_path: Path) -> None:
    seen: list[int] = []

    def watch(log: Path) -> None:
        seen[:] = pids(log)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_watched(SPAWN, watch, timeout=60, cwd=tmp_path)
    for pid in seen:
        end_of(pid)
