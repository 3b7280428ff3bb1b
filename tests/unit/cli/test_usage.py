"""Help and wrong usage are the same for every command: words and status, nothing done."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
from pyvirt.cli import main, usage
from pyvirt.cli.parser import Parser

from ..refusal import refusal

SUBCOMMANDS = ("lab exec", "lab shell", "guest kernel", "guest initramfs", "guest rootfs",
               "net up", "net down")  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise AssertionError("wrong usage has started something")

    monkeypatch.setattr(os, "fork", fork)


@pytest.mark.parametrize("command", [*main.COMMANDS, *SUBCOMMANDS])
@pytest.mark.parametrize("word", ["-h", "-help", "--help"])
def test_help(command: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):  # which is argparse's way to end with help, with status 0
        assert main.dispatch([*command.split(), word]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith((f"usage: pyvirt {command} ", f"usage: pyvirt {command}\n"))


@pytest.mark.parametrize("command", [*main.COMMANDS, *SUBCOMMANDS])
@pytest.mark.parametrize("word", ["-helpme", "-x", "--no-such=5"])
def test_an_option_that_is_not_there(command: str, word: str) -> None:
    message = refusal(lambda: main.dispatch([*command.split(), word]))
    assert word in message
    assert command == "run" or message.startswith(command)


@pytest.mark.parametrize("command", ["doctor", "demo", "ps", "serve a", "net down a"])
def test_a_word_too_many(command: str) -> None:
    assert "extra" in refusal(lambda: main.dispatch([*command.split(), "extra"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lab exec -smp x", "lab exec: -smp: invalid int value: 'x'; pyvirt lab exec -help"),
        ("lab exec --smp=x", "lab exec: --smp: invalid int value"),
        ("lab exec -smp4", "unrecognized arguments: -smp4"),
        ("guest kernel cloud -prin image", "unrecognized arguments: -prin image"),
        ("guest initramfs -kernel", "guest initramfs: -kernel: expected one argument"),
        ("test -kernel", "test: -kernel: expected one argument; pyvirt test -help tells more"),
        ("lab", "lab: the following arguments are required: exec|shell; pyvirt lab -help"),
        ("qmp", "qmp: name a monitor's socket; pyvirt qmp -help tells more"),
    ],
)
def test_a_message_names_what_was_written(words: str, message: str) -> None:
    assert message in refusal(lambda: main.dispatch(words.split()))


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_one_dash_or_two(dashes: str) -> None:
    parser = Parser(prog="pyvirt x")
    parser.add_argument("--two")
    parser.add_argument("-one")
    parser.add_argument("-o")
    found = parser.parse_args([f"{dashes}two", "2", f"{dashes}one=1", f"{dashes}o", "-1"])
    assert (found.two, found.one, found.o) == ("2", "1", "-1")


def test_a_file_may_be_called_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert not usage.shown("text", ["./help"])
    assert not usage.shown("text", [])
    assert capsys.readouterr().out == ""
