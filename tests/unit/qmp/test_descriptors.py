"""Descriptors that come with requests: whose they are, and for how long."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from .fake_machine import (
    Client,
    Running,
    eventually,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


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
