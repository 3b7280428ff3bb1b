"""Structures of the kernel as named fields and back, by what cffi knows of their members.

Integers are integers, arrays of bytes are hexadecimal text, other arrays are lists.
"""

from __future__ import annotations

from ...native import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Any

    from ...state import Fields

_BYTES = ("uint8_t", "char")


def save(struct: Any, leave: Container[str] = ()) -> dict[str, object]:
    """Return the fields of a structure, or of the one a pointer leads to, less those to `leave`."""
    return {
        name: _value(field.type, getattr(struct, name))
        for name, field in _members(struct)
        if name not in leave
    }


def restore(struct: Any, fields: Fields, leave: Container[str] = ()) -> None:
    """Set them from a state, each in the range of its type; StateError."""
    for name, field in _members(struct):
        if name not in leave:
            _set(struct, name, field.type, fields)


def _members(struct: Any) -> Any:
    kind = ffi.typeof(struct)
    return (kind.item if kind.kind == "pointer" else kind).fields


def _is_bytes(kind: Any) -> bool:
    while kind.kind == "array":
        kind = kind.item
    return kind.cname in _BYTES


def _value(kind: Any, value: Any) -> object:
    if kind.kind == "struct":
        return save(value)
    if kind.kind != "array":
        return int(value)
    if _is_bytes(kind):
        return bytes(ffi.buffer(value)).hex()
    return [_value(kind.item, one) for one in value]


def _set(struct: Any, name: str, kind: Any, fields: Fields) -> None:
    if kind.kind == "struct":
        restore(getattr(struct, name), fields.section(name))
    elif kind.kind != "array":
        setattr(struct, name, fields.integer(name, *_range(kind)))
    elif _is_bytes(kind):
        ffi.memmove(getattr(struct, name), fields.data(name, ffi.sizeof(kind)), ffi.sizeof(kind))
    elif kind.item.kind == "struct":
        items = fields.items(name, kind.length)
        _check_length(fields, name, len(items), kind.length)
        for into, one in zip(getattr(struct, name), items, strict=True):
            restore(into, one)
    else:
        values = fields.integers(name, *_range(kind.item), most=kind.length)
        _check_length(fields, name, len(values), kind.length)
        setattr(struct, name, values)


def _check_length(fields: Fields, name: str, given: int, wanted: int) -> None:
    if given != wanted:
        raise fields.wrong(name, f"has {given} entries, not {wanted}")


def _range(kind: Any) -> tuple[int, int]:
    bits = 8 * ffi.sizeof(kind)
    if kind.cname.startswith("u"):
        return 0, (1 << bits) - 1
    return -1 << bits - 1, (1 << bits - 1) - 1
