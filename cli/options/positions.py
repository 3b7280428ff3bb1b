"""Where the members of a configuration file stand, for messages: by line and column, from 1.

The readers of the standard library do not tell. A file has been read without an error when it comes
here, so only as much is understood as tells members apart.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    # The names and indices on the way to a member, and its line and column.
    Positions = dict[tuple[str | int, ...], tuple[int, int]]

_JSON = re.compile(r'"(?:\\.|[^"\\])*"|[{}\[\]:,]|[^\s{}\[\]:,"]+')
_HEADER = re.compile(r"\s*(\[{1,2})\s*([\w.\-]+)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"\s*(\"[^\"]+\"|'[^']+'|[\w\-]+)\s*=")


def of_json(text: str) -> Positions:
    """Return the positions of a JSON text's members."""
    tokens = _JSON.finditer(text)
    found: Positions = {}
    _json_value(next(tokens), tokens, (), text, found)
    return found


def _json_value(
    token: re.Match[str],
    tokens: Iterator[re.Match[str]],
    path: tuple[str | int, ...],
    text: str,
    found: Positions,
) -> None:
    found.setdefault(path, _line_and_column(text, token.start()))
    if token[0] == "[":
        index = 0
        for item in tokens:
            if item[0] == "]":
                return
            if item[0] != ",":
                _json_value(item, tokens, (*path, index), text, found)
                index += 1
    elif token[0] == "{":
        for name in tokens:
            if name[0] == "}":
                return
            if name[0] != ",":
                # Names with escapes are no names of ours.
                member = (*path, name[0][1:-1])
                found[member] = _line_and_column(text, name.start())
                next(tokens)
                _json_value(next(tokens), tokens, member, text, found)


def of_toml(text: str) -> Positions:
    """Return the positions of a TOML text's members and tables; those within a line have its."""
    found: Positions = {(): (1, 1)}
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            name = header[2]
            table = (name,)
            if header[1] == "[[":
                table = (name, counts.get(name, 0))
                counts[name] = counts.get(name, 0) + 1
            found.setdefault((name,), (number, header.start(1) + 1))
            found[table] = (number, header.start(1) + 1)
        elif key := _KEY.match(line):
            found.setdefault((*table, key[1].strip("\"'")), (number, key.start(1) + 1))
    return found


def _line_and_column(text: str, at: int) -> tuple[int, int]:
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
