"""What hostile clients of a monitor do: conversations, each on a connection of its own.

A stream is a few moves, in pieces of any size, and an end: the client goes at once, with answers
unread, or sends no more and reads to the end. What is whole among them gets somewhere: the commands
of the table with arguments of the wrong kind and size, and those that a caller knows.
"""

from __future__ import annotations

import json
import os
import random
import socket
from typing import TYPE_CHECKING, Any

from pyvirt.qmp.table import BY_NAME, TABLE

from .fake_machine import TIMEOUT, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .fake_machine import Client, Running

# What ends the machine, or writes a file of any name.
SPARED = {"quit", "memsave", "pmemsave", "dump-guest-memory"}
IDS: tuple[Any, ...] = (0, -1, 1 << 64, 1.5, "", "\ud800", None, True, [], {}, [[["x"]]], "i" * 999)
VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 4096, (1 << 63) - 1, 1 << 63, 1 << 64, 10**400, 0.5, 1e300, -0.0),
    *("", "0x0", "0x5", "-1", "9" * 40, "d", "n", "e\u0301", "\0", "/nonexistent/x", "x" * 5000),
    *(None, True, False, [], {}, [1, "x"], {"driver": "file"}, [{}] * 50),
)
# As they are, for no encoder writes them.
RAW = (
    *(b"1e999", b"-1e999", b"NaN", b"Infinity", b"9" * 5000, b"1e-999", b"00", b"+1", b".5"),
    *(b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\\ud800"', b'"\\u00"', b'"\\x"'),
    *(b'"\t"', b'"\n"', b"0x10"),
)  # fmt: skip


def requests(image: str) -> list[bytes]:
    """Return whole requests of a disk's and a NIC's life, and of the machine's."""
    disk = {"node-name": "d", "file": {"driver": "file", "filename": image}}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("blockdev-add", disk),
        ("blockdev-del", {"node-name": "d"}),
        ("device_add", {"id": "d", "driver": "virtio-blk-mmio", "addr": "0x1"}),
        ("device_del", {"id": "d"}),
        ("netdev_add", {"id": "n", "ifname": "tap0"}),
        ("device_add", {"id": "n", "driver": "virtio-net-mmio", "addr": "0x0"}),
        ("device_del", {"id": "n"}),
        ("getfd", {"fdname": "f"}),
        ("stop", {}),
        ("cont", {}),
        ("system_reset", {}),
    ]
    return [encode({"execute": name, "arguments": words}) for name, words in asked]


def encode(request: object) -> bytes:
    return json.dumps(request).encode()


ASKED = ("query-status", "query-block", "query-qmp-schema", "query-commands", "query-cpus-fast")
QUERIES = [encode({"execute": name}) for name in ASKED]


class Stream:
    """One conversation: pieces to send, each with so many descriptors, and how it ends."""

    def __init__(
        self, rng: random.Random, known: Sequence[bytes], *, only_asks: bool = False
    ) -> None:
        """Draw it; `known` are whole requests. One that `only_asks` leaves a real guest alone."""
        self._only_asks = only_asks
        self._rng = rng
        self._known = known
        self.ids: list[int] | None = None  # of its requests, if there is nothing else in it
        self.is_read = rng.random() < 0.3
        self.descriptors = rng.choice((0, 0, 0, 0, 0, 0, 1, 16, 40))
        kinds: list[Callable[[], bytes]] = [
            *(self._whole, self._whole, self._mangled, self._cut, self._deep, self._raw, self._any),
            *(self._command, self._command, self._out_of_band, self._hello, self._long, self._junk),
        ]
        if rng.random() < 0.1:
            self.data = self._pipelined()
        else:
            self.data = b"".join(rng.choice(kinds)() for _ in range(rng.randrange(1, 5)))

    def pieces(self) -> list[bytes]:
        """Cut it anywhere."""
        count = self._rng.choice((0, 0, 0, 1, 2, 5))
        cuts = sorted(self._rng.randrange(len(self.data) + 1) for _ in range(count))
        ends = [*cuts, len(self.data)]
        return [self.data[a:b] for a, b in zip([0, *cuts], ends, strict=True) if a < b]

    def _whole(self) -> bytes:
        return self._rng.choice(self._known)

    def _pipelined(self) -> bytes:
        self.is_read, self.ids = True, list(range(self._rng.randrange(1, 60)))
        return b"".join(b'{"execute":"query-status","id":%d}' % number for number in self.ids)

    def _mangled(self) -> bytes:
        data, rng = bytearray(self._whole()), self._rng
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(3))
        return bytes(data)

    def _cut(self) -> bytes:
        data = self._whole()
        return data[: self._rng.randrange(len(data))]

    def _deep(self) -> bytes:
        depth = self._rng.choice((2, 63, 64, 65, 5000, 30_000))
        begin, end = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"execute":[', b"]}")))
        return begin * depth + (b"" if self._rng.random() < 0.3 else b"1" + end * depth)

    def _raw(self) -> bytes:
        value = self._rng.choice(RAW)
        name = self._rng.choice((b"execute", b"id", b"arguments", b"x"))
        return b'{"execute":"query-status","%b":%b}' % (name, value)

    def _any(self) -> bytes:
        words = {self._rng.choice(("execute", "id", "arguments", "x")): self._value()}
        return encode(words | self._rng.choice(({}, {"execute": "query-status"})))

    def _value(self) -> Any:
        return self._rng.choice(VALUES)

    def _command(self) -> bytes:
        spared = SPARED if not self._only_asks else BY_NAME.keys() - set(ASKED)
        command = self._rng.choice([one for one in TABLE if one.name not in spared])
        names = ["id", "driver", "addr", "x", "val", "size", "node-name", "file", "cpu-index"]
        names += [field.name for field in command.arguments.fields] * 3
        words = {name: self._value() for name in self._rng.sample(names, self._rng.randrange(4))}
        return encode({"execute": command.name, "arguments": words, "id": self._rng.choice(IDS)})

    def _out_of_band(self) -> bytes:
        words = {"exec-oob": self._rng.choice(("query-status", "", 5)), "id": self._rng.choice(IDS)}
        return encode(words | self._rng.choice(({}, {"execute": "query-status"}, {"control": {}})))

    def _hello(self) -> bytes:
        junk: tuple[Any, ...] = ([], ["oob"], ["oob"] * 2, [1], "oob", None, {}, ["x"] * 500)
        enable = self._rng.choice(junk)
        return encode({"execute": "qmp_capabilities", "arguments": {"enable": enable}})

    def _long(self) -> bytes:
        length = self._rng.choice((4095, 4096, 65_000, 66_000))
        return b'{"execute":"query-status","x":"%b"}' % (b"y" * length)

    def _junk(self) -> bytes:
        return self._rng.choice((b"\xff", b"\n", b"}", b"]", b"\0", self._rng.randbytes(24)))


def talk(path: str, stream: Stream) -> None:
    """Have one conversation; AssertionError when an answer is none."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)  # may wait for those before it
        client.settimeout(TIMEOUT)
        _send(client, stream)
        if stream.is_read:
            client.shutdown(socket.SHUT_WR)
            _check(stream, _read(client))


def _send(client: socket.socket, stream: Stream) -> None:
    """Send as much as the server takes of a client that does not read."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        fds = [null] * stream.descriptors
        for piece in stream.pieces():
            try:
                sent = socket.send_fds(client, [piece], fds, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionError):
                return
            fds = []
            if sent < len(piece):
                return
    finally:
        os.close(null)


def _read(client: socket.socket) -> bytes:
    data = b""
    try:
        while more := client.recv(1 << 16):
            data += more
    except ConnectionError:
        pass  # closed with what it had not read
    return data


def _check(stream: Stream, data: bytes) -> None:
    messages = [json.loads(line) for line in data.split(b"\r\n")[:-1]]
    for message in messages:
        assert len({"QMP", "return", "error", "event"} & message.keys()) == 1, message
    if stream.ids is not None:
        answered = [one["id"] for one in messages if "return" in one]
        assert answered == stream.ids


def converse(
    server: Running,
    image: str,
    count: int,
    seed: int,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Have so many conversations, and between them one client that is answered; nothing stays.

    `tell` is told how many there have been.
    """
    rng, known = random.Random(seed), requests(image) + QUERIES
    watcher = server.greeted()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(count):
        talk(server.path, Stream(rng, known))
        if number % 20 == 0:
            _see_answer(watcher, number)
        tell(number + 1)
    _see_answer(watcher, "end")
    eventually(lambda: len(server.server._clients) == 1)
    assert server.server._waiting == set()
    server.host.inventory.close()  # what they have registered
    # The last of them may be accepted only now.
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def _see_answer(client: Client, probe: object) -> None:
    """Ask for the machine's state; read the events, and answers of before, up to it."""
    client.send(encode({"execute": "query-status", "id": probe}))
    while (message := client.message()).get("id") != probe:
        assert len({"return", "error", "event"} & message.keys()) == 1
    assert set(message["return"]) == {"running", "singlestep", "status"}
