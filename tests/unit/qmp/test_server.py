"""The server on real sockets: who gets what, in which order and piece."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.qmp import connection, events
from pyvirt.qmp import server as server_module
from pyvirt.qmp.framing import encode
from pyvirt.qmp.server import CLIENTS_MAX
from pyvirt.qmp.version import GREETING

from ..file_limit import descriptor_limit
from .fake_machine import (
    RUNS,
    STATUS,
    TIMEOUT,
    Bench,
    Client,
    Running,
    buffered,
    emit_to,
    eventually,
    names,
    running,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_greeting(server: Running) -> None:
    line = server.connect().line()
    assert line.endswith(b"]}}\r\n")
    version = json.loads(line)["QMP"]["version"]
    assert json.loads(line)["QMP"]["capabilities"] == []
    assert version["qemu"] == {"micro": 1, "minor": 0, "major": 5}
    assert isinstance(version["package"], str)


def test_commands_before_any_hello(server: Running) -> None:
    client = server.connect()
    client.message()
    client.send(STATUS)
    assert client.message() == RUNS


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"   "])
def test_requests_without_and_with_newlines(server: Running, end: bytes) -> None:
    client = server.greeted()
    for _ in range(3):
        client.send(STATUS + end)
        assert client.message() == RUNS


def test_request_byte_by_byte(server: Running) -> None:
    client = server.greeted()
    for at in range(len(STATUS)):
        client.send(STATUS[at : at + 1])
    assert client.message() == RUNS


def test_several_requests_in_one_write(server: Running) -> None:
    client = server.greeted()
    client.send(b"".join(b'{"execute":"query-name","id":%d}' % n for n in range(500)))
    assert [client.message()["id"] for _ in range(500)] == list(range(500))


@pytest.mark.parametrize("cut", [False, True])
def test_client_that_closes_its_write_side(server: Running, cut: bool) -> None:
    client = server.greeted()
    client.send(STATUS + STATUS + (STATUS[:-1] if cut else b""))
    client.socket.shutdown(socket.SHUT_WR)
    found = client.messages()
    assert found[:2] == [RUNS, RUNS]
    ends = [{"error": {"class": "GenericError", "desc": "EOF while parsing the request"}}]
    assert found[2:] == (ends if cut else [])


def test_bad_bytes_do_not_close(server: Running) -> None:
    client = server.greeted()
    for bad in (b"hello\n", b"{]}", b'{"execute":"' + b"x" * 70_000 + b'"}', b"\x00\n"):
        client.send(bad)
        assert client.message()["error"]["class"] == "GenericError"
        client.send(STATUS)
        assert client.message() == RUNS


def test_events_then_the_answer_in_one_send(server: Running) -> None:
    client = server.greeted()
    client.send(b'{"execute":"stop","id":1}')
    piece = client.socket.recv(65536)
    event, answer, rest = piece.split(b"\r\n")
    assert json.loads(event)["event"] == "STOP"
    assert json.loads(answer) == {"return": {}, "id": 1}
    assert rest == b""


@pytest.mark.parametrize("events_last", [False, True])
def test_order_of_events(tmp_path: Path, events_last: bool) -> None:
    with running(tmp_path, events_last=events_last) as server:
        client = server.greeted()
        for name, event in (("stop", "STOP"), ("cont", "RESUME")):
            client.send(b'{"execute":"%s"}' % name.encode())
            order = ["return", event] if events_last else [event, "return"]
            assert names([client.message(), client.message()]) == order


@pytest.mark.parametrize(
    ("command", "event"), [("system_powerdown", "POWERDOWN"), ("system_reset", "RESET")]
)
def test_answer_comes_first(server: Running, command: str, event: str) -> None:
    client = server.greeted()
    assert client.ask(command) == {"return": {}}
    assert client.message()["event"] == event


def test_quit_answers_then_says_so_then_closes(server: Running) -> None:
    client, other = server.greeted(), server.greeted()
    client.send(b'{"execute":"quit"}')
    assert server.host.quitting.wait(TIMEOUT)
    server.server.close()
    assert names(client.messages()) == ["return", "SHUTDOWN"]
    (shutdown,) = other.messages()
    assert shutdown["data"] == {"guest": False, "reason": "host-qmp-quit"}


def test_disk_by_the_book(server: Running, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    client = server.greeted()
    file = {"driver": "file", "filename": str(image)}
    given: dict[str, Any] = {"node-name": "drive-0", "file": file}
    assert client.ask("blockdev-add", arguments=given) == {"return": {}}
    given = {"id": "drive-0", "driver": "virtio-blk-mmio", "addr": "0x1"}
    assert client.ask("device_add", arguments=given) == {"return": {}}
    assert server.host.plugged()["blk"] == {1: "drive-0"}
    event = client.ask("device_del", arguments={"id": "drive-0"})
    assert event["event"] == "DEVICE_DELETED"
    assert event["data"] == {"device": "drive-0", "path": "drive-0"}
    assert set(event["timestamp"]) == {"seconds", "microseconds"}
    assert client.message() == {"return": {}}


def test_each_client_sees_all_events(server: Running) -> None:
    clients = [server.greeted() for _ in range(5)]
    clients[0].send(b'{"execute":"stop"}')
    for client in clients:
        assert client.message()["event"] == "STOP"
    assert clients[0].message() == {"return": {}}
    server.server.emit("GUEST_PANICKED", {"action": "run"})
    for client in clients:
        assert client.message()["data"] == {"action": "run"}


def test_no_event_before_the_first_command(server: Running) -> None:
    silent = server.connect()
    silent.message()
    other = server.greeted()
    other.send(b'{"execute":"stop"}')
    assert names([other.message(), other.message()]) == ["STOP", "return"]
    assert silent.ask("qmp_capabilities") == {"return": {}}
    other.send(b'{"execute":"cont"}')
    assert silent.message()["event"] == "RESUME"


def test_nothing_comes_between_hello_and_its_answer(server: Running) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    served = connection.Connection(theirs, Bench().monitor)
    client = Client(ours)
    client.message()
    client.send(b'{"execute":"qmp_capabilities"}')
    served.read()
    served.serve(lambda _: [encode(events.event("STOP", {}))])
    assert names([client.message(), client.message()]) == ["return", "STOP"]
    served.close()
    client.close()


def test_what_a_client_takes_in_pieces_comes_as_it_was() -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for one in (ours, theirs):
        one.setblocking(False)
    served = connection.Connection(theirs, Bench().monitor)
    sent = [encode({"return": f"{n:x}" * 5000}) for n in range(16)]
    for message in sent:
        served.send(message)
    assert not served.is_idle(), "there is more than the socket takes"
    expected = encode(GREETING) + b"".join(sent)
    got = bytearray()
    while len(got) < len(expected):
        served.write()
        with suppress(BlockingIOError):
            got += ours.recv(1000)
    assert bytes(got) == expected
    assert served.is_idle()
    served.close()
    ours.close()


def test_first_command_gets_its_own_event(server: Running) -> None:
    client = server.connect()
    client.message()
    client.send(b'{"execute":"stop"}')
    assert names([client.message(), client.message()]) == ["STOP", "return"]


def test_clients_come_and_go(server: Running) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        client = server.connect()
        client.message()
        client.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert server.greeted().ask("query-status") == RUNS


def test_too_many_clients(server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    clients = [server.greeted() for _ in range(CLIENTS_MAX)]
    assert server.connect().line() == b""
    assert f"-qmp: {CLIENTS_MAX} clients, no more" in capfd.readouterr().err
    clients.pop().close()
    eventually(lambda: server.connect().line() != b"")


def test_close_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    with running(tmp_path, throttled=False) as server:
        client = server.greeted()
        client.send(b'{"execute":"query-qmp-schema"}' * 120)
        eventually(lambda: buffered(server) > connection._OUTPUT_HIGH)
    assert not server.server._clients


def test_last_words_reach_a_slow_client(tmp_path: Path) -> None:
    with running(tmp_path, throttled=False) as server:
        client, other = server.greeted(), server.greeted()
        for _ in range(30):
            emit_to(server, other, 100)
        server.server.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.extend(client.messages()))
        reader.start()
        server.server.close()
        reader.join(TIMEOUT)
        assert len(found) == 3001
        assert found[-1]["event"] == "SHUTDOWN"


def test_events_from_many_threads(server: Running) -> None:
    client = server.greeted()

    def emit() -> None:
        for _ in range(30):
            server.server.emit("POWERDOWN", {})

    threads = [threading.Thread(target=emit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names([client.message() for _ in range(240)]) == ["POWERDOWN"] * 240
    assert client.ask("query-status") == RUNS


def test_a_fault_while_a_client_is_served_costs_that_client(
    server: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client, other = server.greeted(), server.greeted()
    with monkeypatch.context() as patch:
        patch.setattr(connection.Connection, "serve", lambda *_: 1 // 0)
        client.send(STATUS)
        assert client.messages() == []
    assert other.ask("query-status") == RUNS
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("pyvirt: QMP: ZeroDivisionError: integer division or modulo by zero (")
    assert line.endswith("; please report; it is closed")


def test_a_fault_of_the_servers_loop_lets_the_clients_go(
    server: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    client = server.greeted()
    monkeypatch.setattr(server.server._pending, "take", lambda: 1 // 0)
    server.server.emit("POWERDOWN", {})
    assert client.messages() == []
    eventually(lambda: not os.path.exists(server.path))
    server.server.emit("POWERDOWN", {})  # into the void
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("pyvirt: QMP server: ZeroDivisionError: ")


# What waits for the guest.

RNG = b'{"execute":"device_add","arguments":{"id":"r","driver":"virtio-rng-device"},"id":1}'


@pytest.fixture
def silent(server: Running) -> Running:
    """A server whose guest does not take what is plugged."""
    server.host.on_demand = server.host.is_silent = True
    return server


def take(server: Running) -> None:
    """Let the guest do what it was asked for."""
    server.host.is_silent = False
    server.server.go_on()


def test_nobody_else_waits_for_a_guest(silent: Running) -> None:
    first, second = silent.greeted(), silent.greeted()
    first.send(RNG + STATUS)
    for _ in range(3):
        second.send(STATUS)
        assert second.message() == RUNS
    second.send(b'{"execute":"stop"}')
    assert names([second.message(), second.message()]) == ["STOP", "return"]
    assert first.message()["event"] == "STOP", "events are not for those alone who are answered"
    assert silent.host.others == {}
    take(silent)
    assert first.message() == {"return": {}, "id": 1}
    assert first.message()["return"]["status"] == "paused"
    assert list(silent.host.others) == ["r"]


def test_a_device_that_is_coming_is_nobody_elses(silent: Running, image: str) -> None:
    first, second = silent.greeted(), silent.greeted()
    disk = {"node-name": "d", "file": {"driver": "file", "filename": image}}
    assert first.ask("blockdev-add", arguments=disk) == {"return": {}}
    plug = {"id": "d", "driver": "virtio-blk-mmio"}
    first.send(json.dumps({"execute": "device_add", "arguments": plug}).encode())
    eventually(lambda: silent.server._waiting)
    for command, arguments, text in (
        ("device_add", plug, "Device d is plugged already; send device_del first"),
        ("device_del", {"id": "d"}, "Device d is being plugged or unplugged; wait for the answer"),
        ("blockdev-del", {"node-name": "d"}, "d is in use by device d"),
    ):
        assert text in second.ask(command, arguments=arguments)["error"]["desc"]
    take(silent)
    assert first.message() == {"return": {}}
    silent.host.is_silent = True
    second.send(b'{"execute":"device_del","arguments":{"id":"d"}}')
    eventually(lambda: silent.server._waiting)
    answer = first.ask("device_del", arguments={"id": "d"})
    assert "is being plugged or unplugged" in answer["error"]["desc"]
    take(silent)
    assert names([second.message(), second.message()]) == ["DEVICE_DELETED", "return"]


def test_what_a_client_asked_for_that_has_gone_is_done(silent: Running) -> None:
    first, second = silent.greeted(), silent.greeted()
    first.send(RNG)
    eventually(lambda: silent.server._waiting)
    first.close()
    second.send(STATUS)
    assert second.message() == RUNS
    take(silent)
    eventually(lambda: len(silent.server._clients) == 1)
    assert list(silent.host.others) == ["r"]


def test_a_client_that_only_waits_for_its_answer(silent: Running) -> None:
    client = silent.greeted()
    client.send(RNG)
    client.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: silent.server._waiting)
    take(silent)
    assert client.messages() == [{"return": {}, "id": 1}]


def test_more_requests_than_there_is_room_for_wait_with_their_client(silent: Running) -> None:
    first, second = silent.greeted(), silent.greeted()
    first.send(RNG)
    first.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            first.socket.send(STATUS * 100)
    second.send(STATUS)
    assert second.message() == RUNS
    first.socket.settimeout(TIMEOUT)
    take(silent)
    assert first.message()["id"] == 1
    assert first.message() == RUNS


def test_the_end_takes_back_what_waits(silent: Running) -> None:
    client = silent.greeted()
    client.send(RNG)
    eventually(lambda: silent.server._waiting)
    silent.server.close()
    assert client.messages() == []
    assert silent.host.others == {}


def test_without_descriptors_those_who_are_there_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who comes then waits, and nobody with him."""
    monkeypatch.setattr(server_module, "_BREATH_S", 3600.0)
    with running(tmp_path, throttled=False) as server:
        client = server.greeted()
        with socket.socket(socket.AF_UNIX) as late, descriptor_limit(0):
            late.connect(server.path)
            eventually(lambda: server.server._resting)
            for _ in range(20):
                assert client.ask("query-status") == RUNS
    assert capfd.readouterr().err == "pyvirt: -qmp: Too many open files\n"
    assert not os.path.exists(server.path)


def test_who_came_without_descriptors_is_greeted_when_there_are_some(server: Running) -> None:
    with socket.socket(socket.AF_UNIX) as late:
        late.settimeout(TIMEOUT)
        with descriptor_limit(0):
            late.connect(server.path)
            eventually(lambda: server.server._resting)
        assert b"QMP" in late.recv(4096)
    assert server.greeted().ask("query-status") == RUNS
