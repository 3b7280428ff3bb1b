"""The table in the form of QEMU's introspection (qapi/introspect.json): query-qmp-schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import Choice, Field, ListOf, Struct, Type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .schema import Command, Event

_EMPTY = "empty"
_BUILTIN = {
    "value": "any",
    "string": "str",
    "int": "int",
    "boolean": "bool",
}


class _Writer:
    """Gathers the entities, each type once under its name."""

    def __init__(self) -> None:
        self.entities: dict[str, dict[str, object]] = {}

    def add(self, name: str, meta: str, **rest: object) -> str:
        self.entities[f"{meta} {name}"] = {"name": name, "meta-type": meta} | {
            key.replace("_", "-"): value for key, value in rest.items()
        }
        return name

    def type(self, kind: Type, name: str) -> str:
        """Return the name of a type; `name` is for one that needs its own."""
        if isinstance(kind, Struct):
            return self.object(name, kind.fields) if kind.fields else self.object(_EMPTY, ())
        if isinstance(kind, Choice):
            members = [{"name": value} for value in kind.values]
            return self.add(name, "enum", members=members, values=list(kind.values))
        if isinstance(kind, ListOf):
            element = self.type(kind.element, f"{name}-element")
            return self.add(f"[{element}]", "array", element_type=element)
        return self.add(_BUILTIN[kind.json], "builtin", json_type=kind.json)

    def object(self, name: str, fields: tuple[Field, ...]) -> str:
        members = []
        for field in fields:
            member: dict[str, object] = {
                "name": field.name,
                "type": self.type(field.type, f"{name}.{field.name}"),
            }
            if field.optional:
                member["default"] = None
            members.append(member)
        return self.add(name, "object", members=members)


def schema(commands: Sequence[Command[Any]], events: Sequence[Event]) -> list[dict[str, object]]:
    """Return every command, event and type, in this order."""
    entries, types = _Writer(), _Writer()
    any_type = types.type(Type(), "")
    for command in commands:
        argument = types.type(command.arguments, f"{command.name}-arg")
        entries.add(command.name, "command", arg_type=argument, ret_type=any_type, allow_oob=False)
    for event in events:
        data = types.type(Struct(*event.data), f"{event.name}-data")
        entries.add(event.name, "event", arg_type=data)
    return [*entries.entities.values(), *types.entities.values()]
