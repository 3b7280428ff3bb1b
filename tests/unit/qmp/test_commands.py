"""The commands apart from plugging: what each answers, and how requests are framed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.qmp import events, introspect
from pyvirt.qmp.host import VcpuPlace
from pyvirt.qmp.table import BY_NAME, TABLE

from .fake_machine import GENERIC, Bench, add_disk

if TYPE_CHECKING:
    pass


# The frame of a request.

FRAMES: list[tuple[dict[str, Any], str, str]] = [
    ({}, GENERIC, "missing field `execute`"),
    ({"arguments": {}}, GENERIC, "missing field `execute`"),
    ({"execute": 1}, GENERIC, "invalid type: integer `1`, expected a string for `execute`"),
    ({"execute": None}, GENERIC, "invalid type: null, expected a string for `execute`"),
    ({"execute": "x"}, "CommandNotFound",
     "The command x has not been found; query-commands lists them"),
    ({"execute": "x\n" * 99}, "CommandNotFound", "The command " + "x\\n" * 26
     + "x\\... has not been found; query-commands lists them"),
    ({"execute": "stop", "foo": 1}, GENERIC,
     "unknown field `foo`, expected one of `execute`, `arguments`, `id`"),
    ({"exec-oob": "stop"}, GENERIC,
     ("QMP input member 'exec-oob' is unexpected: there is no capability `oob`; "
      "send `execute`")),
    ({"execute": "stop", "arguments": None}, GENERIC,
     "invalid type: null, expected a map for `arguments`"),
    ({"execute": "stop", "arguments": []}, GENERIC,
     "invalid type: sequence, expected a map for `arguments`"),
    ({"execute": "stop", "arguments": {"x": 1}}, GENERIC,
     "unknown field `x`, there are no fields"),
    ({"execute": "device_del"}, GENERIC, "missing field `arguments`"),
    ({"execute": "device_del", "arguments": {}}, GENERIC, "missing field `id`"),
    ({"execute": "device_del", "arguments": {"id": {}}}, GENERIC,
     "invalid type: map, expected a string for `id`"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "kind", "text"), FRAMES, ids=range(len(FRAMES)))
@pytest.mark.parametrize("id_", [[], ["a"]])
def test_frame(
    bench: Bench, request_: dict[str, Any], kind: str, text: str, id_: list[str]
) -> None:
    was = bench.state()
    sent = request_ | ({"id": id_[0]} if id_ else {})
    expected: dict[str, object] = {"error": {"class": kind, "desc": text}}
    if id_:
        expected["id"] = id_[0]
    assert bench.monitor.execute(bench.session, sent).message == expected
    assert bench.state() == was


@pytest.mark.parametrize("id_", [None, 0, 7, -1.5, "", "a", True, [], [1, {"a": None}], {}])
def test_id_comes_back_as_it_was(bench: Bench, id_: object) -> None:
    for request in ({"execute": "query-name"}, {"execute": "x"}, {"execute": "stop", "a": 1}):
        answer = bench.monitor.execute(bench.session, request | {"id": id_}).message
        assert list(answer)[-1] == "id"
        assert answer["id"] == id_
        assert type(answer["id"]) is type(id_)


def test_fault_of_ours_costs_one_command(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.host.refusal = ZeroDivisionError("x")
    bench.do("netdev_add", id="n", ifname="tap0")
    assert bench.refused("device_add", id="n", driver="net") == (
        GENERIC,
        "internal error: ZeroDivisionError; see the log",
    )
    assert capfd.readouterr().err == (
        "pyvirt: QMP device_add: ZeroDivisionError: x; please report\n"
    )
    assert bench.do("query-status")["running"]


# The machine's life.


def test_stop_and_cont(bench: Bench) -> None:
    running = {"running": True, "singlestep": False, "status": "running"}
    paused = {"running": False, "singlestep": False, "status": "paused"}
    assert bench.do("query-status") == running
    for _ in range(2):
        assert bench.do("stop") == {}
        assert bench.do("query-status") == paused
        assert bench.events == [("STOP", {})]
    bench.events.clear()
    for _ in range(2):
        assert bench.do("cont") == {}
        assert bench.do("query-status") == running
        assert bench.events == [("RESUME", {})]
    assert bench.host.calls == ["stop", "cont"]


def test_plug_while_paused(bench: Bench, image: str) -> None:
    bench.do("stop")
    add_disk(bench, image)
    bench.do("device_add", id="drive-0", driver="blk")
    bench.do("device_del", id="drive-0")
    assert bench.host.state() == "paused"


@pytest.mark.parametrize(
    ("command", "call", "event"),
    [
        ("system_powerdown", "powerdown", ("POWERDOWN", {})),
        ("system_reset", "reset", ("RESET", {"guest": False, "reason": "host-qmp-system-reset"})),
    ],
)
def test_buttons(bench: Bench, command: str, call: str, event: object) -> None:
    assert bench.do(command) == {}
    assert bench.host.calls == [call]
    assert bench.events == [event]


def test_what_an_ended_machine_refuses(bench: Bench) -> None:
    assert bench.do("quit") == {}
    assert bench.do("quit") == {}
    assert bench.do("query-status") == {
        "running": False, "singlestep": False, "status": "shutdown"
    }  # fmt: skip
    for command in ("stop", "cont", "system_reset", "system_powerdown"):
        assert bench.refused(command) == (GENERIC, "The machine has ended")


# What is only told.

PROPS = [{"core-id": n, "socket-id": 0, "thread-id": 0} for n in range(2)]
TOLD: dict[str, object] = {
    "query-name": {"name": "guest"},
    "query-kvm": {"enabled": True, "present": True},
    "query-pci": [],
    "query-memory-devices": [],
    "query-memdev": [
        {"id": "m0", "size": 128 << 20, "merge": False, "dump": False, "prealloc": True,
         "share": False, "host-nodes": [], "policy": "default"},
        {"id": "m1", "size": 64 << 20, "merge": False, "dump": True, "prealloc": False,
         "share": True, "host-nodes": [0, 2], "policy": "bind"},
    ],
    "query-dump-guest-memory-capability": {"formats": ["elf"]},
    "query-target": {"arch": "x86_64"},
    "query-iothreads": [
        {"id": "io0", "thread-id": 1100, "poll-max-ns": 0, "poll-grow": 0, "poll-shrink": 0,
         "aio-max-batch": 0}
    ],
    "query-chardev": [{"frontend-open": True, "filename": "stdio", "label": "serial0"}],
    "query-cpus": [
        {"arch": "x86", "CPU": n, "current": True, "halted": False, "props": PROPS[n],
         "qom_path": f"/machine/unattached/device[{n}]", "thread_id": 1000 + n}
        for n in range(2)
    ],
    "query-cpus-fast": [
        {"cpu-index": n, "props": PROPS[n], "qom-path": f"/machine/unattached/device[{n}]",
         "target": "x86_64", "thread-id": 1000 + n}
        for n in range(2)
    ],
    "query-hotpluggable-cpus": [
        {"type": "host-x86-cpu", "vcpus-count": 1, "props": PROPS[n],
         "qom-path": f"/machine/unattached/device[{n}]"}
        for n in range(2)
    ],
    "query-block": [],
    "query-blockstats": [],
    "query-named-block-nodes": [],
    "query-migrate": {"status": "none"},
    "qom-list-types": [],
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_told(bench: Bench, name: str) -> None:
    assert bench.do(name) == TOLD[name]


# Ring buffers


def test_a_ring_buffer_is_written_and_read(bench: Bench) -> None:
    assert bench.do("ringbuf-write", device="log", data="a\nb\0") == {}
    assert bench.do("ringbuf-write", device="log", data="/wD+", format="base64") == {}
    assert bench.do("ringbuf-read", device="log", size=3) == "a\nb"
    assert bench.do("ringbuf-read", device="log", size=2, format="base64") == "AP8="
    assert bench.do("ringbuf-read", device="log", size=9, format="utf8") == "\0\ufffd"
    assert bench.do("ringbuf-read", device="log", size=9) == ""


@pytest.mark.parametrize(
    ("data", "form", "says"),
    [
        ("not base64!", "base64", "`data` is not in base64: "),
        ("\ud800", "utf8", "`data` has half of a character: \\ud800"),
        ("x" * 65537, "utf8", "`data` has 65537 characters, at most 65536 go at once"),
    ],
)
def test_data_that_a_ring_buffer_does_not_take(
    bench: Bench, data: str, form: str, says: str
) -> None:
    kind, text = bench.refused("ringbuf-write", device="log", data=data, format=form)
    assert kind == GENERIC
    assert text.startswith(says)


def test_what_is_no_ring_buffer(bench: Bench) -> None:
    assert bench.refused("ringbuf-write", device="serial0", data="x") == (
        GENERIC, "`device` serial0: not a ringbuf, but stdio"
    )  # fmt: skip


def test_disks_are_told(bench: Bench, image: str) -> None:
    add_disk(bench, image, cache={"direct": False}, read_only=True)
    node = {
        "node-name": "drive-0",
        "drv": "raw",
        "file": image,
        "ro": True,
        "cache": {"direct": False, "no-flush": False, "writeback": True},
        "image": {"filename": image, "format": "raw", "virtual-size": 1 << 20},
        "backing_file_depth": 0,
        "encrypted": False,
        "write_threshold": 0,
        "detect_zeroes": "off",
        **dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0),
    }
    assert bench.do("query-named-block-nodes") == [node]
    assert bench.do("query-named-block-nodes", flat=True) == [node]
    assert bench.do("query-block") == []
    assert bench.do("query-blockstats") == []
    (unplugged,) = bench.do("query-blockstats", query_nodes=True)
    assert unplugged["node-name"] == "drive-0"
    assert "device" not in unplugged
    bench.do("device_add", id="vdb", driver="blk", drive="drive-0", lun=0)
    (block,) = bench.do("query-block")
    assert (block["device"], block["inserted"]) == ("vdb", node)
    (stats,) = bench.do("query-blockstats")
    assert stats["device"] == "vdb"
    assert stats["node-name"] == "drive-0"
    assert (stats["stats"]["rd_bytes"], stats["stats"]["wr_operations"]) == (12288, 1)
    text = bench.do("human-monitor-command", command_line=" info  block ")
    assert text == f"vdb: slot 1, {image}, 1048576 bytes, read-only\r\n"


def test_what_nics_receive_is_told(bench: Bench) -> None:
    assert bench.do("query-rx-filter") == []
    for number in range(2):
        bench.do("netdev_add", id=f"net-{number}", ifname=f"tap{number}")
        bench.do("device_add", id=f"net-{number}", driver="virtio-net-mmio", addr=hex(number))
    filtered, every = bench.do("query-rx-filter")
    assert bench.do("query-rx-filter", name="net-1") == [every]
    assert filtered == {
        "name": "net-0",
        "promiscuous": False,
        "multicast": "normal",
        "unicast": "none",
        "vlan": "normal",
        "broadcast-allowed": True,
        "multicast-overflow": False,
        "unicast-overflow": False,
        "main-mac": "52:54:00:00:00:01",
        "vlan-table": [7],
        "unicast-table": [],
        "multicast-table": ["01:00:5e:00:00:01"],
    }
    assert (every["multicast"], every["unicast"], every["vlan"]) == ("all", "all", "all")
    assert every["multicast-overflow"]
    assert every["unicast-overflow"]
    text = "name tap0: there is no such NIC; device_add makes one"
    assert bench.ask("query-rx-filter", name="tap0")["error"]["desc"] == text


def test_counters(bench: Bench) -> None:
    one = {"provider": "pyvirt", "target": "vcpu", "name": "vcpu1",
           "stats": [{"name": "exits", "value": 8}]}  # fmt: skip
    assert len(bench.do("x-query-stats")) == 3
    assert bench.do("x-query-stats", target="vcpu", name="vcpu1") == [one]
    (vm,) = bench.do("x-query-stats", target="vm")
    assert (vm["name"], vm["stats"]) == ("vm", [{"name": "exits", "value": 15}])


def test_the_balloon(bench: Bench) -> None:
    bench.host.ballooned = 0
    assert bench.do("query-balloon") == {"actual": 256 << 20}
    assert bench.do("balloon", value=100 << 20) == {}
    assert bench.do("query-balloon") == {"actual": 100 << 20}
    assert bench.do("balloon", value=1 << 40) == {}
    assert bench.do("query-balloon") == {"actual": 256 << 20}
    assert [name for name, _ in bench.events] == [events.BALLOON_CHANGED] * 2


def test_what_a_balloon_knows_of_its_guest(bench: Bench) -> None:
    path, interval = "/machine/peripheral/balloon0", "guest-stats-polling-interval"
    bench.host.ballooned = 0
    assert bench.do("qom-get", path=path, property=interval) == 0
    assert bench.do("qom-set", path="balloon0", property=interval, value=2) == {}
    assert bench.do("qom-get", path=path, property=interval) == 2
    found = bench.do("qom-get", path=path, property="guest-stats")
    assert found["last-update"] == 1314567890
    assert found["stats"]["stat-swap-in"] == 0
    assert found["stats"]["stat-available-memory"] == 6
    assert found["stats"]["stat-htlb-pgfail"] == (1 << 64) - 1
    for value in (-1, 1 << 32, "2", None):
        refusal = bench.refused("qom-set", path=path, property=interval, value=value)
        assert refusal[0] == GENERIC
        assert "`value`" in refusal[1]


def test_other_properties(bench: Bench) -> None:
    bench.host.ballooned = 0
    for path, name in (("/machine", "x"), ("balloon0", "x"), ("balloon1", "guest-stats")):
        assert bench.do("qom-get", path=path, property=name) == []
        kind, text = bench.refused("qom-set", path=path, property=name, value=1)
        assert kind == GENERIC
        assert text.startswith("there is no property to set but a balloon's guest-stats-polling-")


def test_without_a_balloon(bench: Bench) -> None:
    refusal = "DeviceNotActive", "No balloon device has been activated"
    assert bench.refused("balloon", value=1 << 27) == refusal
    assert bench.refused("query-balloon") == refusal
    for value in (0, -1, 1 << 63, 1.5, "1"):
        assert bench.refused("balloon", value=value)[0] == GENERIC


def test_looking_into_the_guest(bench: Bench) -> None:
    assert bench.do("query-mem-gpa", gpa="0x0") == "B9000001"
    assert bench.do("query-mem-gpa", gpa="FF") == "B9000100"
    assert bench.do("query-vcpu-reg", addr="rip", vcpu=1) == "FFFFFFFF81C013F0"
    assert bench.do("query-vcpu-reg", addr="rax", vcpu=1) == "1"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("info snapshots", "There is no snapshot available.\r\n"),
        ("info status", "VM status: running\r\n"),
        ("info name", "guest\r\n"),
    ],
)
def test_human_monitor(bench: Bench, line: str, text: str) -> None:
    assert bench.do("human-monitor-command", command_line=line) == text


def test_human_registers(bench: Bench) -> None:
    one = bench.do("human-monitor-command", command_line="info registers", cpu_index=1)
    lines = one.split("\r\n")
    assert lines[0] == "CPU#1"
    assert lines[1].startswith("RAX=0000000000000001 RBX=0000000000000000 ")
    assert lines[5].startswith("RIP=ffffffff81c013f0 RFL=")
    both = bench.do("human-monitor-command", command_line="info registers -a")
    assert both.endswith("\r\n\r\n" + one)
    assert both.startswith("CPU#0\r\n")
    assert bench.refused("human-monitor-command", command_line="info registers", cpu_index=2) == (
        GENERIC,
        "`cpu-index` 2: the machine has 2, counted from 0",
    )


def test_vcpus_have_their_places(bench: Bench) -> None:
    bench.host.places = [VcpuPlace(0, 1, 2, 3, 0), VcpuPlace(1, None, 0, 0, 1)]
    expected = [
        {"core-id": 2, "die-id": 1, "node-id": 0, "socket-id": 0, "thread-id": 3},
        {"core-id": 0, "node-id": 1, "socket-id": 1, "thread-id": 0},
    ]
    for command in ("query-cpus", "query-cpus-fast", "query-hotpluggable-cpus"):
        assert [one["props"] for one in bench.do(command)] == expected


def test_uuid_and_memory(bench: Bench) -> None:
    assert bench.do("query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000000"}
    bench.host.uuid = "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3b"
    assert bench.do("query-uuid") == {"UUID": bench.host.uuid}
    summary = {"base-memory": 256 << 20, "plugged-memory": 0}
    assert bench.do("query-memory-size-summary") == summary


def test_migration_has_no_capabilities(bench: Bench) -> None:
    wanted = {"capability": "events", "state": False}
    assert bench.do("migrate-set-capabilities", capabilities=[wanted]) == {}
    assert bench.refused("migrate-set-capabilities", capabilities=[wanted | {"state": True}]) == (
        GENERIC,
        "`capabilities.state` true is not offered: there is no migration; give false",
    )


@pytest.mark.parametrize(
    "command",
    ["query-command-line-options", "query-gic-capabilities", "query-migrate-capabilities",
     "query-tpm-models", "query-tpm-types", "query-block-jobs", "qom-list", "query-mem",
     "device-list-properties"],
)  # fmt: skip
def test_what_there_is_nothing_of(bench: Bench, command: str) -> None:
    nothing: object = {} if command == "query-mem" else []
    assert bench.do(command) == bench.do(command, anything=1) == nothing


@pytest.mark.parametrize(
    ("command", "kind", "text"),
    [
        ("query-sev-capabilities", GENERIC, "SEV is not supported"),
        ("cameradev_add", GENERIC, "cameradev_add not supported for MicroVM"),
        ("cameradev_del", GENERIC, "cameradev_del not supported for MicroVM"),
        ("query-vnc", GENERIC, "The service of VNC is not supported"),
        ("query-display-image", GENERIC, "query-display-image is not supported"),
        ("update_region", GENERIC, "The micro vm is not supported"),
    ],
)
def test_what_only_other_machines_have(bench: Bench, command: str, kind: str, text: str) -> None:
    assert bench.refused(command) == (kind, text)
    assert bench.refused(command, anything=1) == (kind, text)


# The table.

ASKED_FOR = {
    "qmp_capabilities", "query-version", "query-commands", "query-status", "query-cpus",
    "query-cpus-fast", "query-hotpluggable-cpus", "query-events", "query-name", "query-kvm",
    "query-machines", "query-target", "query-iothreads", "query-chardev", "query-block",
    "query-blockstats", "query-named-block-nodes", "stop", "cont", "quit", "system_powerdown",
    "system_reset", "blockdev-add", "blockdev-del", "netdev_add", "netdev_del", "device_add",
    "device_del", "getfd", "closefd", "query-mem-gpa", "query-vcpu-reg", "x-query-stats",
    "human-monitor-command", "query-qmp-schema",
}  # fmt: skip


def test_commands_are_all_there_once(bench: Bench) -> None:
    names = [entry["name"] for entry in bench.do("query-commands")]
    assert set(names) >= ASKED_FOR
    assert len(names) == len(set(names)) == len(BY_NAME)


def test_events_are_all_there(bench: Bench) -> None:
    assert {entry["name"] for entry in bench.do("query-events")} == {
        "STOP", "RESUME", "SHUTDOWN", "RESET", "POWERDOWN", "DEVICE_DELETED",
        "DEVICE_UNPLUG_GUEST_ERROR", "BLOCK_IO_ERROR", "GUEST_PANICKED", "GUEST_CRASHLOADED",
        "NIC_RX_FILTER_CHANGED", "BALLOON_CHANGED",
        "WATCHDOG",
    }  # fmt: skip


def test_version_is_what_the_greeting_says(bench: Bench) -> None:
    version = bench.do("query-version")
    assert version["qemu"] == {"micro": 1, "minor": 0, "major": 5}
    assert version["package"].startswith("pyvirt-")


@pytest.mark.parametrize("command", [c for c in TABLE if c.example], ids=lambda c: c.name)
def test_example_is_accepted(command: Any) -> None:
    arguments, answer = command.example
    command.arguments.read(json.loads(arguments or "{}"), "")
    json.loads(answer)


def test_schema_is_closed(bench: Bench) -> None:
    """Every type that an entity names is there, once."""
    schema = bench.do("query-qmp-schema")
    types = [e["name"] for e in schema if e["meta-type"] not in {"command", "event"}]
    assert len(types) == len(set(types))
    for entity in schema:
        named = [entity.get(key) for key in ("arg-type", "ret-type", "element-type")]
        named += [member.get("type") for member in entity.get("members", ())]
        assert {name for name in named if name} <= set(types)
    (added,) = (e for e in schema if e["name"] == "device_add")
    (argument,) = (e for e in schema if e["name"] == added["arg-type"])
    assert {"name": "addr", "type": "str", "default": None} in argument["members"]
    assert {"name": "id", "type": "str"} in argument["members"]
    assert introspect.schema(TABLE, events.TABLE) == schema


def test_event_carries_its_time() -> None:
    assert events.event("STOP", {}, 1614310541.55425) == {
        "event": "STOP",
        "data": {},
        "timestamp": {"seconds": 1614310541, "microseconds": 554250},
    }


def test_first_command_begins_the_events(bench: Bench) -> None:
    bench.refused("x")
    assert not bench.session.wants_events
    bench.do("query-status")
    assert bench.session.wants_events
