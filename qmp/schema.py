"""What a command takes and an event carries: fields with types, checked once.

A value of the wrong kind is refused in the words that StratoVirt's parser (serde) uses, plus the
name of the field.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAME_MAX = 255  # characters of an id
PATH_MAX = 4095  # bytes of a file's name
_SHOWN = 80  # characters of a client's text in a message to it

S = TypeVar("S")

# What a handler gets: the fields as attributes, `-` and `.` in their names as `_`. A field that is
# not given has its default.
Arguments = SimpleNamespace


def shown(text: str) -> str:
    """Return text of a client's as a message may repeat it: printable, and not too long."""
    text = text.encode("unicode_escape").decode()
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def described(value: object) -> str:
    """Return what serde calls a value of this kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{shown(format(value, 'd'))}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{shown(value)}"'
    return "map" if isinstance(value, dict) else "sequence"


class Type:
    """The kind of a value; `name` is for documentation, `json` the JSON type."""

    name = "any"
    json = "value"
    expected = "anything"

    def read(self, value: Any, field: str) -> Any:
        """Return the value as handlers want it; QmpError when it is no such thing."""
        return value

    def refuse(self, value: object, field: str) -> QmpError:
        """Return the error for a value of another kind."""
        return QmpError(f"invalid type: {described(value)}, expected {self.expected} for `{field}`")


class Text(Type):
    """A string of one to `most` characters that can be shown in a log line."""

    name = json = "string"
    expected = "a string"

    def __init__(self, most: int = NAME_MAX) -> None:
        self.most = most

    def read(self, value: Any, field: str) -> str:
        """Return the string."""
        if not isinstance(value, str):
            raise self.refuse(value, field)
        if not 1 <= len(value) <= self.most:
            raise QmpError(f"`{field}` has {len(value)} characters, 1 to {self.most} are accepted")
        if not value.isprintable():
            raise QmpError(f"`{field}` has a character that cannot be printed: {shown(value)}")
        return value


class Data(Type):
    """A string of up to `most` characters of any kind."""

    name = json = "string"
    expected = "a string"

    def __init__(self, most: int) -> None:
        self.most = most

    def read(self, value: Any, field: str) -> str:
        """Return the string."""
        if not isinstance(value, str):
            raise self.refuse(value, field)
        if len(value) > self.most:
            raise QmpError(f"`{field}` has {len(value)} characters, at most {self.most} go at once")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise QmpError(f"`{field}` has half of a character: {shown(value)}") from None
        return value


class FileName(Type):
    """The name of a file of the host."""

    name = json = "string"
    expected = "a string"

    def read(self, value: Any, field: str) -> str:
        """Return the name."""
        if not isinstance(value, str):
            raise self.refuse(value, field)
        try:
            size = len(os.fsencode(value))
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= PATH_MAX or "\0" in value:
            raise QmpError(f"`{field}` is no file name: {shown(value)!r}; name a file")
        return value


class Integer(Type):
    """A whole number from `least` to `most`."""

    name = json = "int"

    def __init__(self, least: int, most: int) -> None:
        self.least = least
        self.most = most
        self.expected = f"a number from {least} to {most}"

    def read(self, value: Any, field: str) -> int:
        """Return the number."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(value, field)
        if not self.least <= value <= self.most:
            raise QmpError(
                f"invalid value: {described(value)}, expected {self.expected} for `{field}`"
            )
        return value


class Boolean(Type):
    """True or false; with `words`, "on" and "off" as well."""

    name = "bool"
    json = "boolean"

    def __init__(self, *, words: bool = False) -> None:
        self.words = words
        self.expected = "a boolean, on or off" if words else "a boolean"

    def read(self, value: Any, field: str) -> bool:
        """Return the truth value."""
        if self.words and value in ("on", "off"):
            return bool(value == "on")
        if not isinstance(value, bool):
            raise self.refuse(value, field)
        return value


class Choice(Type):
    """One of a few strings; with `empty` also "", which some clients send for none of them."""

    name = "enum"
    json = "string"

    def __init__(self, *values: str, empty: bool = False) -> None:
        self.values = values
        self.empty = empty
        self.expected = " or ".join(f"`{value}`" for value in values)

    def read(self, value: Any, field: str) -> str:
        """Return the string."""
        if not isinstance(value, str):
            raise self.refuse(value, field)
        if value not in self.values and not (self.empty and value == ""):
            raise QmpError(
                f"unknown variant `{shown(value)}`, expected {self.expected} for `{field}`"
            )
        return value


class Scalar(Type):
    """A string, a number or a truth value, whichever: of members that have no effect here."""

    name = "any"
    expected = "a string, a number or a boolean"

    def read(self, value: Any, field: str) -> Any:
        """Return the value."""
        if value is None or isinstance(value, dict | list):
            raise self.refuse(value, field)
        return value


class Only(Type):
    """A member of which one value is offered, or none: others are refused for a reason."""

    def __init__(self, reason: str, *values: bool | int | str) -> None:
        """`reason` goes behind "is not offered: ", and says what to do instead."""
        self.reason = reason
        self.values = values
        self.name = " or ".join(f"`{json.dumps(value)}`" for value in values) or "none"

    def read(self, value: Any, field: str) -> Any:
        """Return the value."""
        # 0 and False are equal; JSON's are not.
        if any(type(value) is type(one) and value == one for one in self.values):
            return value
        told = shown(value if isinstance(value, str) else json.dumps(value))
        raise QmpError(f"`{field}` {told} is not offered: {self.reason}")


class ListOf(Type):
    """Any number of values of one kind."""

    name = json = "array"
    expected = "a sequence"

    def __init__(self, element: Type) -> None:
        self.element = element

    def read(self, value: Any, field: str) -> list[Any]:
        """Return the values."""
        if not isinstance(value, list):
            raise self.refuse(value, field)
        return [self.element.read(item, field) for item in value]


class Struct(Type):
    """An object with these members and no others."""

    name = json = "object"
    expected = "a map"

    def __init__(self, *fields: Field) -> None:
        self.fields = fields

    def read(self, value: Any, field: str) -> Arguments:
        """Return the members; `field` is "" for the arguments themselves."""
        if not isinstance(value, dict):
            raise self.refuse(value, field or "arguments")
        known = {one.name for one in self.fields}
        for name in value:
            if name not in known:
                among = ", ".join(f"`{one.name}`" for one in self.fields)
                raise QmpError(
                    f"unknown field `{shown(name)}`, "
                    + (f"expected one of {among}" if among else "there are no fields")
                )
        read = Arguments()
        for one in self.fields:
            where = f"{field}.{one.name}" if field else one.name
            attribute = one.name.replace("-", "_").replace(".", "_")
            if one.name in value:
                setattr(read, attribute, one.type.read(value[one.name], where))
            elif one.optional:
                setattr(read, attribute, one.default)
            else:
                raise QmpError(f"missing field `{where}`")
        return read


@dataclass(frozen=True)
class Field:
    """One member of a command's arguments or of an event's data."""

    name: str
    type: Type
    doc: str
    optional: bool = False
    default: Any = None


_NOTHING = Struct()


@dataclass(frozen=True)
class Departure:
    """Where a command is not as QEMU's schema has it: the members' path, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Command(Generic[S]):
    """One command: everything that the server, its clients and the manual know of it.

    `handler` gets the client's session (session.py), runs on the server's thread and returns what
    goes into `return`, or the steps to that (vmm/steps.py) where it waits for the guest; QmpError
    when the command is refused. `since` is the StratoVirt release that
    has it ("v2": one of that series), or "pyvirt". With `answer_first` the events that it causes
    follow the answer. `example` is a request's arguments and the answer to them, in JSON, for the
    manual. `departures` are all the places where a command of QEMU's leaves its schema.
    """

    name: str
    doc: str
    handler: Callable[[S, Arguments], object]
    arguments: Struct = _NOTHING
    since: str = "v0.1.0"
    answer_first: bool = False
    example: tuple[str, str] | None = None
    departures: tuple[Departure, ...] = ()


@dataclass(frozen=True)
class Event:
    """One event and its data.

    One that `is_limited`, as a guest can cause it, is told at most once a second of each device,
    which is the member `of` of its data ("": the machine).
    """

    name: str
    doc: str
    data: Sequence[Field] = ()
    is_limited: bool = False
    of: str = ""
