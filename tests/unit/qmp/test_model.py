"""Any sequence of plugging, by several clients, against a model of ids, slots and backends."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ...effort import tries
from .fake_machine import Running

IDS = st.sampled_from(["a", "b", "c", "d"])
IMAGES = st.sampled_from(["0.img", "1.img", "2.img", "none.img"])
TAPS = st.sampled_from(["tap0", "tap1", "eth0"])
KINDS = st.sampled_from(["blk", "net"])
SLOTS = {"blk": 6, "net": 2}


class Plugging(RuleBasedStateMachine):
    """The server with its socket, and what it should hold."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        for name in ("0.img", "1.img", "2.img"):
            (folder / name).write_bytes(bytes(512))
        self.server = Running(folder, throttled=False)
        self.clients = [self.server.greeted(), self.server.greeted()]
        self.backends: dict[str, tuple[str, str]] = {}  # id: kind, file or tap
        self.devices: dict[str, tuple[str, int, str]] = {}  # id: kind, slot, backend
        self.withdrawn: set[tuple[str, str]] = set()  # kind and id of what went with its device

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.close()
            self.folder.cleanup()

    def ask(self, who: int, execute: str, **arguments: Any) -> bool:
        """Return whether a command was done."""
        answer = self.clients[who].ask(execute, arguments=arguments)
        if "event" in answer:
            answer = self.clients[who].message()
        assert ("return" in answer) != ("error" in answer)
        return "return" in answer

    def in_use(self, thing: str) -> bool:
        return any(thing == held for _, held in self.backends.values())

    @rule(who=st.integers(0, 1), id=IDS, image=IMAGES)
    def add_disk(self, who: int, id: str, image: str) -> None:  # noqa: A002
        done = self.ask(who, "blockdev-add", **{
            "node-name": id, "file": {"driver": "file", "filename": f"{self.folder.name}/{image}"}
        })  # fmt: skip
        assert done == (id not in self.backends and not self.in_use(image) and image != "none.img")
        if done:
            self.register(id, "blk", image)

    @rule(who=st.integers(0, 1), id=IDS, tap=TAPS)
    def add_nic(self, who: int, id: str, tap: str) -> None:  # noqa: A002
        done = self.ask(who, "netdev_add", id=id, ifname=tap)
        assert done == (id not in self.backends and not self.in_use(tap) and tap != "eth0")
        if done:
            self.register(id, "net", tap)

    def register(self, id: str, kind: str, thing: str) -> None:  # noqa: A002
        self.backends[id] = kind, thing
        self.withdrawn -= {("blk", id), ("net", id)}

    @rule(who=st.integers(0, 1), id=IDS, kind=KINDS)
    def remove(self, who: int, id: str, kind: str) -> None:  # noqa: A002
        if kind == "blk":
            done = self.ask(who, "blockdev-del", **{"node-name": id})
        else:
            done = self.ask(who, "netdev_del", id=id)
        used = any(backend == id for _, _, backend in self.devices.values())
        there = self.backends.get(id, ("",))[0] == kind
        gone = id not in self.backends and (kind, id) in self.withdrawn
        assert done == ((there and not used) or gone)
        if there and done:
            del self.backends[id]
        self.withdrawn -= {(kind, id)} if gone else set()

    @rule(
        who=st.integers(0, 1), id=IDS, kind=KINDS, slot=st.none() | st.integers(0, 7),
        backend=st.none() | IDS,
    )  # fmt: skip
    def plug(self, who: int, id: str, kind: str, slot: int | None, backend: str | None) -> None:  # noqa: A002
        given: dict[str, Any] = {"id": id, "driver": f"virtio-{kind}-mmio"}
        if slot is not None:
            given["addr"] = hex(slot)
        if backend is not None:
            given["drive" if kind == "blk" else "netdev"] = backend
        done = self.ask(who, "device_add", **given)
        taken = {place for of, place, _ in self.devices.values() if of == kind}
        free = [place for place in range(SLOTS[kind]) if place not in taken]
        if slot is None:
            slot = free[0] if free else 99
        wanted = id if backend is None else backend
        used = any(one == wanted for _, _, one in self.devices.values())
        assert done == (
            self.backends.get(wanted, ("",))[0] == kind
            and not used
            and id not in self.devices
            and slot in free
        )
        if done:
            self.devices[id] = kind, slot, wanted

    @rule(who=st.integers(0, 1), id=IDS)
    def unplug(self, who: int, id: str) -> None:  # noqa: A002
        done = self.ask(who, "device_del", id=id)
        assert done == (id in self.devices)
        if done:
            kind, _, backend = self.devices.pop(id)
            del self.backends[backend]
            self.withdrawn.add((kind, backend))
            assert self.clients[1 - who].message()["data"] == {"device": id, "path": id}

    @precondition(lambda self: hasattr(self, "server"))
    @invariant()
    def agrees(self) -> None:
        expected: dict[str, dict[int, str]] = {"blk": {}, "net": {}}
        for name, (kind, slot, _) in self.devices.items():
            expected[kind][slot] = name
        assert self.server.host.plugged() == expected
        assert {b.id for k in SLOTS for b in self.server.host.inventory.backends(k)} == set(
            self.backends
        )
        taps = {thing for kind, thing in self.backends.values() if kind == "net"}
        assert self.server.host.taps == taps
        listed = self.clients[0].ask("query-block")["return"]
        assert {one["device"] for one in listed} == set(expected["blk"].values())


Plugging.TestCase.settings = settings(max_examples=tries(100), stateful_step_count=40)
test_plugging = Plugging.TestCase
