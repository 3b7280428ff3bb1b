"""`pyvirt test` with monitors that have no guest (fake_monitor.py): one line, and the status."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pyvirt.cli import test as command
from pyvirt.errors import ConfigError, PyvirtError
from pyvirt.harness.guest import hostboot
from pyvirt.harness.vm import boot, fork_server, place

FAKE = Path(__file__).resolve().parents[1] / "fake_monitor.py"
WARNING = """\
[    1.500000] WARNING: CPU: 0 PID: 99 at drivers/fake.c:12 fake_function+0x10/0x20
[    1.500001] ---[ end trace 0000000000000000 ]---
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command on a kernel that boots; status, stdout, stderr."""
    words = [sys.executable, "-P", str(FAKE)]
    monkeypatch.setattr(fork_server, "command", lambda *given: [*words, *given[1:]])
    monkeypatch.setattr(place, "kvm_failure", lambda: "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "bzImage").write_text("Linux version 6.1.7-fake (me)")
    (tmp_path / "initrd").touch()
    (tmp_path / "no-agent").touch()
    (tmp_path / "warning").write_text(WARNING)

    def run(
        *command_line: str, initrd: str = "initrd", kernel: str = "bzImage"
    ) -> tuple[int, str, str]:
        options = ["--kernel", kernel, "--initrd", initrd, "--boot-timeout", "20"]
        status = command.main([*options, *command_line])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_script_that_succeeds(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\necho out $1; echo err >&2\n")
    try:
        status, out, err = run("--", str(script), "argument")
    finally:
        Path("/tmp/script.sh").unlink(missing_ok=True)  # where it is in the guest, which is here
    assert (status, out) == (0, "out argument\n")
    said, verdict = err.splitlines()
    assert said == "err"
    assert verdict.startswith("pyvirt test: passed (bzImage, ")


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (["sh", "-c", "exit 3"], "failed: sh: status 3"),
        (["sh", "-c", "cat warning >$CONSOLE; sleep 1"], "warned: the kernel warned: WARNING: "),
        (
            ["sh", "-c", "echo 'event GUEST_PANICKED {}' >$MONITOR; sleep 60"],
            "panicked: Kernel panic;",
        ),
    ],
)
def test_script_that_fails(words: list[str], verdict: str, run: Run, tmp_path: Path) -> None:
    status, _, err = run("--", "env", "-C", str(tmp_path), *words)
    assert status == 1
    assert f"pyvirt test: {verdict}".replace("sh:", "env:") in err.splitlines()[-1]
    assert "--- guest console (last lines)" in err
    assert "--- reproduce\npyvirt run " in err


def test_command_that_takes_too_long(run: Run) -> None:
    status, _, err = run("--timeout", "0.5", "--", "sleep", "60")
    assert status == 1
    assert "pyvirt test: timeout: sleep 60: not within 0.5 s" in err


def test_kernel_that_does_not_boot(run: Run) -> None:
    status, _, err = run("--boot-timeout", "1", "--", "true", initrd="no-agent")
    assert status == 125
    assert "pyvirt test: boot-failed: no agent answered in 1 s" in err


def test_wrong_usage(run: Run, tmp_path: Path) -> None:
    status, _, err = run("--", "true", kernel="/none")
    assert status == 2
    assert err.startswith("pyvirt test: not tried: kernel /none: it is neither a file nor")
    # What the monitor would not take, it says in its own words.
    (tmp_path / "refused").touch()
    status, _, err = run("--memory", "1M", "--", "true", initrd="refused")
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith("pyvirt test: not tried: the monitor refused its options: -m 1M: ")
    (tmp_path / "file").touch()
    status, _, err = run("--log-dir", "file/logs", "--", "true")
    assert status == 2
    assert "/file/logs: Not a directory; name one" in err
    for words in (
        ["--times", "0"],
        ["--timeout", "-1"],
        ["--boot-timeout", "nan"],
        ["--smp", "x"],
        ["--no"],
    ):
        with pytest.raises(ConfigError, match=f"^test: {words[0]}|^test: unrec"):
            run(*words, "--", "true")


def test_on_files_of_the_host_it_runs_in_place(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostboot, "check_kernel", lambda _option, _kernel: None)
    (tmp_path / "script.sh").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "script.sh").chmod(0o755)
    status, out, _ = run("--root", "--", "script.sh")
    assert (status, out) == (0, f"{tmp_path}\n")
    assert not Path("/tmp/script.sh").exists()
    status, _, err = run("--root=/nowhere", "--", "true")
    assert status == 2
    assert err.startswith("pyvirt test: not tried: --root /nowhere: no such folder")


def test_a_command_that_asks_to_be_skipped(run: Run) -> None:
    status, _, err = run("--", "sh", "-c", "exit 125")
    assert status == 125
    (line,) = err.splitlines()
    assert line.startswith("pyvirt test: not tried: sh: status 125 (bzImage, ")


def test_monitor_that_dies_says_nothing_of_the_kernel(run: Run) -> None:
    status, _, err = run("--", "sh", "-c", "echo exit 7 >$MONITOR; sleep 60")
    assert status == 125
    assert "pyvirt test: monitor-died: the monitor ended with status 7" in err


class Template:
    """What the fork server would have, of which the fake one knows nothing."""

    uri = "template:fake"

    def __init__(self, server: str) -> None:
        self.forks = 0

    def wait(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each VM, whether it is a fork."""
    found: list[bool] = []

    def process(*words: Any, template: Template | None) -> fork_server.Process:
        found.append(template is not None)
        return fork_server.Process(*words)

    monkeypatch.setattr(boot, "Process", process)
    monkeypatch.setattr(boot, "Template", Template)
    return found


def test_many_times_up_to_the_first_that_fails(run: Run, tmp_path: Path, forks: list[bool]) -> None:
    status, out, err = run("--times", "3", "--", "echo", "here")
    assert (status, out) == (0, "here\n" * 3)
    assert "pyvirt test: passed: 3 of 3 runs (bzImage, " in err
    assert forks == [False, True, True, True]
    script = f"echo x >>{tmp_path}/runs; test $(wc -l <{tmp_path}/runs) -lt 3"
    status, _, err = run("--times", "9", "--", "sh", "-c", script)
    assert status == 1
    assert err.splitlines()[-1].startswith(
        "pyvirt test: failed: sh: status 1, in run 3 of 9 (bzImage, "
    )


def test_many_times_without_forks(
    run: Run, forks: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--times", "2", "--boot-each", "--", "true")[0] == 0
    monkeypatch.setattr(hostboot, "check_kernel", lambda _option, _kernel: None)
    assert run("--times", "2", "--root", "--", "true")[0] == 0
    assert forks == [False] * 4


@pytest.mark.long
def test_many_times_of_what_does_not_boot_or_cannot_be_kept(
    run: Run, forks: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--times", "2", "--boot-timeout", "1", "--", "true")
    status, _, err = run(*words, initrd="no-agent")
    assert status == 125
    assert "pyvirt test: boot-failed: no agent answered in 1 s" in err
    assert "in run 1 of 2" in err

    def refuse(*_: object) -> NoReturn:
        raise PyvirtError("it runs guests itself")

    monkeypatch.setattr(Template, "wait", refuse)
    status, _, err = run("--times", "2", "--", "true")
    assert status == 125
    assert "not tried: snapshot: it runs guests itself; give --boot-each (" in err


def test_log_files_are_kept_on_request(run: Run, tmp_path: Path) -> None:
    assert run("--log-dir", "logs", "--", "true")[0] == 0
    assert {path.name for path in (tmp_path / "logs").iterdir()} >= {"console.log"}
    assert os.listdir(tempfile.gettempdir()) == []
