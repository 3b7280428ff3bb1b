"""One connection to a back end: whatever it says, the front end has an answer or an error."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.connection import Connection, GoneError, TooLateError
from pyvirt.devices.vhost_user.layout import Region, Ring
from pyvirt.devices.vhost_user.session import Session
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import BackendError

from .back_end import FEATURES, PROTOCOL

SIZE = 60
# The answers of an honest back end with everything, in the order of a device's life.
HONEST: list[tuple[int, bytes, int]] = [
    (p.GET_FEATURES, p.U64.pack(FEATURES), 0),
    (p.GET_PROTOCOL_FEATURES, p.U64.pack(PROTOCOL), 0),
    (p.SET_OWNER, bytes(8), 0),
    (p.GET_QUEUE_NUM, p.U64.pack(4), 0),
    (p.SET_BACKEND_REQ_FD, bytes(8), 0),
    (p.GET_CONFIG, p.config(0, bytes(SIZE)), 0),
    (p.SET_FEATURES, bytes(8), 0),
    (p.SET_MEM_TABLE, bytes(8), 0),
    (p.GET_INFLIGHT_FD, p.INFLIGHT.pack(4096, 0, 1, 16), 1),
    (p.SET_INFLIGHT_FD, bytes(8), 0),
    *(
        (request, bytes(8), 0)
        for request in (
            *(p.SET_VRING_NUM, p.SET_VRING_BASE, p.SET_VRING_ADDR),
            *(p.SET_VRING_CALL, p.SET_VRING_KICK, p.SET_VRING_ENABLE),
        )
    ),
    (p.GET_FEATURES, p.U64.pack(FEATURES), 0),
    (p.GET_VRING_BASE, p.STATE.pack(0, 7), 0),
]


def say(stream: socket.socket, data: bytes, files: int = 0) -> None:
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(files)]
    # The other end may have closed already.
    with contextlib.suppress(OSError):
        socket.send_fds(stream, [data], fds)
    for fd in fds:
        os.close(fd)


def live(stream: socket.socket, limit: float = 0.05) -> None:
    """Go through a device's life on a connection, within `limit` seconds; BackendError."""
    until = time.monotonic() + limit
    session = Session(Connection(stream), PROTOCOL, until)
    inflight = None
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    try:
        assert len(session.config(SIZE, until)) == SIZE
        ring = Ring(0, 16, base=0, desc=0, avail=4096, used=8192, kick_fd=fd, call_fd=fd)
        region = Region(0, 1 << 20, fd, 0)
        inflight = session.start(r.VERSION_1, [region], [ring], 1, None, until)
        session.stop(until)
        session.look()
    finally:
        os.close(fd)
        if inflight is not None:
            inflight.close()
        session.close()


def header(request: int, flags: int, payload: bytes) -> bytes:
    return p.HEADER.pack(request, flags, len(payload)) + payload


def test_an_honest_one_is_understood() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    for request, payload, files in HONEST:
        say(theirs, header(request, 5, payload), files)
    live(ours, 10)
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, len(HONEST) - 1),
    request=st.sampled_from([None, 0, 1, 24, 99, 0xFFFFFFFF]),
    flags=st.sampled_from([5, 5, 5, 13, 1, 0, 4, 6, 7, 21, 0xFFFFFFFF]),
    payload=st.none() | st.binary(max_size=100),
    files=st.sampled_from([0, 1, 2, 9]),
    rest=st.binary(max_size=40),
    ends=st.booleans(),
)
def test_any_other_is_an_error_and_nothing_stays(
    at: int,
    request: int | None,
    flags: int,
    payload: bytes | None,
    files: int,
    rest: bytes,
    ends: bool,
) -> None:
    """An answer is exchanged for another, and what comes after it is anything."""
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    for known, answer, count in HONEST[:at]:
        say(theirs, header(known, 5, answer), count)
    honest = HONEST[at]
    given = honest[1] if payload is None else payload
    say(theirs, header(honest[0] if request is None else request, flags, given), files)
    if rest:
        say(theirs, rest)
    if ends:
        theirs.shutdown(socket.SHUT_WR)
    with contextlib.suppress(BackendError):
        live(ours)
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_silence_and_an_end_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(TooLateError):
        live(ours)
    theirs.close()
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(GoneError):
        live(ours, 10)
    ours.close()


def test_an_end_of_the_queues_that_is_late_is_heard_later() -> None:
    ours, theirs = socket.socketpair()
    for request, payload, files in HONEST[:-1]:
        say(theirs, header(request, 5, payload), files)
    until = time.monotonic() + 10
    session = Session(Connection(ours), PROTOCOL, until)
    session.config(SIZE, until)
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    ring = Ring(0, 16, base=0, desc=0, avail=4096, used=8192, kick_fd=fd, call_fd=fd)
    kept = session.start(r.VERSION_1, [Region(0, 4096, fd, 0)], [ring], 1, None, until)
    assert kept
    for _ in range(3):
        with pytest.raises(TooLateError):
            session.stop(time.monotonic())
    # It has been asked once; a read ends at each message with files.
    asked = b""
    theirs.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            asked += theirs.recv(1 << 16)
    assert asked.count(p.message(p.GET_VRING_BASE, p.STATE.pack(0, 0))) == 1
    say(theirs, header(p.GET_VRING_BASE, 5, p.STATE.pack(0, 7)))
    session.stop(time.monotonic())
    kept.close()
    os.close(fd)
    session.close()
    theirs.close()
