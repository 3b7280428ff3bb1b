"""What we take, answer and tell, held against QEMU's schema; `departures` are all exceptions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.qmp import events
from pyvirt.qmp.commands.foreign import Anything
from pyvirt.qmp.schema import Boolean, Choice, Integer, ListOf, Only, Scalar, Struct, Text, Type
from pyvirt.qmp.table import BY_NAME, TABLE

from ..unit.qmp.fake_machine import Bench
from .qemu_schema import schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pyvirt.qmp.schema import Event

    from .qemu_schema import Entity

REFUSED = {
    "migrate-incoming",
    "query-vnc", "query-sev-capabilities", "object-add", "object-del",
}  # fmt: skip

BALLOON = {"path": "/machine/peripheral/balloon0"}
# What QEMU calls the events that have StratoVirt's name here.
QEMUS = {events.BALLOON_CHANGED: "BALLOON_CHANGE"}

_JSON = {Boolean: "boolean", Integer: "int", Type: "value"}


def shared() -> set[str]:
    return {command.name for command in TABLE if schema().has("command", command.name)}


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def session(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return requests in an order in which all are carried out."""
    image, other = str(folder / "a.img"), str(folder / "b.img")
    file = {"driver": "file", "filename": image}
    disk = {"id": "d", "driver": "virtio-blk-mmio", "iothread": "io0"}
    saved = {"val": 0, "size": 8, "filename": str(folder / "saved")}
    address = {"type": "unix", "data": {"path": f"{folder}/s"}}
    socket = {"addr": address, "server": False}
    return [
        ("qmp_capabilities", {}),
        ("blockdev-add", {"node-name": "d", "driver": "raw", "file": file}),
        ("blockdev-add", {"node-name": "e", "file": file | {"filename": other}}),
        ("device_add", disk),
        ("netdev_add", {"type": "tap", "id": "n", "ifname": "tap0"}),
        ("netdev_add", {"id": "m", "ifname": "tap1"}),
        ("device_add", {"id": "n", "driver": "virtio-net-mmio", "mac": "52:54:00:00:00:01"}),
        ("device_add", {"id": "m", "driver": "virtio-net-mmio"}),
        ("block_resize", {"device": "d", "size": 8192}),
        ("set_link", {"name": "n", "up": False}),
        ("chardev-add", {"id": "c", "backend": {"type": "socket", "data": socket}}),
        ("chardev-remove", {"id": "c"}),
        ("balloon", {"value": 128 << 20}),
        ("watchdog-set-action", {"action": "inject-nmi"}),
        ("qom-set", {**BALLOON, "property": "guest-stats-polling-interval", "value": 2}),
        ("qom-get", {**BALLOON, "property": "guest-stats"}),
        ("query-blockstats", {"query-nodes": True}),
        ("query-named-block-nodes", {"flat": True}),
        ("human-monitor-command", {"command-line": "info registers", "cpu-index": 1}),
        ("ringbuf-write", {"device": "log", "data": "bGluZQo=", "format": "base64"}),
        ("ringbuf-read", {"device": "log", "size": 100}),
        ("memsave", saved),
        ("pmemsave", saved),
        ("dump-guest-memory", {"paging": False, "protocol": f"file:{folder}/core"}),
        (
            "migrate-set-capabilities",
            {"capabilities": [{"capability": "events", "state": False}]},
        ),
        *((one.name, {}) for one in TABLE if one.name.startswith("query-")),
        *((name, {}) for name in ("qom-list", "qom-list-types", "migrate_cancel")),
        ("device-list-properties", {}),
        *((name, {}) for name in ("inject-nmi", "stop", "cont", "system_powerdown")),
        ("migrate", {"uri": f"file:{folder}/snapshot"}),
        ("system_reset", {}),
        ("device_del", {"id": "d"}),
        ("blockdev-del", {"node-name": "d"}),
        ("netdev_del", {"id": "m"}),
        ("quit", {}),
    ]


def test_answers_and_events(bench: Bench, tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(4096))
    bench.host.ballooned = 0
    bench.host.uuid = "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3b"
    answered = set()
    for name, arguments in session(tmp_path):
        if name == "netdev_del":
            bench.do("device_del", id=arguments["id"])
        request = {"execute": name, "arguments": arguments}
        answer = bench.monitor.execute(bench.session, request).message
        if name in REFUSED or not schema().has("command", name):
            continue
        assert "return" in answer, (name, answer)
        assert schema().answer(name, answer["return"]) == [], name
        answered.add(name)
    # Descriptors come with sockets; what they are answered is what `stop` is.
    assert shared() == answered | REFUSED | {"getfd", "closefd"}
    assert {name for name, _ in bench.events} >= {"STOP", "RESUME", "SHUTDOWN", "DEVICE_DELETED"}
    for name, data in bench.events:
        assert schema().event(QEMUS.get(name, name), data) == [], name


def examples(kind: Type) -> Sequence[object]:
    if isinstance(kind, Choice):
        return kind.values
    if isinstance(kind, Integer):
        return kind.least, kind.most
    return (False, True) if isinstance(kind, Boolean) else ("x",)


@pytest.mark.parametrize("event", events.TABLE, ids=lambda event: event.name)
def test_events_are_declared_as_qemus(event: Event) -> None:
    name = QEMUS.get(event.name, event.name)
    plain = {field.name: examples(field.type)[0] for field in event.data}
    for field in event.data:
        for value in examples(field.type):
            assert schema().event(name, plain | {field.name: value}) == []
    assert schema().event(name, plain) == []


def compare(ours: Type, theirs: str, path: str) -> Iterator[str]:
    """Yield the paths at which what QEMU takes is neither taken nor refused with a reason."""
    entity = schema().type(theirs)
    meta = entity["meta-type"]
    if isinstance(ours, Scalar | Only):
        return
    if meta == "alternate":
        kinds = {one["type"]: schema().type(one["type"])["meta-type"] for one in entity["members"]}
        if "builtin" in kinds.values():
            yield path
        for name in (name for name, kind in kinds.items() if kind == "object"):
            yield from compare(ours, name, path)
    elif meta == "enum":
        if isinstance(ours, Choice) and not set(entity["values"]) <= set(ours.values):
            yield path
        assert isinstance(ours, Choice | Text), path
    elif meta == "array":
        assert isinstance(ours, ListOf), path
        yield from compare(ours.element, entity["element-type"], f"{path}[]")
    elif meta == "object":
        assert isinstance(ours, Struct), path
        yield from compare_members(ours, entity, path)
    elif entity["json-type"] != _JSON.get(type(ours), "string"):
        yield path


def compare_members(ours: Struct, entity: Entity, path: str) -> Iterator[str]:
    fields = {field.name: field for field in ours.fields}
    members = {member["name"]: member for member in entity["members"]}
    tag = fields.get(entity.get("tag", ""))
    if tag is not None and isinstance(tag.type, Choice):
        for case in tag.type.values:
            members |= {one["name"]: one for one in schema().variant(entity, case)}
    for name, member in members.items():
        where = f"{path}.{name}"
        field = fields.get(name)
        if field is None:
            yield where
            continue
        if "default" in member and not field.optional:
            yield where
        yield from compare(field.type, member["type"], where)


def test_arguments() -> None:
    found, told = set(), set()
    for command in TABLE:
        told |= {(command.name, one.path) for one in command.departures}
        if command.name in shared() - REFUSED and not isinstance(command.arguments, Anything):
            theirs = schema().argument_type(command.name)
            paths = compare_members(command.arguments, theirs, "arguments")
            found |= {(command.name, path) for path in paths}
    assert found == told


def test_our_own_schema_is_one(bench: Bench) -> None:
    """A client that asks us finds every command of the table."""
    entities = bench.do("query-qmp-schema")
    assert {one["name"] for one in entities if one["meta-type"] == "command"} == set(BY_NAME)
    assert json.loads(json.dumps(entities)) == entities


@pytest.mark.parametrize(
    ("command", "answer", "problem"),
    [
        ("query-status", {"running": 1, "status": "x"}, 3),
        ("query-status", [], 1),
        ("query-name", {"name": 1, "more": 1}, 2),
        ("query-machines", [{}, 1], 6),
        ("query-stats", [{"provider": "kvm", "stats": [{"name": "a", "value": "b"}]}], 1),
        ("query-cpus-fast", [{"target": "s390x"}], 4),
    ],
)
def test_schema_finds_what_is_wrong(command: str, answer: object, problem: int) -> None:
    assert len(schema().answer(command, answer)) == problem
