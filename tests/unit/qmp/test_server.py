"""The server on real sockets: who gets what, in which order and piece, and what is bounded."""

from __future__ import annotations

import array
import errno
import json
import os
import select
import socket
import stat
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.errors import ConfigError
from pyvirt.qmp import connection, events
from pyvirt.qmp.framing import encode
from pyvirt.qmp.listener import FD, TCP, UNIX, ListenerConfig
from pyvirt.qmp.server import CLIENTS_MAX, Server
from pyvirt.qmp.throttle import RATE, LeakyBucket
from pyvirt.vmm.log import BURST, Log

from ..refusal import refusal
from .fake_machine import TIMEOUT, Bench, Client, FakeHost, Running, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STATUS = b'{"execute":"query-status"}'
RUNS = {"return": {"running": True, "singlestep": False, "status": "running"}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, throttled=False) as server:
        yield server


def names(messages: list[Any]) -> list[str]:
    return [message.get("event", next(iter(message))) for message in messages]


def eventually(check: Any) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Talk.


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


# Several clients.


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


# Limits.


def test_bucket() -> None:
    now = [0.0]
    bucket = LeakyBucket(lambda: now[0])
    assert [bucket.take() for _ in range(RATE + 1)] == [True] * RATE + [False]
    now[0] += 0.05
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]
    now[0] += 1000
    assert sum(bucket.take() for _ in range(2 * RATE)) == RATE


def test_hundred_requests_a_second(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        client, other = server.greeted(), server.greeted()
        start = time.monotonic()
        client.send(b"".join(b'{"execute":"query-name","id":%d}' % n for n in range(400)))
        answers = [client.message() for _ in range(400)]
        # The bucket held 99 more, and leaked while this went on.
        most = RATE - 1 + RATE * (time.monotonic() - start)
        accepted = [answer for answer in answers if "return" in answer]
        assert RATE - 1 <= len(accepted) <= most + 1
        refused = [answer for answer in answers if "error" in answer]
        assert refused
        for answer in refused:
            assert answer["error"] == {
                "class": "OperationThrottled",
                "desc": "More than 100 requests received during 1 second",
            }
        assert [answer["id"] for answer in answers] == list(range(400))
        assert other.ask("query-status") == RUNS
        eventually(lambda: "return" in client.ask("query-name"))


def test_garbage_is_throttled_as_well(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        client = server.greeted()
        client.send(b"{]}" * 300)
        kinds = [client.message()["error"]["class"] for _ in range(300)]
        assert kinds[:50] == ["GenericError"] * 50
        assert "OperationThrottled" in kinds


def test_a_request_is_counted_before_a_look_at_it(tmp_path: Path) -> None:
    """One beyond the limit costs nothing: only a short one is looked at, for its id."""
    with running(tmp_path) as server:
        client = server.greeted()
        client.send(STATUS * 300)
        assert names([client.message() for _ in range(300)])[-1] == "error"
        long = b'{"execute":"query-status","id":1,"x":"' + b"x" * 5000 + b'"}'
        for sent, ids in ((b'{"execute":"query-status","id":1}', {1}), (long, {None})):
            client.send(sent * 300)
            answers = [client.message() for _ in range(300)]
            errors = [answer for answer in answers if "error" in answer]
            throttled = [a for a in errors if a["error"]["class"] == "OperationThrottled"]
            assert throttled
            assert {answer.get("id") for answer in throttled} == ids


def test_no_limit_when_told(server: Running) -> None:
    client = server.greeted()
    client.send(STATUS * 500)
    assert all(client.message() == RUNS for _ in range(500))


def buffered(server: Running) -> int:
    return max(client._size for client in server.server._clients)


def test_requests_wait_for_a_client_that_does_not_read(server: Running) -> None:
    """What such a client makes us hold stays small, however much it asks."""
    slow, other = server.greeted(), server.greeted()
    slow.socket.setblocking(False)
    sent = 0
    while sent < 1 << 26 and select.select([], [slow.socket], [], 1)[1]:
        sent += slow.socket.send(b'{"execute":"query-qmp-schema"}' * 100)
    assert sent < 1 << 26, "its requests are read without end"
    assert other.ask("query-status") == RUNS
    assert buffered(server) < 1 << 20
    slow.socket.settimeout(TIMEOUT)
    asked = sent // len(b'{"execute":"query-qmp-schema"}')
    assert all("return" in slow.message() for _ in range(min(asked, 200)))


def emit_to(server: Running, client: Client, count: int) -> None:
    """Emit events of a kind that is not limited, as fast as the client reads them."""
    for _ in range(count):
        server.server.emit("POWERDOWN", {})
    assert names([client.message() for _ in range(count)]) == ["POWERDOWN"] * count


def test_client_that_does_not_read_its_events_is_dropped(
    server: Running, capfd: pytest.CaptureFixture[str]
) -> None:
    slow, other = server.greeted(), server.greeted()
    for _ in range(200):
        emit_to(server, other, 100)
        if len(server.server._clients) == 1:
            break
    assert len(server.server._clients) == 1
    assert other.ask("query-status") == RUNS
    assert "a client does not read" in capfd.readouterr().err
    while slow.socket.recv(1 << 20):
        pass  # what had been sent; then the end


# Descriptors.


def send_fds(client: Client, data: bytes, *fds: int) -> None:
    rights = array.array("i", fds).tobytes()
    client.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    pipes = [os.pipe() for _ in range(3)]
    yield pipes
    for pair in pipes:
        for fd in pair:
            os.close(fd)


def plug_by_fd(client: Client, names: str, tap: str = "n") -> Any:
    return client.ask("netdev_add", arguments={"id": tap, "fds": names})


@pytest.mark.parametrize("first", [b" ", b"", b"\n"])
def test_descriptor_before_or_with_the_command(
    server: Running, pipes: list[tuple[int, int]], first: bytes
) -> None:
    client = server.greeted()
    getfd = b'{"execute":"getfd","arguments":{"fdname":"fd1"}}'
    send_fds(client, first or getfd, pipes[0][1])
    if first:
        client.send(getfd)
    assert client.message() == {"return": {}}
    assert plug_by_fd(client, "fd1") == {"return": {}}
    (tap,) = server.host.inventory.backends("net")
    (fd,) = tap.resource.fds  # type: ignore[attr-defined]
    os.write(fd, b"x")
    assert os.read(pipes[0][0], 9) == b"x"
    assert "not found" in plug_by_fd(client, "fd1", "m")["error"]["desc"]


def test_descriptors_in_their_order(server: Running, pipes: list[tuple[int, int]]) -> None:
    client = server.greeted()
    send_fds(client, b" ", pipes[0][1], pipes[1][1])
    for name in ("a", "b"):
        assert client.ask("getfd", arguments={"fdname": name}) == {"return": {}}
    assert "Invalid SCM" in client.ask("getfd", arguments={"fdname": "c"})["error"]["desc"]
    assert plug_by_fd(client, "b:a") == {"return": {}}
    (tap,) = server.host.inventory.backends("net")
    for fd, text in zip(tap.resource.fds, (b"B", b"A"), strict=True):  # type: ignore[attr-defined]
        os.write(fd, text)
    assert [os.read(pipes[n][0], 9) for n in (0, 1)] == [b"A", b"B"]


def test_descriptors_do_not_leak(server: Running, pipes: list[tuple[int, int]]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        client = server.greeted()
        for number in range(40):
            send_fds(client, b" ", *(fd for pair in pipes for fd in pair))
            name = {"fdname": f"n{number % 5}"}
            assert client.ask("getfd", arguments=name) == {"return": {}}
        assert client.ask("closefd", arguments={"fdname": "n0"}) == {"return": {}}
        assert "error" in plug_by_fd(client, "n1:n0")
        assert "error" in client.ask(
            "netdev_add", arguments={"id": "n", "fd": "n1", "ifname": "tap0"}
        )
        send_fds(client, b" ", pipes[0][0])
        client.close()
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_names_are_the_connections_own(server: Running, pipes: list[tuple[int, int]]) -> None:
    client, other = server.greeted(), server.greeted()
    send_fds(client, b" ", pipes[0][0])
    assert client.ask("getfd", arguments={"fdname": "x"}) == {"return": {}}
    assert "not found" in other.ask("closefd", arguments={"fdname": "x"})["error"]["desc"]


def test_names_run_out(server: Running, pipes: list[tuple[int, int]]) -> None:
    client = server.greeted()
    answers = []
    for number in range(70):
        send_fds(client, b" ", pipes[0][0])
        answers.append(client.ask("getfd", arguments={"fdname": f"n{number}"}))
    assert [a for a in answers if "error" in a] == answers[64:]


# Listeners.


def test_socket_is_for_its_owner_alone(server: Running) -> None:
    mode = os.stat(server.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert server.server.addresses() == [server.path]


def test_socket_goes_with_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert os.path.exists(server.path)
    assert not os.path.exists(server.path)


def config(path: Path) -> ListenerConfig:
    return ListenerConfig(f"-qmp unix:{path}", UNIX, path=str(path))


def opened(*configs: ListenerConfig) -> Server:
    return Server(FakeHost(), configs, Log())


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with running(tmp_path) as server:
        assert server.greeted().ask("query-status") == RUNS


def test_live_socket_is_refused(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "qmp.sock"
    before = len(os.listdir("/proc/self/fd"))
    assert refusal(lambda: opened(config(path))) == (
        f"-qmp unix:{path}: Address already in use; "
        "name another path, or end the process that listens there"
    )
    # Whether it lives was tried by connecting, and the server has to see that it was.
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)
    assert server.greeted().ask("query-status") == RUNS


def test_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    assert "Address already in use" in refusal(lambda: opened(config(path)))
    assert path.read_text() == "precious"


def test_failure_takes_earlier_listeners_back(tmp_path: Path) -> None:
    good = tmp_path / "good"
    before = len(os.listdir("/proc/self/fd"))
    message = refusal(lambda: opened(config(good), config(tmp_path / "none/sock")))
    assert message == (
        f"-qmp unix:{tmp_path}/none/sock: No such file or directory; "
        "name a path in a folder that can be written"
    )
    assert not good.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_ones_socket_is_not_removed(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        os.unlink(server.path)
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(server.path)
    assert os.path.exists(server.path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_tcp(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        server = opened(ListenerConfig("-qmp tcp", TCP, host=host))
    except ConfigError:
        if host == "::1" and not os.path.exists("/proc/net/if_inet6"):
            return
        raise
    server.start()
    (place,) = server.addresses()
    where, _, port = place.removeprefix("tcp:").rpartition(":")
    client = Client(socket.create_connection((where.strip("[]"), int(port)), TIMEOUT))
    assert "QMP" in client.message()
    assert client.ask("qmp_capabilities") == {"return": {}}
    client.send(STATUS)
    assert client.message() == RUNS
    client.close()
    server.close()
    assert capfd.readouterr().err == ""


@pytest.fixture
def public() -> Iterator[tuple[Callable[[], Client], FakeHost]]:
    """Give what connects to a server on TCP, and its machine."""
    host = FakeHost()
    config = ListenerConfig("-qmp tcp", TCP, host="127.0.0.1", throttled=False)
    server = Server(host, [config], Log())
    host.emit = server.emit
    server.start()
    port = int(server.addresses()[0].rpartition(":")[2])
    clients: list[Client] = []

    def connect() -> Client:
        client = Client(socket.create_connection(("127.0.0.1", port), TIMEOUT))
        clients.append(client)
        assert "QMP" in client.message()
        return client

    yield connect, host
    server.close()
    for client in clients:
        client.close()


def is_closed(client: Client) -> bool:
    """Read to the end; the kernel resets a connection of which something was left unread."""
    try:
        return client.line() == b""
    except ConnectionResetError:
        return True


QUIT = b'{"execute":"quit"}'
HELLO = b'{"execute":"qmp_capabilities"}'


def http(verb: str) -> bytes:
    head = f"{verb} / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n"
    return head.encode() + HELLO + QUIT


@pytest.mark.parametrize(
    "sent",
    [
        *(http(verb) for verb in ("POST", "GET", "PUT", "OPTIONS", "CONNECT")),
        b"\x16\x03\x01" + HELLO + QUIT,  # the beginning of TLS
        b"\r\n\r\n5" + HELLO + QUIT,
        b"[" + HELLO + b"]" + HELLO + QUIT,
        b"{]}" + HELLO + QUIT,
        HELLO + b"GET / HTTP/1.1\r\n" + QUIT,
    ],
)
def test_who_does_not_speak_qmp_on_tcp_is_closed(
    public: tuple[Callable[[], Client], FakeHost], sent: bytes
) -> None:
    connect, host = public
    client, other = connect(), connect()
    client.send(sent)
    if sent.startswith(HELLO):
        assert client.message() == {"return": {}}
    assert is_closed(client)
    assert other.ask("qmp_capabilities") == {"return": {}}
    assert other.ask("query-status") == RUNS
    assert host.calls == []


def test_tcp_asks_for_a_hello_first(public: tuple[Callable[[], Client], FakeHost]) -> None:
    connect, host = public
    client = connect()
    expecting = {
        "class": "CommandNotFound",
        "desc": "Expecting capabilities negotiation with 'qmp_capabilities'",
    }
    for name in ("quit", "no-such-command"):
        assert client.ask(name, id=1) == {"error": expecting, "id": 1}
    refused = client.ask("qmp_capabilities", arguments={"enable": ["oob"]})
    assert refused["error"]["class"] == "GenericError"
    assert client.ask("stop") == {"error": expecting}
    assert host.calls == []
    assert client.ask("qmp_capabilities") == {"return": {}}
    client.send(b"{]}")
    assert client.message()["error"]["class"] == "GenericError"
    assert client.ask("query-status") == RUNS


def test_refused_clients_fill_no_log(
    public: tuple[Callable[[], Client], FakeHost], capfd: pytest.CaptureFixture[str]
) -> None:
    connect, _ = public
    for n in range(4 * BURST):
        client = connect()
        client.send(b"%c\n" % (ord("A") + n % 26))
        assert is_closed(client)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == BURST
    assert lines[0] == (
        "pyvirt: QMP: a client of TCP does not speak QMP: "
        "expected a request, an object in braces, found 'A'; it is closed"
    )


def test_tcp_for_the_world_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    opened(ListenerConfig("-qmp tcp:0.0.0.0:1", TCP, host="0.0.0.0")).close()
    assert capfd.readouterr().err == (
        "pyvirt: -qmp tcp:0.0.0.0:1: whoever reaches this address can command the machine\n"
    )


def test_tcp_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        wanted = ListenerConfig(f"-qmp tcp::{port}", TCP, host="127.0.0.1", port=port)
        assert refusal(lambda: opened(wanted)) == (
            f"-qmp tcp::{port}: Address already in use; "
            "name another port, or end the process that listens there"
        )


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_tcp_address_of_somebody_else(host: str) -> None:
    message = refusal(lambda: opened(ListenerConfig("-qmp tcp", TCP, host=host, port=1)))
    assert message.endswith("; name an address of this host, as 127.0.0.1:4444")


def test_inherited_connection() -> None:
    ours, theirs = socket.socketpair()
    server = opened(ListenerConfig("-qmp fd", FD, fd=theirs.detach()))
    server.start()
    client = Client(ours)
    assert "QMP" in client.message()
    assert client.ask("query-status") == RUNS
    server.close()
    assert client.line() == b""
    client.close()


def test_inherited_listener(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        server = opened(ListenerConfig("-qmp fd", FD, fd=listener.detach()))
    server.start()
    for _ in range(2):
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(path)
        client = Client(connected)
        assert "QMP" in client.message()
        client.close()
    server.close()


def test_inherited_descriptors_that_will_not_do() -> None:
    mend = "hand over a stream socket that listens or is connected"
    reader, writer = os.pipe()
    datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with socket.socket(socket.AF_UNIX) as idle:
        for fd, reason in (
            (reader, errno.ENOTSOCK),
            (datagrams[0].fileno(), errno.EPROTOTYPE),
            (idle.fileno(), errno.ENOTCONN),
            (1 << 19, errno.EBADF),
        ):
            given = ListenerConfig(f"-qmp fd:{fd}", FD, fd=fd)
            expected = f"-qmp fd:{fd}: {os.strerror(reason)}; {mend}"
            assert refusal(lambda given=given: opened(given)) == expected  # type: ignore[misc]
    # They are still ours.
    os.close(reader)
    os.close(writer)
    for end in datagrams:
        end.close()


# Life and death.


def test_close_without_start(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened(config(tmp_path / "sock")).close()
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before


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


# What a guest can cause.


def test_a_guest_that_panics_for_ever_is_told_once_a_second(server: Running) -> None:
    clients = [server.greeted() for _ in range(6)]

    def panic(n: int) -> None:
        for _ in range(5000):
            server.server.emit("GUEST_PANICKED", {"action": f"run{n}"})

    began = time.monotonic()
    threads = [threading.Thread(target=panic, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    late = server.greeted()
    assert late.ask("query-status") == RUNS
    for thread in threads:
        thread.join()
    server.server.emit("GUEST_PANICKED", {"action": "last"})
    most = 2 + time.monotonic() - began
    for client in clients:
        told: list[Any] = []
        while not told or told[-1]["data"] != {"action": "last"}:
            told.append(client.message())
        assert set(names(told)) == {"GUEST_PANICKED"}
        assert len(told) <= most


# Faults of our own.


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
