"""What `-print-config` shows: the options given, as a file that `-config` takes.

Imported only when the option is given.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .entry import FIRST
from .members import FALSE, TRUE, one_of, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .option import Option

FORMS = ("toml", "json")
# Options whose value is shown as a table, and how its first word is called where it has no name.
_TABLES = FIRST | {"drive": "", "disk": "file", "net": ""}


def show(given: Iterable[tuple[str, str]], table: Mapping[str, Option], form: str) -> str:
    """Return the file of the options `given`, by name and value; `form` "" is TOML. ConfigError."""
    form = one_of("-print-config", form or FORMS[0], FORMS)
    content: dict[str, Any] = {}
    for name, text in given:
        if name in {"config", "print-config"}:
            continue
        value = _value(name, text, table[name])
        if table[name].repeats:
            content.setdefault(name, []).append(value)
        else:
            content[name] = value
    try:
        shown = _json(content) if form == "json" else "".join(_toml(content))
        shown.encode()
    except UnicodeEncodeError:
        raise ConfigError("-print-config: a value is not UTF-8; rename that file") from None
    return shown


def _value(name: str, text: str, option: Option) -> Any:
    if option.is_bare and not text:
        return True
    words = pairs(f"-{name}", text, _TABLES[name]) if name in _TABLES else []
    # Without names is what StratoVirt's first words were, as a tap's of -net.
    if not words or any(not key for key, _ in words) or (name == "net" and "=" not in text):
        return _number(text)
    return {key: _member(value) for key, value in words}


def _member(text: str) -> Any:
    if text in {"", *TRUE[:1]}:
        return True
    if text in FALSE[:1]:
        return False
    return _number(text)


def _number(text: str) -> Any:
    is_number = text.isascii() and text.isdigit() and str(int(text[:20])) == text
    return int(text) if is_number else text


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _toml(content: dict[str, Any]) -> Iterable[str]:
    """Yield the text: what is no table comes first, as it would else belong to one."""
    tables = []
    for name, value in content.items():
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            tables += [(name, one) for one in value]
        else:
            yield f"{name} = {_inline(value)}\n"
    for name, members in tables:
        yield f"\n[[{name}]]\n"
        for key, value in members.items():
            yield f"{_key(key)} = {_inline(value)}\n"


def _key(key: str) -> str:
    is_bare = key.replace("-", "").replace("_", "").isalnum() and key.isascii()
    return key if is_bare else _inline(key)


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        words = ", ".join(f"{_key(key)} = {_inline(one)}" for key, one in value.items())
        return f"{{ {words} }}"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for one character.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
