"""The reference in docs/qmp.md, made from the table: `python -m pyvirt.qmp.doc docs/qmp.md`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import events
from .schema import Boolean, Choice, Integer, Struct
from .table import CHAPTERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .schema import Command, Field, Type

_MARK = "<!-- From here on made by: python -m pyvirt.qmp.doc docs/qmp.md -->\n\n"


def _type(kind: Type) -> str:
    if isinstance(kind, Choice):
        return " or ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, Integer):
        return f"number, {kind.least} to {kind.most}"
    if isinstance(kind, Boolean) and kind.words:
        return "bool, `on` or `off`"
    return kind.name


def _default(field: Field) -> str:
    if field.default is None:
        return "optional"
    return f"default {str(field.default).lower()}"


def _rows(fields: Sequence[Field], above: str = "") -> Iterator[str]:
    for field in fields:
        name = f"{above}.{field.name}" if above else field.name
        note = f" ({_default(field)})" if field.optional else ""
        yield f"| `{name}` | {_type(field.type)} | {field.doc}{note} |"
        if isinstance(field.type, Struct):
            yield from _rows(field.type.fields, name)


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


def reference() -> str:
    """Return the chapters about commands and events."""
    lines = []
    for title, commands in CHAPTERS:
        lines += [f"## {title}", ""]
        if all(command.example is None and not command.arguments.fields for command in commands):
            lines += ["| command | answer | since |", "|---|---|---|"]
            lines += [f"| `{c.name}` | {c.doc} | {c.since} |" for c in commands]
            lines.append("")
            continue
        for command in commands:
            lines += _command(command)
    lines += ["## Events", ""]
    for event in events.TABLE:
        limit = ""
        if event.is_limited:
            limit = f" At most one a second{' of each device' if event.of else ''}; then the last."
        lines += [f"### {event.name}", "", event.doc + limit, *_table(event.data), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def renewed(manual: str) -> str:
    """Return the manual with its reference made anew."""
    written, _, _ = manual.partition(_MARK)
    return written + _MARK + reference()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
