"""Back ends that break the rules: each costs its device, in one line, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import PyvirtError

from .back_end import BackEnd
from .bench import VhostUserBench, block, wait
from .conftest import Hurry, Make

Answer = Callable[[BackEnd, int, bytes], None]


def raw(flags: int, size: int, *, request: int = 0) -> Answer:
    """Say a header of one's own, and nothing else."""
    return lambda b, asked, _: b.send(p.HEADER.pack(request or asked, flags, size))


def number(value: int) -> Answer:
    return lambda b, asked, _: b.number(asked, value)


def with_files(count: int, payload: bytes = bytes(8)) -> Answer:
    def answer(back_end: BackEnd, asked: int, _: bytes) -> None:
        fds = tuple(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
        back_end.say(asked, payload, fds)
        for fd in fds:
            os.close(fd)

    return answer


def half(back_end: BackEnd, asked: int, _: bytes) -> None:
    """Break off in the middle of a message."""
    back_end.send(p.HEADER.pack(asked, 5, 8) + b"abc")
    back_end._drop()


def silence(_back_end: BackEnd, _asked: int, _payload: bytes) -> None:
    """Never answer."""


def config(offset: int, data: bytes) -> Answer:
    return lambda b, asked, _: b.say(asked, p.config(offset, data))


def inflight(*fields: int, fds: int = 1) -> Answer:
    return with_files(fds, p.INFLIGHT.pack(*fields))


def misbehave(back_end: BackEnd, request: int, answer: Answer) -> None:
    back_end.answers[request] = lambda payload: answer(back_end, request, payload)


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        pytest.param(p.GET_FEATURES, silence, "does not answer", marks=pytest.mark.long),
        (p.GET_FEATURES, half, "has gone"),
        (p.GET_FEATURES, raw(5, 0), "answers message 1 with 0 bytes"),
        (p.GET_FEATURES, raw(5, p.PAYLOAD_MAX + 1), "of 1025 bytes, 1024 at most"),
        (p.GET_FEATURES, raw(5, 0xFFFFFFFF), "of 4294967295 bytes"),
        (p.GET_FEATURES, raw(6, 8), "says message 1 with flags 0x6"),
        (p.GET_FEATURES, raw(0x15, 8), "says message 1 with flags 0x15"),
        (p.GET_FEATURES, raw(1, 0), "where 1 is to be answered"),
        (p.GET_FEATURES, raw(5, 0, request=99), "says message 99 where 1"),
        (p.GET_FEATURES, with_files(1), "with 1 open files, not 0"),
        (p.GET_FEATURES, with_files(40), "more open files than a message can have"),
        pytest.param(p.GET_PROTOCOL_FEATURES, silence, "does not answer", marks=pytest.mark.long),
        (p.SET_OWNER, number(5), "refuses message 3 with 5"),
        (p.GET_CONFIG, lambda b, asked, _: b.say(asked), "refuses to tell its configuration"),
        (p.GET_CONFIG, config(0, bytes(59)), "answers message 24 with 71 bytes"),
        (p.GET_CONFIG, config(4, bytes(60)), "another part of its configuration"),
    ],
)
def test_at_the_start(
    make: Make, path: Path, hurry: Hurry, request_: int, answer: Answer, said: str
) -> None:
    misbehave(make(), request_, answer)
    hurry(answer is silence)
    with pytest.raises(PyvirtError) as info:
        block(path)
    message = str(info.value)
    assert message.startswith(f"-chardev id=c: {path}: the back end ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("request_", "answer", "said"),
    [
        (p.SET_MEM_TABLE, silence, "does not answer"),
        (p.SET_MEM_TABLE, half, "has gone"),
        (p.SET_VRING_KICK, number(1), "refuses message 12 with 1"),
        (p.SET_VRING_ENABLE, raw(5, 0), "answers message 18 with 0 bytes"),
        (p.GET_INFLIGHT_FD, inflight(4096, 0, 1, 16, fds=0), "with 0 open files, not 1"),
        (p.GET_INFLIGHT_FD, inflight(4096, 0, 1, 16, fds=2), "with 2 open files, not 1"),
        (p.GET_INFLIGHT_FD, inflight(0, 0, 1, 16), "does not fit the queues"),
        (p.GET_INFLIGHT_FD, inflight(1 << 40, 0, 1, 16), "does not fit the queues"),
        (p.GET_INFLIGHT_FD, inflight(4096, 0, 2, 16), "does not fit the queues"),
        (p.GET_INFLIGHT_FD, inflight(4096, 0, 1, 32), "does not fit the queues"),
    ],
)
def test_when_a_driver_begins(
    make: Make,
    path: Path,
    hurry: Hurry,
    request_: int,
    answer: Answer,
    said: str,
) -> None:
    back_end = make()
    misbehave(back_end, request_, answer)
    bench = VhostUserBench(block(path))
    hurry(answer is silence)
    assert bench.start() & r.NEEDS_RESET
    assert len(bench.log) == 1
    assert bench.log[0].startswith("vhost-user-blk d0: its back end ")
    assert said in bench.log[0]
    # One that comes to its senses is taken at the next start.
    back_end.answers.clear()
    hurry(False)
    bench.set(r.STATUS, 0)
    assert bench.start() == 0xF, (bench.log, back_end.error)
    assert bench.ask(b"x") == b"x"
    bench.close()


def unasked(back_end: BackEnd) -> None:
    back_end.number(p.GET_FEATURES, 1)


def rubbish(back_end: BackEnd) -> None:
    back_end.send(bytes(range(100)))


def too_long(back_end: BackEnd) -> None:
    assert back_end.channel
    back_end.channel.sendall(p.HEADER.pack(2, 1, 1 << 30))


def files(back_end: BackEnd) -> None:
    assert back_end.channel
    fd = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(back_end.channel, [p.message(p.BACKEND_CONFIG_CHANGE)], [fd])
    os.close(fd)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (unasked, "says message 1 unasked"),
        (rubbish, "says message 50462976 with flags"),
        (too_long, "of 1073741824 bytes"),
        (files, "sends open files with message 2"),
    ],
)
def test_while_it_serves(make: Make, path: Path, act: Callable[[BackEnd], None], said: str) -> None:
    back_end = make()
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"x")
    act(back_end)
    wait(lambda: bench.is_broken)
    assert len(bench.report()) == 1
    assert said in bench.log[0]
    # Whoever may still write to the buffers of requests is not to meet another answer in them.
    bench.offer(b"y")
    assert not bench.device.stats()["connected"]  # type: ignore[attr-defined]
    bench.set(r.STATUS, 0)
    assert bench.start() == 0xF
    assert bench.ask(b"x") == b"x"
    bench.close()


@pytest.mark.parametrize("answer", [number(0), lambda b, _, __: b.number(99, 0), half])
def test_a_wrong_end_of_the_queues_is_an_end(make: Make, path: Path, answer: Answer) -> None:
    back_end = make()
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"x")
    misbehave(back_end, p.GET_VRING_BASE, answer)
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0
    bench.close()


def test_a_flood_of_changes_keeps_nobody(make: Make, path: Path) -> None:
    back_end = make()
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"x")
    assert back_end.channel
    back_end.channel.setblocking(False)
    told = p.message(p.BACKEND_CONFIG_CHANGE)
    for _ in range(2000):
        try:
            back_end.channel.send(told)
        except BlockingIOError:
            break
    assert bench.ask(b"y") == b"y"
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0
    bench.close()


def test_a_file_that_lets_writers_wait_keeps_nobody(make: Make, path: Path) -> None:
    """Status flags of an eventfd are shared with whoever has it."""
    back_end = make()
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"x")
    kick = back_end._rings[0].kick
    back_end._rings[0].ring = None
    misbehave(back_end, p.GET_VRING_BASE, lambda b, asked, payload: b.say(asked, payload))
    os.set_blocking(kick, True)
    os.eventfd_write(kick, (1 << 64) - 2)
    bench.set(r.STATUS, 0)
    assert bench.start() == 0xF
    assert bench.ask(b"y") == b"y"
    back_end.answers.clear()
    bench.close()
