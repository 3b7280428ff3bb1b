"""The command as a user meets it: one line, the right status, the right stream."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import pyvirt
from pyvirt.cli import launcher
from pyvirt.cli import main as command
from pyvirt.cli import run as run_command
from pyvirt.errors import BackendError, ConfigError, GuestError, KvmError
from pyvirt.vmm.end import End
from pyvirt.vmm.log import Log

PROGRAM = "from pyvirt.cli.main import main; main()"


def run(
    *words: str, stdout: int = subprocess.PIPE, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=stdout, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=60,
        check=False, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip


@pytest.mark.parametrize("words", [[], ["help"], ["-h"], ["--help"]])
def test_usage(words: list[str]) -> None:
    result = run(*words)
    assert (result.returncode, result.stdout, result.stderr) == (0, command.usage(), "")


def test_usage_names_every_command() -> None:
    listed = [line.split()[0] for line in command.usage().splitlines() if line.startswith("  ")]
    assert listed == list(command.COMMANDS)


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_version(word: str) -> None:
    result = run(word)
    assert (result.returncode, result.stdout) == (0, f"pyvirt {pyvirt.__version__}\n")


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["-smp", "0"], 2, "pyvirt: -smp 0: the vCPU count is a number from 1 to 254\n"),
        (["-h"], 0, ""),
        (["-V"], 0, ""),
    ],
)
def test_under_the_name_of_stratovirt(
    tmp_path: Path, words: list[str], status: int, told: str
) -> None:
    program = tmp_path / "stratovirt"
    program.symlink_to(Path(sys.prefix, "bin", "pyvirt"))
    result = subprocess.run(
        [program, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (status, told)


@pytest.mark.parametrize("word", ["boot", "-run", "", "__init__", "main", "options"])
def test_unknown_command(word: str) -> None:
    result = run(word)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"pyvirt: {word}: no such command; pyvirt help lists them\n"


@pytest.mark.parametrize("words", [["-bogus"], ["-m", "1"], ["-smp", "0"], ["-m"], ["x\udcffy"]])
def test_misused_run_says_one_line(words: list[str]) -> None:
    result = run("run", *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("pyvirt: ")
    assert result.stderr.count("\n") == 1


def test_help_of_run() -> None:
    result = run("run", "-help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: pyvirt run ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_is_gone(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run("help", stdout=writer, unbuffered=unbuffered)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


class Ended(BaseException):
    """Stands in for the end of the process."""


def leave(status: int) -> NoReturn:
    raise Ended(status)


@pytest.mark.parametrize(
    ("outcome", "status", "text"),
    [
        (0, 0, ""),
        (42, 42, ""),
        (ConfigError("-m 1: too small"), 2, "pyvirt: -m 1: too small\n"),
        (KvmError("KVM_RUN", 14), 1, "pyvirt: KVM_RUN: Bad address\n"),
        (BackendError("tap0: busy"), 1, "pyvirt: tap0: busy\n"),
        (GuestError("it is gone"), 1, "pyvirt: it is gone\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (SystemExit(3), 3, ""),
        (
            ZeroDivisionError("a\nb\x1b[2J"),
            1,
            "pyvirt: ZeroDivisionError: a b\\x1b[2J (test_main.py:LINE); please report\n",
        ),
    ],
)
def test_outcome_becomes_status_and_line(
    outcome: int | BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dispatch(_: list[str]) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(command, "dispatch", dispatch)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Ended) as ended:
        command.main()
    assert ended.value.args == (status,)
    out, err = capsys.readouterr()
    assert (out, re.sub(r"(?<=\.py:)\d+", "LINE", err)) == ("", text)


def test_a_traceback_is_for_who_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "dispatch", lambda _: 1 // 0)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv("PYVIRT_LOG_LEVEL", "debug")
    with pytest.raises(Ended):
        command.main()
    assert capsys.readouterr().err.startswith("Traceback")


class BadMachine:
    """A machine whose report fails."""

    def __init__(self) -> None:
        self.end: End | None = None
        self.ended_fd = os.eventfd(0)
        self.notices_fd = os.eventfd(1)

    def report(self) -> None:
        raise UnicodeDecodeError("utf-8", b"\xe3", 0, 1, "unexpected end of data")

    def finish(self, end: End) -> None:
        self.end = end


def test_a_fault_in_the_main_loop_ends_the_run_in_good_order(
    capfd: pytest.CaptureFixture[str],
) -> None:
    machine = BadMachine()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    events = run_command._Events()
    try:
        events.wait(cast("Any", machine), Log())
    finally:
        events.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(machine.ended_fd)
        os.close(machine.notices_fd)
    assert machine.end is not None
    assert (machine.end.reason, machine.end.status) == ("crash", 1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("pyvirt: main loop: UnicodeDecodeError: 'utf-8' codec can't decode byte")
    assert line.endswith("; please report")


@pytest.mark.parametrize("name", ["plain", "with space", 'it\'s "quoted" \\ {braced}'])
def test_launcher_starts_the_package_beside_it(name: str, tmp_path: Path) -> None:
    parent = tmp_path / name
    parent.mkdir()
    (parent / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    site = Path(sysconfig.get_path("platlib"))
    path = tmp_path / "start"
    path.write_text(launcher.script(Path(sys.executable), site, parent), encoding="utf-8")
    path.chmod(0o755)
    for words in (["version"], ["run", "-help"]):
        result = subprocess.run(
            [path, *words], capture_output=True, text=True, timeout=60, check=False, env={}
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert "pyvirt" in result.stdout


def test_launcher_is_printed_for_this_environment() -> None:
    result = subprocess.run(
        [sys.executable, launcher.__file__], capture_output=True, text=True, timeout=60, check=True
    )
    first, *_ = result.stdout.splitlines()
    assert first == f"#!{sys.prefix}/bin/python3 -IS"
    assert repr(sysconfig.get_path("platlib")) in result.stdout
    compile(result.stdout, "pyvirt", "exec")
