"""The manual pages: read without a complaint by those who show them, and with all there is."""

from __future__ import annotations

import re
import subprocess

import pytest
from pyvirt.cli import man
from pyvirt.cli.main import COMMANDS
from pyvirt.cli.options.table import TABLE

from ..refusal import refusal

PAGES = {"pyvirt": man.page_of_all, "pyvirt-run": man.page_of_run}
READERS = (
    ["mandoc", "-T", "lint", "-W", "warning"],
    ["groff", "-man", "-ww", "-z", "-T", "utf8"],
)


def read(command: list[str], page: str) -> str:
    done = subprocess.run(
        command, input=page, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("reader", READERS, ids=lambda one: one[0])
def test_no_reader_complains(name: str, reader: list[str]) -> None:
    assert read(reader, PAGES[name]()) == ""


def shown(page: str) -> str:
    """Return what a reader sees, each space once."""
    text = read(["mandoc", "-T", "ascii", "-O", "width=200"], page)
    return " ".join(re.sub(r".\x08", "", text).split())


def test_the_page_of_run_has_every_option_as_the_help_has_it() -> None:
    text = shown(man.page_of_run())
    for option in TABLE:
        first = option.value.partition(" | ")[0].partition(";")[0]
        gap = " " if first and not first.startswith("[=") else ""
        assert f" -{option.name}{gap}{first}" in text.replace(" [,", "[,"), option.name
        assert " ".join(option.doc.split())[1:] in text, option.name


def test_the_page_of_run_has_all_chapters() -> None:
    chapters = re.findall(r"^\.SH (.*)", man.page_of_run(), re.MULTILINE)
    assert chapters == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "FILES"),
        *("EXAMPLES", "SEE ALSO"),
    ]


def test_the_page_of_all_has_every_command_and_its_usage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = shown(man.page_of_all())
    for name, what in COMMANDS.items():
        assert f" pyvirt {name} {what[0].upper()}{what[1:]}." in text
        assert name == "run" or f"usage: pyvirt {name}" in text
    assert "--address CIDR address of this host on the bridge" in text


@pytest.mark.parametrize("text", ["'quote", ".TH", "a\\b", '~^`"-'])
def test_text_is_no_request(text: str) -> None:
    page = ".TH X 1 2026-01-01\n.SH NAME\nx \\- y\n.PP\n" + man._escape(text) + "\n"
    assert text in shown(page)


def test_the_date_may_be_that_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '.TH PYVIRT-RUN 1 1970-01-02 "pyvirt ' in man.page_of_run()


@pytest.mark.parametrize("words", [[], ["run"]])
def test_the_command_prints_them(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert man.main(words) == 0
    name = "-".join(["pyvirt", *words])
    assert f".TH {name.upper()} 1 " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["qmp"], ["run", "run"], ["-x"]])
def test_another_page_is_refused(words: list[str]) -> None:
    assert refusal(lambda: man.main(words)).startswith(f"man {' '.join(words)}: no such page")
