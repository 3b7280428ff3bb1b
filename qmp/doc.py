"""The reference in docs/qmp.md, made from the table: `python -m pyvirt.qmp.doc docs/qmp.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import events
from .schema import Boolean, Choice, Integer, ListOf, Only, Struct
from .table import CHAPTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .schema import Command, Field, Type

_DIFFERENCES = """\
Requests, answers and events of a name that QEMU has are as its schema (`query-qmp-schema`) says, of
QEMU 7.2 and with what later ones require, but for these. What has no effect, or is refused,
is said with each member above."""
_MARK = "<!-- From here on made by: python -m pyvirt.qmp.doc docs/qmp.md -->\n\n"


def _type(kind: Type) -> str:
    if isinstance(kind, Choice):
        empty = " or empty" if kind.empty else ""
        return " or ".join(f"`{value}`" for value in kind.values) + empty
    if isinstance(kind, Integer):
        return f"number, {kind.least} to {kind.most}"
    if isinstance(kind, Boolean) and kind.words:
        return "bool, `on` or `off`"
    if isinstance(kind, ListOf):
        return f"array of {_type(kind.element)}"
    return kind.name


def _default(field: Field) -> str:
    if field.default is None:
        return "optional"
    return f"default {str(field.default).lower()}"


def _rows(fields: Sequence[Field], above: str = "") -> Iterator[str]:
    for field in fields:
        name = f"{above}.{field.name}" if above else field.name
        note = f" ({_default(field)})" if field.optional else ""
        doc = field.doc
        if isinstance(field.type, Only):
            doc += f"; all else is refused: {field.type.reason}"
        yield f"| `{name}` | {_type(field.type)} | {doc}{note} |"
        inner = field.type.element if isinstance(field.type, ListOf) else field.type
        if isinstance(inner, Struct):
            yield from _rows(inner.fields, name)


def _table(fields: Sequence[Field]) -> list[str]:
    if not fields:
        return []
    return ["", "| member | type | meaning |", "|---|---|---|", *_rows(fields)]


def _command(command: Command[Any]) -> list[str]:
    lines = [f"### {command.name}", "", f"{command.doc} Since: {command.since}."]
    lines += _table(command.arguments.fields)
    if command.example:
        arguments, answer = command.example
        given = f', "arguments": {arguments}' if arguments else ""
        lines += [
            "",
            "```json",
            f'-> {{"execute": "{command.name}"{given}}}',
            f'<- {{"return": {answer}}}',
            "```",
        ]
    return [*lines, ""]


def _departures() -> list[str]:
    lines = ["## Where QEMU differs", "", _DIFFERENCES, ""]
    lines += ["| command | member | here |", "|---|---|---|"]
    lines += [
        f"| `{command.name}` | `{one.path}` | {one.why} |"
        for _, commands in CHAPTERS
        for command in commands
        for one in command.departures
    ]
    return [*lines, ""]


def reference() -> str:
    """Return the chapters about commands and events."""
    lines = []
    for title, commands in CHAPTERS:
        lines += [f"## {title}", ""]
        plain = [one for one in commands if one.example is None and not one.arguments.fields]
        # A table where most commands have nothing to show.
        rows = plain if 2 * len(plain) > len(commands) else []
        if rows:
            lines += ["| command | answer | since |", "|---|---|---|"]
            lines += [f"| `{c.name}` | {c.doc} | {c.since} |" for c in rows]
            lines.append("")
        for command in commands:
            if command not in rows:
                lines += _command(command)
    lines += ["## Events", ""]
    for event in events.TABLE:
        limit = ""
        if event.is_limited:
            limit = f" At most one a second{' of each device' if event.of else ''}; then the last."
        lines += [f"### {event.name}", "", event.doc + limit, *_table(event.data), ""]
    lines += _departures()
    return "\n".join(lines).rstrip("\n") + "\n"


def renewed(manual: str) -> str:
    """Return the manual with its reference made anew."""
    written, _, _ = manual.partition(_MARK)
    return written + _MARK + reference()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
