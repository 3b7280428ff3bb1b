"""The file of `-config`: options by their names, in TOML or JSON; or StratoVirt 20.09's JSON.

A name has a value as after the option, `true` for one without a value, a list where the option may
be repeated, or a table of what stands between its commas. The first word there goes by the name
that QEMU gives it (`driver` of a device). Imported only when the option is given.
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

from ... import files
from ...errors import ConfigError
from . import positions, stratovirt
from .entry import FIRST, Entry, Source
from .members import Placed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .option import Option

SIZE_MAX = 1 << 20


def complete(
    given: list[tuple[Option, str]], path: str, table: Mapping[str, Option]
) -> list[tuple[Option, str]]:
    """Return the options of a file, then those given; ConfigError with line and column.

    One that cannot be repeated is the command line's where both have it.
    """
    found = []
    seen: set[Option] = set()
    mine = {option for option, _ in given if not option.repeats}
    for entry in read(path):
        place = entry.places[""]
        option = table.get(entry.name)
        if option is None or entry.name in {"config", "print-config"}:
            raise ConfigError(f"{place}: {entry.name}: no such option; pyvirt run -help lists them")
        if not option.repeats and option in seen:
            raise ConfigError(f"{place}: {entry.name}: given twice; give it once")
        seen.add(option)
        if option not in mine:
            found.append((option, Placed(_text(option, entry), entry.places)))
    return found + given


def _text(option: Option, entry: Entry) -> str:
    """Return what would stand on the command line."""
    value, place = entry.value, entry.places[""]
    if value is None:
        if not option.is_bare:
            raise ConfigError(f"{place}: {entry.name}: needs a value, {option.value}")
        return ""
    if not option.value:
        raise ConfigError(f"{place}: {entry.name}: takes no value; give true")
    if not isinstance(value, dict):
        return str(value)
    words = []
    first = FIRST.get(entry.name)
    if first in value:
        words.append(value[first])
    for key, member in value.items():
        if key != first:
            words.append(f"{key}={member}" if member is not None else key)
    return ",".join(word.replace(",", ",,") for word in words)


def read(path: str) -> list[Entry]:
    """Return the options of a file in its order; ConfigError."""
    text = _contents(path)
    try:
        if path.endswith(".json"):
            content, where = json.loads(text), positions.of_json(text)
        else:
            content, where = tomllib.loads(text), positions.of_toml(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise ConfigError(f"{place}: no JSON: {_lowered(error.msg)}") from None
    except tomllib.TOMLDecodeError as error:
        what, line, column = _toml_error(str(error), text)
        raise ConfigError(f"{path}:{line}:{column}: no TOML: {what}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: {error}; is it a configuration?") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1:1: not an object; give one with options by their names")
    source = Source(path, where)
    if stratovirt.is_one(content):
        return stratovirt.entries(content, source)
    return [entry for name, value in content.items() for entry in _entries(name, value, source)]


def _contents(path: str) -> str:
    try:
        return files.read(path, SIZE_MAX).decode()
    except OSError as error:
        raise ConfigError(f"-config {path}: {error.strerror}; name a file of options") from None
    except UnicodeDecodeError:
        raise ConfigError(f"-config {path}: not UTF-8; name a file of options") from None


def _toml_error(message: str, text: str) -> tuple[str, int, int]:
    """Return what tomllib says and where, which it tells in words."""
    what, _, where = message.partition(" (at ")
    numbers = [int(word.strip(",)")) for word in where.split() if word.strip(",)").isdigit()]
    if len(numbers) != 2:  # "at end of document"
        numbers = [text.count("\n") + 1, len(text) - text.rfind("\n")]
    line, column = numbers
    return _lowered(what), line, column


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _entries(name: str, value: Any, source: Source) -> list[Entry]:
    values = enumerate(value) if isinstance(value, list) else [(None, value)]
    found = []
    for index, one in values:
        way = (name,) if index is None else (name, index)
        if one is False:
            continue
        if isinstance(one, dict):
            members = {key: _scalar(inner, source, *way, key) for key, inner in one.items()}
            found.append(Entry(name, members, source.places(*way, members=one)))
        else:
            text = None if one is True else _scalar(one, source, *way)
            found.append(Entry(name, text, source.places(*way)))
    return found


def _scalar(value: Any, source: Source, *way: str | int) -> str:
    """Return a member's value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list) and value and all(type(one) in (int, str) for one in value):
        return ":".join(map(str, value))
    if isinstance(value, (str, int)):
        text = str(value)
        if "\0" in text:
            raise source.error(f"{way[-1]}: a NUL character; leave it out", *way)
        return text
    raise source.error(f"{way[-1]}: not text, a number, true or false; give one of these", *way)
