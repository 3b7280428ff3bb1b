"""The option that describes what devices use and a guest does not see: `-object`.

A kind joins by a row of the table; who uses one takes it by its id.
"""

from __future__ import annotations

from ...errors import ConfigError
from . import members
from .members import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Fields = dict[str, Any]

_ID = ("id", "id", members.name)
_MEMORY: tuple[members.Member, ...] = (
    _ID,
    ("size", "size", lambda _, text: text),
    ("share", "shared", members.switch),
    ("prealloc", "prealloc", members.switch),
    ("hugetlb", "hugetlb", members.switch),
    ("hugetlbsize", "hugetlbsize", lambda option, text: members.one_of(option, text, ("2M", "1G"))),
    ("seal", "seal", members.switch),
    ("dump", "", members.switch),
    ("merge", "", members.switch),
    ("prealloc-threads", "", members.number(1, 1024)),
    ("host-nodes", "host-nodes", members.numbers),
    ("policy", "policy", lambda _, text: text),
)
KINDS: dict[str, tuple[members.Member, ...]] = {
    "iothread": (_ID,),
    **dict.fromkeys(("memory-backend-ram", "memory-backend-memfd"), _MEMORY),
    "memory-backend-file": (*_MEMORY[:3], ("mem-path", "path", members.file_name), *_MEMORY[3:]),
    "rng-random": (_ID, ("filename", "filename", members.file_name)),
}


class Objects:
    """What the options say, in their order."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, Fields]] = {}

    def add(self, text: str) -> None:
        """Take the value of one option; ConfigError."""
        kind, _, rest = text.partition(",")
        kind = kind.removeprefix("qom-type=")
        if kind not in KINDS:
            raise ConfigError(f"-object {kind}: no such object; there is {', '.join(KINDS)}")
        fields = members.read("-object", pairs("-object", rest, "") if rest else [], KINDS[kind])
        if "id" not in fields:
            raise ConfigError(f"-object {text}: has no id; give {kind},id=NAME")
        name = fields["id"]
        if name in self._found:
            raise ConfigError(f"-object id={name}: there is one of that name; give another")
        self._found[name] = (kind, fields)

    @property
    def has_memory(self) -> bool:
        """Say whether any of them is guest memory."""
        return any(kind.startswith("memory-") for kind, _ in self._found.values())

    def of(self, kind: str) -> list[Fields]:
        """Return all of a kind, by the names of its table's row."""
        return [fields for found, fields in self._found.values() if found == kind]

    def find(self, user: str, kind: str, name: str) -> Fields:
        """Return the one of that id, for `user`; ConfigError when it is none of the kind."""
        found, fields = self._found.get(name, ("", {}))
        if found != kind:
            what = f"an -object {found}" if found else "no -object"
            raise ConfigError(f"{user}: {name} is {what}; add -object {kind},id={name}")
        return fields
