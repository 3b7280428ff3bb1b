"""The value of an option as the help shows it, taken apart for completion.

`drive=ID[,serial=TEXT] | other[,x=on|off]` are two forms. A form's first part is a word, or what
stands for one; the rest are members. Words in capitals stand for something of that kind.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# What stands for a value of any kind, a file, a folder; `#OPTION/KIND` for the id of an option
# that was given, whose value begins with KIND; `a|b` for one of these words.
ANY, FILE, FOLDER = "_", "@", "/"
_KINDS = {"FILE": FILE, "PATH": FILE, "SOCKET": FILE, "LINK": FILE, "FOLDER": FILE, "DIR": FOLDER}
_USED = {
    "chardev": "#chardev/",
    "drive": "#drive/",
    "netdev": "#netdev/",
    "iothread": "#object/iothread",
    "rng": "#object/rng-",
    "memory-backend": "#object/memory-",
    "memdev": "#object/memory-",
}
_EACH = "; each of these "
_WORD = re.compile(r"(?![A-Z]+$)[A-Za-z0-9_][\w.-]*")
_UNIT = re.compile(r"(?<=N)\[[A-Z|]+\]")
_OPTIONAL_NAME = re.compile(r"\[([\w-]+)=\](.*)")


class Form(NamedTuple):
    """One way to write a value: `first` is "" where that is a member, too."""

    first: str
    members: dict[str, str]  # and what each may be, "" for one without a value

    def __str__(self) -> str:
        parts = [name + (f"={kind}" if kind else "") for name, kind in self.members.items()]
        return ",".join([self.first, *parts])


def texts(value: str) -> list[str]:
    """Return the forms of an option's value as the help shows them, each by itself."""
    found: list[str] = []
    for piece in value.split(" | "):
        text, _, each = piece.partition(_EACH)
        found = [one + each for one in (*found, text)]
    return found


def forms(value: str) -> list[Form]:
    """Return the forms of an option's value."""
    return [form for text in texts(_UNIT.sub("", value)) for form in _forms(text)]


def kind(name: str, text: str) -> str:
    """Return what stands for the value of the member `name`, of which the help says `text`."""
    words = text.split("|")
    if words == ["ID"]:
        return _USED.get(name, ANY)
    for word in words:
        if (found := _KINDS.get(word.partition(".")[0])) is not None:
            return found
    return "|".join(word for word in words if _WORD.fullmatch(word)) or ANY


def _split(text: str) -> list[str]:
    """Split at commas, and at those bars behind which another member begins."""
    parts: list[str] = []
    for part in text.replace("[", "").replace("]", "").split(","):
        first, *others = part.split("|")
        parts.append(first)
        for word in others:
            if "=" in word:
                parts.append(word)
            else:
                parts[-1] += f"|{word}"
    return parts


def _members(parts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        name, equals, text = part.partition("=")
        if _WORD.fullmatch(name):
            found[name] = kind(name, text) if equals else ""
    return found


def _first(word: str) -> str:
    """Return the first part of a form: a word, what stands for one, or a word before that."""
    before, colon, rest = word.partition(":")
    return f"{before}:{kind(before, rest)}" if colon else kind("", word)


def _forms(text: str) -> list[Form]:
    optional = _OPTIONAL_NAME.fullmatch(text)
    if optional:
        name, rest = optional.groups()
        return [*_forms(rest), *_forms(f"{name}={rest}")]
    parts = _split(text)
    if "=" in parts[0]:
        return [Form("", _members(parts))]
    kinds = [_first(word) for word in parts[0].split("|")]
    return [Form(first, _members(parts[1:])) for first in dict.fromkeys(kinds)]
