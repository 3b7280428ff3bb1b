"""Shells complete what `pyvirt` takes, and all of that, without starting it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.cli import completion, grammar
from pyvirt.cli.main import COMMANDS
from pyvirt.cli.options import syntax
from pyvirt.cli.options.parse import parse
from pyvirt.errors import ConfigError
from pyvirt.qmp.table import BY_NAME as REQUESTS

from ..refusal import refusal
from .shells import offered

NET = "virtio-net-device,"
# A line, and all that is offered; a shell may show a value without what has been typed before.
OFFERS: dict[str, set[str]] = {
    "pyvirt ": set(COMMANDS),
    "pyvirt ru": {"run"},
    "pyvirt run -dev": {"-device"},
    "pyvirt run --kern": {"--kernel"},
    "pyvirt run -accel ": {"auto", "kvm", "lab"},
    "pyvirt run -accel=k": {"-accel=kvm"},
    "pyvirt run -kernel ro": {"root.img", "roots/"},
    "pyvirt run -share ro": {"roots/"},
    "pyvirt run -kernel=root.": {"-kernel=root.img"},
    "pyvirt run -device virtco": {"virtconsole"},
    f"pyvirt run -device {NET}m": {f"{NET}mac=", f"{NET}mtu=", f"{NET}mq="},
    f"pyvirt run -device {NET}mq=on,m": {f"{NET}mq=on,mac=", f"{NET}mq=on,mtu="},
    f"pyvirt run -device {NET}mq=": {f"{NET}mq=on", f"{NET}mq=off"},
    f"pyvirt run -netdev tap,id=n7,ifname=t -device {NET}netdev=": {f"{NET}netdev=n7"},
    f"pyvirt run --netdev=user,id=n8 -device {NET}netdev=": {f"{NET}netdev=n8"},
    "pyvirt run -object iothread,id=t0 -object rng-random,id=r0 -disk x,iothread=": {
        "x,iothread=t0"
    },
    "pyvirt run -drive file=root.": {"file=root.img"},
    "pyvirt run -drive id=a,file=ro": {"id=a,file=root.img", "id=a,file=roots/"},
    "pyvirt run -disk root.img,read": {"root.img,readonly="},
    "pyvirt run -qmp ": {"unix:", "tcp:", "fd:"},
    "pyvirt run -qmp unix:root.": {"unix:root.img"},
    "pyvirt run -chardev pty,id=c0 -serial chardev:": {"chardev:c0"},
    "pyvirt run -machine microvm,discovery=": {
        *("microvm,discovery=auto", "microvm,discovery=acpi", "microvm,discovery=cmdline")
    },
    "pyvirt run -machine disc": {"discovery="},
    "pyvirt run -print-config=": {"-print-config=toml", "-print-config=json"},
    "pyvirt run -stats -time": {"-timeline"},
    "pyvirt guest k": {"kernel"},
    "pyvirt guest kernel cl": {"cloud", "cloud-6.12"},
    "pyvirt guest kernel cloud -print ": {"image", "vmlinux", "modules"},
    "pyvirt qmp /tmp/x query-st": {name for name in REQUESTS if name.startswith("query-st")},
    "pyvirt completion ": set(grammar.SHELLS),
    "pyvirt no-such ": set(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root.img").touch()
    (tmp_path / "roots").mkdir()
    return tmp_path


@pytest.mark.parametrize("shell", grammar.SHELLS)
def test_a_shell_offers_what_fits(shell: str, folder: Path) -> None:
    found = offered(shell, folder, tuple(OFFERS))
    for line, words in OFFERS.items():
        end = 0
        if shell == "bash":  # which is given what follows the last = or :
            typed = line.rpartition(" ")[2]
            end = max(typed.rfind("="), typed.rfind(":")) + 1
        # What may follow is put into the line later.
        later = {"bash": "/", "zsh": "/="}.get(shell)
        expected = {word[end:].rstrip(later) if later else word for word in words}
        assert {word.rstrip(later) if later else word for word in found[line]} == expected, line


def values() -> Iterator[tuple[str, syntax.Form]]:
    """Yield each form of each option of `pyvirt run`, as completion knows it."""
    for row in grammar.rows():
        if row.command == "pyvirt run" and row.word != "-freeze":
            for text in row.value.split(" "):
                first, *members = text.split(",")
                pairs = (member.partition("=")[::2] for member in members)
                yield row.word, syntax.Form(first, dict(pairs))


def said_of(option: str, form: syntax.Form, member: str, value: str) -> str:
    """Return how `pyvirt run` refuses a member, "" when it does not."""
    first = form.first.replace(syntax.FILE, "x").replace(
        syntax.ANY, "9:9" if "tcp" in form.first else "9"
    )
    first = first.partition("#")[0]
    words = [first] if first else []
    if "id" in form.members and member != "id":
        words.append("id=x")
    if option == "-mon" and member != "chardev":
        words.append("chardev=x")
        words += [] if member == "mode" else ["mode=control"]
    if first in {"socket", "file"} and member not in {"path", "fd"}:
        words.append("path=x")
    if option == "-qmp" and member not in {"server", "nowait"}:
        words += ["server", "nowait"]
    if option == "-smp" and not first and member != "cpus":
        words.append("cpus=1")
    words.append(f"{member}={value}" if value else member)
    try:
        parse([f"{option}={','.join(words)}"])
    except ConfigError as error:
        return str(error)
    return ""


WITH_MEMBERS = [(option, form) for option, form in values() if form.members]
UNKNOWN = re.compile(r"not understood here|no such (member|event)|: give -")


@pytest.mark.parametrize(("option", "form"), WITH_MEMBERS, ids=lambda one: str(one)[:30])
def test_every_member_that_is_offered_is_taken(option: str, form: syntax.Form) -> None:
    free = form.first == "python" or option == "-cpu"  # whose members may be anything
    assert free or UNKNOWN.search(said_of(option, form, "bogus", "1"))
    for member, kind in form.members.items():
        for value in kind.split("|") if kind[:1].isalnum() else ["1" if kind else ""]:
            said = said_of(option, form, member, value)
            assert not UNKNOWN.search(said), said
            assert "not one of" not in said or value == "1", said


# Other names for what is offered, and what others pass by habit.
NOT_OFFERED = {
    *("addr.path", "addr.type", "server", "script", "downscript", "host_mtu", "vhostfds", "if"),
    *(
        "vhostforce",
        "seal",
        "dump",
        "merge",
        "prealloc-threads",
        "bus",
        "driftfix",
        "hugetlb",
        "hugetlbsize",
        "free-page-hint",
    ),
    *("file", "path", "ifname"),  # the first word
}


@pytest.mark.parametrize(("option", "form"), WITH_MEMBERS, ids=lambda one: str(one)[:30])
def test_every_member_that_is_taken_is_offered(option: str, form: syntax.Form) -> None:
    if option == "-balloon":
        return  # which is StratoVirt's first one, and may say what -device may
    said = said_of(option, form, "bogus", "1")
    accepted = said.partition("accepted are ")[2].partition(" (")[0]
    missing = set(accepted.split(", ")) - {"", *form.members}
    assert missing <= NOT_OFFERED


def test_the_help_texts_forms_are_read() -> None:
    text = "[type=]a|b[,x=on|off] | file,path=FILE|fd=N[K|M]; each of these [,id=ID][,drive=ID]"
    more = {"id": "_", "drive": "#drive/"}
    assert syntax.forms(text) == [
        syntax.Form("a", {"x": "on|off", **more}),
        syntax.Form("b", {"x": "on|off", **more}),
        syntax.Form("", {"type": "a|b", "x": "on|off", **more}),
        syntax.Form("file", {"path": "@", "fd": "_", **more}),
    ]


def test_no_row_has_a_separator_in_it() -> None:
    for row in grammar.rows():
        assert all(part or part is row.text for part in row), row
        assert not re.search("[\t\n]", "".join(row)), row


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_which_shell_has_to_be_said(words: list[str]) -> None:
    assert "name one shell, bash, zsh, fish" in refusal(lambda: completion.main(words))
