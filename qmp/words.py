"""Commands as people type them: `device_add id=drive-0 driver=virtio-blk-mmio addr=0x1`.

The table says of which type each member is; members of members have a dot before them.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigError
from .schema import Boolean, Choice, Integer, ListOf, Struct, Type
from .table import BY_NAME

_TRUTH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def arguments(command: str, words: list[str]) -> dict[str, Any]:
    """Return the arguments that `words` stand for: `member=value` each, or one JSON object.

    ConfigError. Whether they make sense is for the server to say.
    """
    if len(words) == 1 and words[0].startswith("{"):
        try:
            given = json.loads(words[0])
        except json.JSONDecodeError as error:
            raise ConfigError(f"{command}: {error} in {words[0]}") from None
        except ValueError:  # of thousands of digits
            raise ConfigError(f"{command}: number out of range; give a smaller one") from None
        assert isinstance(given, dict)
        return given
    found: dict[str, Any] = {}
    known = BY_NAME.get(command)
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"{command} {word}: give member=value, or a JSON object")
        _store(found, known.arguments if known else None, name, text, f"{command} {word}")
    return found


def _store(into: dict[str, Any], struct: Struct | None, name: str, text: str, where: str) -> None:
    fields = {field.name: field.type for field in struct.fields} if struct else {}
    first, dot, rest = name.partition(".")
    # A member may have a dot in its own name.
    if name not in fields and dot:
        kind = fields.get(first)
        inner = into.setdefault(first, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{where}: {first} has a value already; give one or the other")
        _store(inner, kind if isinstance(kind, Struct) else None, rest, text, where)
        return
    if name in into:
        raise ConfigError(f"{where}: {name} is given twice; give it once")
    into[name] = _value(fields.get(name), text)


def _value(kind: Type | None, text: str) -> Any:
    """Return text as a value of the type; as it is where it is none, for the server to refuse."""
    if isinstance(kind, Boolean):
        return _TRUTH.get(text, text)
    if isinstance(kind, Integer | ListOf | Struct) or kind is None:
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def completions(command: str, word: str) -> list[str]:
    """Return how a member that has been begun may go on."""
    known = BY_NAME.get(command)
    if known is None:
        return []
    name, equals, _ = word.partition("=")
    found = []
    for member, kind in _members(known.arguments):
        if not equals:
            found.append(f"{member}=")
        elif member == name and isinstance(kind, Choice):
            found += [f"{member}={value}" for value in kind.values]
        elif member == name and isinstance(kind, Boolean):
            found += [f"{member}=true", f"{member}=false"]
    return [one for one in found if one.startswith(word)]


def _members(struct: Struct, above: str = "") -> list[tuple[str, Type]]:
    found: list[tuple[str, Type]] = []
    for field in struct.fields:
        if isinstance(field.type, Struct):
            found += _members(field.type, f"{above}{field.name}.")
        else:
            found.append((f"{above}{field.name}", field.type))
    return found


def usage(command: str) -> str:
    """Return what the table knows of a command, in a few lines; "" when it knows none."""
    known = BY_NAME.get(command)
    if known is None:
        return ""
    lines = [known.doc]
    for field in known.arguments.fields:
        optional = " (optional)" if field.optional else ""
        lines.append(f"  {field.name}: {field.doc}{optional}")
    return "\n".join(lines)
