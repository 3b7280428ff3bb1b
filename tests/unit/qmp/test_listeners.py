"""Where the server listens: Unix sockets, TCP, and what it inherits."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from pyvirt.errors import ConfigError
from pyvirt.qmp.listener import FD, TCP, UNIX, ListenerConfig
from pyvirt.qmp.server import Server
from pyvirt.vmm.log import BURST, Log

from ..refusal import refusal
from .fake_machine import (
    RUNS,
    STATUS,
    TIMEOUT,
    Client,
    FakeHost,
    Running,
    eventually,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


def test_close_without_start(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened(config(tmp_path / "sock")).close()
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == before
