"""QEMU's own word on what requests, answers and events look like: its query-qmp-schema."""

from __future__ import annotations

import functools
import json
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_QEMU = ("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none")
_REQUESTS = '{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}{"execute":"quit"}'
_SECONDS = 60
# Members of answers that a later QEMU requires; 7.2 does not know them.
_LATER = {"acpi", *(f"zone_append_{what}" for what in ("bytes", "operations", "merged"))} | {
    "zone_append_total_time_ns", "failed_zone_append_operations", "invalid_zone_append_operations"
}  # fmt: skip
_PYTHON = {
    "string": str,
    "int": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
    "value": object,
}

Entity = dict[str, Any]


class Schema:
    """The entities of QEMU's schema, by name."""

    def __init__(self, entities: list[Entity]) -> None:
        self._entities = {entity["name"]: entity for entity in entities}

    def has(self, meta: str, name: str) -> bool:
        """Say whether QEMU has a command, or an event, of this name."""
        return self._entities.get(name, {}).get("meta-type") == meta

    def answer(self, command: str, value: object) -> list[str]:
        """Return what is wrong with the value in an answer's `return`."""
        found = self._check(self._entities[command]["ret-type"], value, "return")
        return [one for one in found if one.partition(":")[0].rpartition(".")[2] not in _LATER]

    def event(self, name: str, data: object) -> list[str]:
        """Return what is wrong with an event's data."""
        return list(self._check(self._entities[name]["arg-type"], data, "data"))

    def argument_type(self, command: str) -> Entity:
        """Return the object type of a command's arguments."""
        return self.type(self._entities[command]["arg-type"])

    def type(self, name: str) -> Entity:
        """Return a type."""
        entity: Entity = self._entities[name]
        return entity

    def variant(self, entity: Entity, case: str) -> list[Entity]:
        """Return the members that an object has besides, where its tag has the value `case`."""
        found = (one["type"] for one in entity.get("variants", ()) if one["case"] == case)
        members: list[Entity] = [m for name in found for m in self.type(name)["members"]]
        return members

    def _check(self, name: str, value: Any, path: str) -> Iterator[str]:
        entity = self._entities[name]
        meta = entity["meta-type"]
        if meta == "builtin":
            kind: Any = _PYTHON[entity["json-type"]]
            is_number = entity["json-type"] in {"int", "number"}
            if not isinstance(value, kind) or (is_number and isinstance(value, bool)):
                yield f"{path}: {value!r} is no {entity['json-type']}"
        elif meta == "enum":
            if value not in entity["values"]:
                yield f"{path}: {value!r} is none of {entity['values']}"
        elif meta == "array":
            if not isinstance(value, list):
                yield f"{path}: {value!r} is no array"
                return
            for item in value:
                yield from self._check(entity["element-type"], item, f"{path}[]")
        elif meta == "alternate":
            ways = [list(self._check(one["type"], value, path)) for one in entity["members"]]
            if all(ways):
                yield f"{path}: {value!r} is none of the alternatives"
        else:
            yield from self._check_object(entity, value, path)

    def _check_object(self, entity: Entity, value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no object"
            return
        members = list(entity["members"])
        if "tag" in entity and isinstance(value.get(entity["tag"]), str):
            members += self.variant(entity, value[entity["tag"]])
        for member in members:
            if member["name"] in value:
                where = f"{path}.{member['name']}"
                yield from self._check(member["type"], value[member["name"]], where)
            elif "default" not in member:
                yield f"{path}.{member['name']}: is not there"
        for name in value.keys() - {member["name"] for member in members}:
            yield f"{path}.{name}: is not QEMU's"


@functools.cache
def schema() -> Schema:
    """Ask the QEMU of this machine."""
    result = subprocess.run(
        [*_QEMU, "-qmp", "stdio"],
        input=_REQUESTS, capture_output=True, text=True, timeout=_SECONDS, check=True,
    )  # fmt: skip
    for line in result.stdout.splitlines():
        answer = json.loads(line).get("return")
        if isinstance(answer, list):
            return Schema(answer)
    raise AssertionError(result.stdout + result.stderr)
