"""Hostile clients of the fork server, as that of `pyvirt template`: it serves on, keeps nothing."""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pyvirt import __version__
from pyvirt.harness.vm import fork_server
from pyvirt.harness.vm.fork_server import ForkServer

from ...effort import tries

SECONDS = 30.0
STREAMS = tries(1000)
CLIENTS = 500
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 70, 0.5, "", "a", "a,b", "/", "/\ud800", "/a\0b", "/dev/null"),
    *("/" + "x" * 300, "/" + "x" * 5000, "\ud800", [], ["a"], ["\ud800"], ["a\0b"], [[]], {}),
    *({"version": "0", "package": "/", "umask": 0, "env": {}}, {"version": 1, "env": {"a=": 1}}),
    *({"a": [0]}, {"a": [63]}, {"\ud800": [64]}, [0], [0, 0], [1, 2, 3], ["-help"] * 99),
)
CALLER: dict[str, Any] = {
    "version": __version__,
    "package": str(Path(fork_server.__file__).parents[2]),
    "umask": 18,
    "env": {"PATH": "/bin"},
}
NAMES: tuple[str, ...] = (
    "stream",
    "run",
    "cwd",
    "streams",
    "fds",
    "template",
    "hold",
    "spares",
    "give",
    "switch",
)
NAMES += ("read", "ping", "caller")
KNOWN = (
    {"ping": True},
    {"stream": "key"},
    {"run": ["-nonsense"], "cwd": "/", "streams": {"key": [5]}},
    {"run": ["-nonsense"], "cwd": "/"},
    {"run": [], "cwd": "/", "template": "t"},
    {"hold": "t", "spares": 1},
    {"give": "t"},
    {"read": "/proc/version"},
    {"run": ["-nonsense"], "cwd": "/", "caller": CALLER},
)


# A stream that no run asks for is kept for so long; the server's own patience is longer.
PATIENCE_S = 3
PROGRAM = (
    f"from pyvirt.cli.server import server; server.PATIENCE_S = {PATIENCE_S}; "
    "from pyvirt.cli.main import main; main()"
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    start = (sys.executable, "-P", "-c", PROGRAM)
    monkeypatch.setattr(fork_server, "command", lambda *words: [*start, *words])
    with closing(ForkServer()) as server:
        yield server


def line(rng: random.Random) -> bytes:
    """Return a first line: what is understood, or not quite, or no JSON."""
    kind = rng.random()
    if kind < 0.1:
        return rng.randbytes(rng.randrange(99)) + b"\n"
    if kind < 0.15:
        return b"[" * rng.choice((99, 60_000)) + b"\n"
    message: dict[str, Any] = dict(rng.choice(KNOWN)) if kind < 0.7 else {}
    for name in rng.sample(NAMES, rng.choice((0, 1, 1, 2, 3))):
        message[name] = rng.choice(VALUES)
    data = bytearray(json.dumps(message).encode() + b"\n")
    if rng.random() < 0.2:
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.1 else bytes(data)


def open_one(server: ForkServer, rng: random.Random) -> socket.socket:
    """Connect, and say something, with a few descriptors."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(server.path)
    client.setblocking(False)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            fds = [null] * rng.choice((0, 0, 0, 0, 1, 2, 60))
            socket.send_fds(client, [line(rng)], fds)
    except (BlockingIOError, ConnectionError):
        pass  # it does not read on, or has gone
    finally:
        os.close(null)
    return client


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.01)


def kept(server: ForkServer) -> tuple[int, str]:
    """Return how many descriptors it has open, and its children."""
    pid = server._process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), children


def test_streams(server: ForkServer) -> None:
    seed = int(os.environ.get("PYVIRT_FUZZ_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"PYVIRT_FUZZ_SEED={seed}")
    rng = random.Random(seed)
    before = kept(server)
    clients: list[socket.socket] = []
    for number in range(STREAMS):
        clients.append(open_one(server, rng))
        # Several at once: some lines want those of others.
        while len(clients) > rng.randrange(9):
            clients.pop(rng.randrange(len(clients))).close()
        if number % 50 == 0:
            assert fork_server.answers(server.path, SECONDS)
    for client in clients:
        client.close()
    assert fork_server.answers(server.path, SECONDS)
    wait_for(lambda: kept(server) == before, "all is given back")
    assert server._messages.read_text() == ""


def test_five_hundred_at_once(server: ForkServer) -> None:
    """That say nothing: who comes then is served, and those that come later as well."""
    before = kept(server)
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(server.path)
        assert fork_server.answers(server.path, SECONDS)
    wait_for(lambda: kept(server) == before, "all is given back")
