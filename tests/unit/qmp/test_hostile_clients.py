"""Clients of a monitor that mean it harm, hundreds at once, and one that is served meanwhile.

`python -m tests.long qmp` has a hundred thousand streams of these; test_fuzz.py goes by requests
and bytes on a connection that lasts.
"""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pyvirt.qmp import connection, framing
from pyvirt.qmp.server import CLIENTS_MAX

from ...effort import tries
from .fake_machine import RUNS, STATUS, TIMEOUT, eventually
from .hostile_clients import converse

if TYPE_CHECKING:
    import pytest

    from .fake_machine import Client, Running

STREAMS = tries(2000)
CLIENTS = 500
# For one that does not read: up to where its requests wait, and the answer that went beyond.
HELD_MAX = connection._OUTPUT_HIGH + (256 << 10)


def test_streams(server: Running, image: str) -> None:
    seed = int(os.environ.get("PYVIRT_FUZZ_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"PYVIRT_FUZZ_SEED={seed}")
    converse(server, image, STREAMS, seed)


def test_five_hundred_at_once(server: Running, capfd: pytest.CaptureFixture[str]) -> None:
    """As many as there may be are served, the others are let go, and then there is room again."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(CLIENTS)]
        for client in clients:
            client.connect(server.path)  # may wait for those before it
            client.settimeout(TIMEOUT)
        greetings = [client.recv(4096) for client in clients]
        assert [greeting != b"" for greeting in greetings].count(True) == CLIENTS_MAX
        assert len(server.server._clients) == CLIENTS_MAX
    assert f"{CLIENTS_MAX} clients, no more" in capfd.readouterr().err
    eventually(lambda: not server.server._clients)
    assert server.greeted().ask("query-status") == RUNS


def held(server: Running) -> int:
    """Return the bytes that the server holds of all its clients: what came and what is to go."""
    return sum(
        client._size + client._decoder._size + len(client._decoder._input)
        for client in server.server._clients
    )


def flood(client: Client, data: bytes) -> None:
    """Send for as long as the server takes it."""
    client.socket.setblocking(False)
    try:
        while True:
            client.socket.send(data)
    except (BlockingIOError, ConnectionError):
        return


def test_what_is_held_for_clients_that_never_read_is_bounded(server: Running) -> None:
    """Answers, events and requests that are never whole, of as many as there may be."""
    reader = server.greeted()
    slow = [server.greeted() for _ in range(CLIENTS_MAX - 1)]
    for number, client in enumerate(slow):
        unfinished = b'{"execute":"' + b"x" * 4096
        flood(client, b'{"execute":"query-qmp-schema"}' * 20 if number % 2 else unfinished)
    each = HELD_MAX + framing.REQUEST_MAX + 4096
    for _ in range(3):
        assert reader.ask("query-status") == RUNS
        assert held(server) <= CLIENTS_MAX * each
    for _ in range(2000):
        server.server.emit("POWERDOWN", {})
    reader.send(STATUS)
    while reader.message() != RUNS:
        pass
    assert held(server) <= CLIENTS_MAX * (connection.OUTPUT_MAX + each)
