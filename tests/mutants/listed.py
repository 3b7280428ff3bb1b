"""The list of mutants: the files beside this one, by rooms.

    ["native/virtio/iov.c"]
    tests = ["net/test_rx.c", "tests/unit/..."]
    mutants = [
      ["FUNCTION", "KIND", "what is there", "what is there instead"],
    ]

`tests` are what is to find them, the likeliest first: a C test of native/tests, by
AddressSanitizer or with " thread" by ThreadSanitizer, or one of pytest's. A method is
CLASS.METHOD. Behind its text a mutant may have the reason why it survives.
"""

from __future__ import annotations

import ast
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..tree import ROOT

HERE = Path(__file__).resolve().parent
KINDS = {
    "boundary": "a limit off by one",
    "check": "a check left out",
    "order": "things done in the wrong order, or not done",
    "feature": "the wrong bit",
    "reset": "no reset or clean-up",
    "acquire": "a load without acquire",
    "release": "a store without release",
    "barrier": "a full barrier left out",
    "wakeup": "nobody is woken or told",
    "error": "an error is lost",
}


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file`, relative to the checkout, `there` is in `function` once."""

    file: str
    function: str
    kind: str
    there: str
    instead: str
    tests: tuple[str, ...]
    survives: str = ""  # why

    @property
    def is_c(self) -> bool:
        """Tell whether what it changes is compiled."""
        return self.file.endswith(".c")

    def __str__(self) -> str:
        change = f"`{self.there.strip()}` -> `{self.instead.strip()}`".replace("\n", " ")
        return f"{self.file} {self.function}, {self.kind}: {' '.join(change.split())}"


def mutants(folder: Path = HERE) -> list[Mutant]:
    """Return them all."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for file, entry in table.items():
            tests = tuple(entry["tests"])
            for function, kind, there, instead, *why in entry["mutants"]:
                found.append(Mutant(file, function, kind, there, instead, tests, *why))
    return found


def mutated(mutant: Mutant, text: str) -> str:
    """Return the text of its file with the bug in it; ValueError where it does not fit any more."""
    start, end = (_c_function if mutant.is_c else _method)(mutant.function, text)
    body = text[start:end]
    count = body.count(mutant.there)
    if count != 1:
        raise ValueError(f"{mutant}: what is there is found {count} times; write it as it is there")
    if mutant.kind not in KINDS:
        raise ValueError(f"{mutant}: there is no such kind")
    return text[:start] + body.replace(mutant.there, mutant.instead) + text[end:]


def _c_function(name: str, text: str) -> tuple[int, int]:
    """Return where a function's definition begins and ends."""
    found, start = [], 0
    while (start := text.find(f"{name}(", start)) >= 0:
        line = text.rfind("\n", 0, start) + 1
        opening, semicolon = text.find("\n{\n", start), text.find(";", start)
        is_word = not text[start - 1].isalnum() and text[start - 1] != "_"
        if is_word and not text[line].isspace() and 0 <= opening < semicolon:
            found.append((line, text.index("\n}\n", opening) + 3))
        start += 1
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} functions {name}")
    return found[0]


def _method(name: str, text: str) -> tuple[int, int]:
    """Return the same of Python's."""
    body: list[ast.stmt] = ast.parse(text).body
    *classes, function = name.split(".")
    for one in classes:
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == one)
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == function]
    if len(found) != 1 or found[0].end_lineno is None:
        raise ValueError(f"there are {len(found)} functions {name}")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts[found[0].lineno - 1], starts[found[0].end_lineno]


def source(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the text of its file."""
    return (root / mutant.file).read_text(encoding="utf-8")
