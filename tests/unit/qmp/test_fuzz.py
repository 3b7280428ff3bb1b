"""A hundred thousand streams of random bytes and mangled requests: none kills or wedges the server.

Each stream is followed by the byte 0xff and a request that must be answered, alone and in order.
A failure names the seed; PYVIRT_FUZZ_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any

from ...effort import tries
from .fake_machine import running
from .hostile_clients import encode, requests

if TYPE_CHECKING:
    from pathlib import Path

    from .fake_machine import Client

STREAMS = tries(50_000)
AT_ONCE = 100  # streams in one write
RECONNECT = 20  # writes on one connection
SECONDS = 240

TOKENS = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"\r\n", b" ", b"\x00", b"\xff",
    b"\x80", b"null", b"true", b"-1", b"1e9", b"1e999", b"NaN", b'"\\ud800"', b'"execute"',
    b'"arguments"', b'"id"', b'"device_add"', b'"stop"', b'"cont"', b'"x"', b'"0x1"',
    b"{" * 99, b'"' + b"y" * 999,
)  # fmt: skip


QUERIES: list[tuple[str, dict[str, Any]]] = [
    ("query-block", {}),
    ("x-query-stats", {"target": "vcpu"}),
    ("query-mem-gpa", {"gpa": "1000"}),
    ("x-read-memory", {"val": 4096, "size": 8, "virtual": True, "cpu-index": 1}),
    ("x-query-registers", {}),
    ("inject-nmi", {}),
    ("human-monitor-command", {"command-line": "info block"}),
]


def stream(rng: random.Random, known: list[bytes]) -> bytes:
    """Return one stream: random bytes, tokens in any order, or requests with some bytes changed."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.randrange(24))
    if kind < 0.6:
        return b"".join(rng.choices(TOKENS, k=rng.randrange(12)))
    data = bytearray(b"".join(rng.choices(known, k=rng.randrange(1, 3))))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(3))
        if not data:
            break
    return bytes(data)


def read_to_probe(client: Client, probe: str) -> None:
    """Read answers, all well formed, to that of the probe."""
    while True:
        message = client.message()
        assert len({"return", "error", "event"} & message.keys()) == 1
        if message.get("id") == probe:
            assert set(message["return"]) == {"running", "singlestep", "status"}
            return


def test_random_streams(tmp_path: Path) -> None:
    seed = int(os.environ.get("PYVIRT_FUZZ_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"PYVIRT_FUZZ_SEED={seed}")
    rng = random.Random(seed)
    image = tmp_path / "image"
    image.write_bytes(bytes(512))
    known = requests(str(image))
    known += [encode({"execute": name, "arguments": words}) for name, words in QUERIES]
    deadline = time.monotonic() + SECONDS
    with running(tmp_path, throttled=False) as server:
        watcher = server.greeted()
        before = len(os.listdir("/proc/self/fd"))
        client = None
        for batch in range(STREAMS // AT_ONCE):
            assert time.monotonic() < deadline
            if batch % RECONNECT == 0:
                if client is not None:
                    client.close()
                client = server.greeted()
            probes = [f"{batch}.{number}" for number in range(AT_ONCE)]
            assert client is not None
            client.send(
                b"".join(
                    stream(rng, known) + b'\xff{"execute":"query-status","id":"%b"}' % p.encode()
                    for p in probes
                )
            )
            for probe in probes:
                read_to_probe(client, probe)
            if batch % RECONNECT == 0:
                # The others are served meanwhile; this one has the events to read, too.
                watcher.send(b'{"execute":"query-status","id":"w"}')
                read_to_probe(watcher, "w")
        assert client is not None
        client.close()
        for name in ("d", "n"):
            watcher.send(b'{"execute":"device_del","arguments":{"id":"%b"}}' % name.encode())
        watcher.send(b'{"execute":"query-status","id":"end"}')
        read_to_probe(watcher, "end")
        # The image and the tap may still be registered; nothing else is open.
        deadline = time.monotonic() + 30
        while len(os.listdir("/proc/self/fd")) > before + 2:
            assert time.monotonic() < deadline, os.listdir("/proc/self/fd")
            time.sleep(0.01)
