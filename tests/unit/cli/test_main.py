"""The command as a user meets it: one line, the right status, the right stream."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import pytest
import pyvirt
from pyvirt.cli import launcher
from pyvirt.cli import main as command
from pyvirt.errors import BackendError, ConfigError, GuestError, KvmError

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
    assert (result.returncode, result.stdout, result.stderr) == (0, command.USAGE, "")


def test_usage_names_every_command() -> None:
    listed = [line.split()[0] for line in command.USAGE.splitlines() if line.startswith("  ")]
    assert listed == list(command.COMMANDS)


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_version(word: str) -> None:
    result = run(word)
    assert (result.returncode, result.stdout) == (0, f"pyvirt {pyvirt.__version__}\n")


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

    def leave(given: int) -> NoReturn:
        raise Ended(given)

    monkeypatch.setattr(command, "dispatch", dispatch)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Ended) as ended:
        command.main()
    assert ended.value.args == (status,)
    assert capsys.readouterr() == ("", text)


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
