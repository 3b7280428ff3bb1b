"""All that can be typed after `pyvirt`: what completion and the manual pages are made of.

It is read off the tables and parsers that the commands themselves go by.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .main import COMMANDS
from .options import syntax
from .options.syntax import ANY, FILE, FOLDER
from .options.table import BY_NAME, TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .parser import Parser

SHELLS = ("bash", "zsh", "fish")
# The value of a word, beside the forms of options/syntax.py: a sub-command, an option without a
# value, and what stands before the value of an option that takes it only after `=`.
SUB_COMMAND, FLAG, ONLY_AFTER_EQUALS = "!", "-", "?"
_WIDTH = 78  # columns, of a help text in a manual
# What the "..." of an option's form stands for: forms of other options, by their first words.
_MORE: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("disk", FILE): (("drive", ""), ("device", "virtio-blk-device")),
    ("net", ANY): (("netdev", "tap"),),
    ("net", "user"): (("netdev", "user"),),
}
_NOT_MORE = {"drive", "file"}  # what two halves name each other by, and what is the first word
_METAVARS = {"FILE": FILE, "DIR": FOLDER}
_HELP = ("-help", FLAG, "show what there is, and end")


class Row(NamedTuple):
    """A word that a command takes: `*1` is its first that is no option, `*` any such."""

    command: str  # with those that it is of: "pyvirt guest kernel"
    word: str
    value: str  # forms, apart by spaces; or as above
    text: str


def rows() -> Iterator[Row]:
    """Yield the words of all commands."""
    for name, text in COMMANDS.items():
        yield Row("pyvirt", name, SUB_COMMAND, _short(text))
        yield Row(f"pyvirt {name}", *_HELP)
    yield from _of_run()
    for name, parser in _parsers().items():
        yield from _of_parser(f"pyvirt {name}", parser)
    for name, values in _words().items():
        for number, value in enumerate(values, 1):
            yield Row(f"pyvirt {name}", f"*{number}", value, "")


def _short(text: str) -> str:
    """Return the first clause of a text."""
    for mark in ("; ", ". ", " ("):
        text = text.partition(mark)[0]
    return text


def _of_run() -> Iterator[Row]:
    for command in ("run", "restore", "fork"):
        yield from _options(f"pyvirt {command}")


def _options(command: str) -> Iterator[Row]:
    for option in TABLE:
        value = option.value or FLAG
        if value.startswith("[="):
            value = ONLY_AFTER_EQUALS + _written(syntax.forms(value[2:-1]))
        elif value == "[FILE]":
            value = FILE
        elif value != FLAG:
            forms = syntax.forms(value)
            for form in forms:
                for name, first in _MORE.get((option.name, form.first), ()):
                    form.members.update(_more(name, first) | form.members)
            value = _written(forms)
        yield Row(command, f"-{option.name}", value, _short(option.doc))
    yield Row(command, "-freeze", FLAG, _short(BY_NAME["S"].doc))


def _more(option: str, first: str) -> dict[str, str]:
    other = next(form for form in syntax.forms(BY_NAME[option].value) if form.first == first)
    return {name: kind for name, kind in other.members.items() if name not in _NOT_MORE}


def _written(forms: list[syntax.Form]) -> str:
    return " ".join(map(str, forms))


def _parsers() -> dict[str, Parser]:
    from . import guest, jail, lab, net, test

    return {
        "guest": guest.parser(),
        "jail": jail.parser(),
        "lab": lab.parser(),
        "net": net.parser(),
        "test": test.parser(),
    }


def _of_parser(command: str, parser: Parser) -> Iterator[Row]:
    for name, (text, child) in parser.commands().items():
        yield Row(command, name, SUB_COMMAND, text)
        yield Row(f"{command} {name}", *_HELP)
        yield from _of_parser(f"{command} {name}", child)
    position = 0
    for action in parser.actions():
        if not action.option_strings and action.nargs != argparse.PARSER:
            position += 1
            is_rest = action.nargs in {argparse.REMAINDER, "+"}
            yield Row(command, "*" if is_rest else f"*{position}", _value(action), "")
        elif action.option_strings and "--help" not in action.option_strings:
            word = "-" + action.option_strings[-1].lstrip("-")
            yield Row(command, word, _value(action), _short(action.help or ""))


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return FLAG
    if action.choices is not None:
        return " ".join(action.choices)
    if action.metavar == "KERNEL":
        from ..harness.guest.kernel import NAMES

        return " ".join([*NAMES, FILE])
    if action.nargs is not None:
        return FILE  # a command
    return _METAVARS.get(str(action.metavar), FILE if action.type is Path else ANY)


def usages() -> dict[str, str]:
    """Return what each command says of its usage, but for run."""
    found: dict[str, str] = {}
    for name in COMMANDS:
        if name != "run":
            module = import_module(f"{__package__}.{name.replace('-', '_')}")
            has_parser = hasattr(module, "parser")
            found |= _helps(name, module.parser()) if has_parser else {name: module.USAGE}
    return found


def _helps(name: str, parser: Parser) -> dict[str, str]:
    children = parser.commands().items()
    found = {f"{name} {word}": child for word, (_, child) in children} or {name: parser}
    return {words: one.help_of_width(_WIDTH) for words, one in found.items()}


def _words() -> dict[str, tuple[str, ...]]:
    """Return what those commands take that have no parser."""
    from ..qmp.table import BY_NAME as REQUESTS

    return {
        "exec": (FILE,),
        "snapshot": (FILE, FOLDER),
        "restore": (FOLDER,),
        "template": (FILE, FILE),
        "fork": (FILE,),
        "serve": (FILE,),
        "qmp": (FILE, " ".join(sorted(REQUESTS))),
        "completion": (" ".join(SHELLS),),
        "man": ("run",),
    }
