"""What clients and guests can make the server do, and hold, is bounded."""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.qmp.throttle import RATE, LeakyBucket

from .fake_machine import (
    RUNS,
    STATUS,
    TIMEOUT,
    Running,
    buffered,
    emit_to,
    eventually,
    names,
    running,
)

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.mark.long
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
