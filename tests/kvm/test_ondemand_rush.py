"""Slots on demand: devices that the guest is to let go of, and many requests at a time."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.qmp.listener import UNIX, ListenerConfig
from pyvirt.qmp.server import Server
from pyvirt.vmm import demand, layout, slots
from pyvirt.vmm.end import End
from pyvirt.vmm.log import Log

from .ondemand import Client, bind, start, transports
from .support import MAILBOX, Guest
from .test_life import wait_until

pytestmark = pytest.mark.any_kvm

BURST = 200
MEND = "Send device_del for one."


class Driver:
    """A guest that does by a test's hand what it is asked for."""

    def __init__(self, guest: Guest) -> None:
        assert guest.demand
        self._port = guest.demand.port

    def asked(self) -> int:
        """Wait until there is something on offer, and return that."""
        wait_until(lambda: self._port.is_waiting, "it is asked for something")
        return self._port.read(0, 4)

    def take(self) -> None:
        """Do what is asked for: only say so."""
        self._port.write(4, 4, self.asked())

    def ask(self, user: Client, act: Callable[[], None], command: str, **arguments: Any) -> Any:
        """Act while a request waits; return the answer to that."""
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(user.ask(command, **arguments)))
        thread.start()
        act()
        thread.join()
        return answers[0]

    def plug(self, user: Client, name: str) -> None:
        user.image(name)
        plug = {"id": name, "driver": "virtio-blk-mmio"}
        assert self.ask(user, self.take, "device_add", **plug) == {}


def test_a_guest_lets_go_of_a_device_before_it_goes(on_demand: Any) -> None:
    guest, user = on_demand("spin")
    start(guest)
    driver = Driver(guest)
    for name in ("a", "b"):
        driver.plug(user, name)
    leaving = guest.slots.transports[1]
    bind(leaving)

    def let_go() -> None:
        value = driver.asked()
        assert value & layout.PLUG_LEAVER == 2, "slot 1"
        assert leaving.device.backend == "b", "its driver may need it still"
        assert user.events == []
        leaving.write(r.STATUS, 4, 0)
        guest.demand.port.write(4, 4, value)

    assert driver.ask(user, let_go, "device_del", id="b") == {}
    assert user.events == ["DEVICE_DELETED"]
    assert [one.device.backend for one in guest.slots.transports] == ["a"]


def with_three(on_demand: Any) -> tuple[Any, Client, Driver]:
    """Return a guest with disks a, b and c, its user and its driver."""
    guest, user = on_demand("spin")
    start(guest)
    driver = Driver(guest)
    for name in ("a", "b", "c"):
        driver.plug(user, name)
    return guest, user, driver


def test_a_guest_that_does_not_let_go_is_not_asked_again(
    on_demand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, user, driver = with_three(on_demand)
    for one in guest.slots.transports:
        bind(one)
    with monkeypatch.context() as patch:
        patch.setattr(demand, "LIMIT_S", 0.3)
        assert user.ask("device_del", id="a") == {}
    assert not guest.demand.port.is_waiting
    # With a limit that would show.
    assert user.ask("device_del", id="b") == {}
    assert [one.device.backend for one in guest.slots.transports] == ["", "", "c"]
    # The guest after that is another.
    guest.reset()
    assert driver.ask(user, driver.take, "device_del", id="c") == {}
    assert transports(guest) == 0


def test_one_that_has_let_go_before_is_asked_again(
    on_demand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, user, driver = with_three(on_demand)
    assert driver.ask(user, driver.take, "device_del", id="a") == {}
    with monkeypatch.context() as patch:
        patch.setattr(demand, "LIMIT_S", 0.3)
        assert user.ask("device_del", id="b") == {}
    assert driver.ask(user, driver.take, "device_del", id="c") == {}


def test_a_paused_guest_is_not_asked(on_demand: Any) -> None:
    guest, user = on_demand("spin")
    start(guest)
    Driver(guest).plug(user, "d")
    bind(guest.slots.transports[0])
    guest.pause()
    assert user.ask("device_del", id="d") == {}
    assert [one.device.backend for one in guest.slots.transports] == [""]
    assert not guest.demand.port.is_waiting


def test_slots_are_used_in_turn(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    seen = []
    for _ in range(slots.DEMAND_SLOTS_MAX + 2):
        assert user.plug("d") == {}
        seen += [guest.slots.slot_of(one.device) for one in guest.slots.transports]
        assert user.ask("device_del", id="d") == {}
    assert seen == [*range(slots.DEMAND_SLOTS_MAX), 0, 1]


class Rush:
    """Requests that are sent all at once, and their answers."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self._number = 0  # of the next answer
        assert "QMP" in json.loads(self._lines.readline())

    def send(self, *requests: tuple[str, dict[str, Any]]) -> None:
        data = [
            json.dumps({"execute": name, "arguments": arguments, "id": number}).encode()
            for number, (name, arguments) in enumerate(requests)
        ]
        # Beside the reader, as neither socket has room for all.
        threading.Thread(target=self._socket.sendall, args=(b"\n".join(data),)).start()

    def answers(self, count: int) -> list[Any]:
        """Return what the next requests return, or the texts of their errors, in order."""
        found: list[Any] = []
        while len(found) < count:
            message = json.loads(self._lines.readline())
            if "event" not in message:
                assert message["id"] == self._number
                self._number += 1
                found.append(message.get("return", message.get("error", {}).get("desc")))
        return found

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def serving(user: Client, folder: Path) -> Iterator[Callable[[], Rush]]:
    """Serve a machine's monitor on a socket; yield what makes a client."""
    path = str(folder / "qmp.sock")
    server = Server(user.host, [ListenerConfig("-qmp", UNIX, path=path, throttled=False)], Log())
    user.host.tell(server.emit, server.go_on)
    clients: list[Rush] = []

    def connect() -> Rush:
        clients.append(Rush(path))
        return clients[-1]

    server.start()
    try:
        yield connect
    finally:
        server.close()
        for client in clients:
            client.close()


def image(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    path = folder / name
    path.touch()
    os.truncate(path, 8192)
    return "blockdev-add", {"node-name": name, "file": {"driver": "file", "filename": str(path)}}


def plug(name: str) -> tuple[str, dict[str, Any]]:
    return "device_add", {"id": name, "driver": "virtio-blk-mmio"}


def test_a_burst_on_one_connection(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand()
    start(guest)
    files = set(os.listdir("/proc/self/fd"))
    with serving(user, tmp_path) as connect:
        rush = connect()
        names = [f"d{number}" for number in range(BURST)]
        rush.send(
            *(one for name in names for one in (image(tmp_path, name), plug(name))),
            *(("device_del", {"id": name}) for name in names),
            *(("blockdev-del", {"node-name": name}) for name in names),
        )
        pairs = rush.answers(2 * BURST)
        added, plugged = pairs[::2], pairs[1::2]
        most = slots.DEMAND_SLOTS_MAX
        assert plugged[:most] == added[:most] == [{}] * most
        full = f"A maximum of {most} block replaceable devices are supported. {MEND}"
        assert set(plugged[most:]) == {full, "Failed to find device configuration."}
        assert plugged[most] == full
        full = f"A maximum of {2 * most} replaceable devices are supported. {MEND}"
        assert [one for one in added if one] == [full] * (BURST - 2 * most)
        gone = rush.answers(BURST)
        assert gone == [{}] * most + [f"Device {name} not found" for name in names[most:]]
        rush.answers(BURST)
    wait_until(lambda: guest.read_words(MAILBOX, 1) == [2 * most], "all that was acknowledged")
    assert transports(guest) == 0
    assert list(user.host.inventory.backends("blk")) == []
    assert set(os.listdir("/proc/self/fd")) == files


def test_bursts_on_several_connections(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand()
    start(guest)
    with serving(user, tmp_path) as connect:
        rushes = [connect() for _ in range(8)]
        each = BURST // len(rushes)
        for number, rush in enumerate(rushes):
            names = [f"d{number}-{count}" for count in range(each)]
            rush.send(*(one for name in names for one in (image(tmp_path, name), plug(name))))
        answers = [rush.answers(2 * each) for rush in rushes]
        taken = sum(answer[1::2].count({}) for answer in answers)
        assert taken == transports(guest) == slots.DEMAND_SLOTS_MAX
        wait_until(lambda: guest.read_words(MAILBOX, 1) == [taken], "it has as many")
        acknowledged = {
            f"d{number}-{count}"
            for number, answer in enumerate(answers)
            for count, one in enumerate(answer[1::2])
            if one == {}
        }
        assert {one.device.backend for one in guest.slots.transports} == acknowledged


def test_a_burst_at_a_guest_that_never_answers_holds_up_nobody(
    on_demand: Any, tmp_path: Path
) -> None:
    guest, user = on_demand("spin")
    start(guest)
    with serving(user, tmp_path) as connect:
        rushes = [connect() for _ in range(4)]
        for number, rush in enumerate(rushes):
            rush.send(image(tmp_path, f"d{number}"), plug(f"d{number}"))
        wait_until(lambda: transports(guest) == 4, "all four wait")
        other = connect()
        other.send(*[("query-status", {})] * BURST)
        assert {one["status"] for one in other.answers(BURST)} == {"running"}
        assert transports(guest) == 4
        guest.finish(End("host"))
        for rush in rushes:
            assert rush.answers(2)[1] == "the machine has ended; start another"
        assert transports(guest) == 0


def test_the_monitors_end_takes_back_what_waits(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand("spin")
    start(guest)
    with serving(user, tmp_path) as connect:
        connect().send(image(tmp_path, "d"), plug("d"))
        wait_until(lambda: transports(guest) == 1, "it waits")
    assert transports(guest) == 0
    assert not guest.demand.port.is_waiting
    (backend,) = user.host.inventory.backends("blk")
    assert backend.device is None
