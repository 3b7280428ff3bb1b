"""The agent's client against guests that say what no agent would, or nothing."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.harness.agent import protocol
from pyvirt.harness.agent.client import Agent
from pyvirt.harness.agent.process import Process
from pyvirt.harness.agent.protocol import AgentError, AgentTimeoutError, Decoder, Frame, Kind

PATIENCE = 30.0
MIB = 1 << 20
HELLO = Frame(0, Kind.HELLO, struct.pack("<IQ", protocol.VERSION, 0) + b"6.1")
EXIT = struct.pack("<IIQ", 0, 0, 1000)
ENDED = "agent: the connection to the guest has ended"


class Guest:
    """The guest's side, played by the test."""

    def __init__(self) -> None:
        ours, self.link = socket.socketpair()
        self.link.settimeout(PATIENCE)
        self.agent = Agent(ours)
        self._decoder = Decoder()
        self._frames: list[Frame] = []

    def say(self, *frames: Frame) -> None:
        self.link.sendall(b"".join(map(protocol.encode, frames)))

    def hear(self, kind: Kind) -> Frame:
        """Return the next frame of a kind."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.kind == kind:
                    return frame
            self._frames = self._decoder.feed(self.link.recv(65536))

    def spawned(self, **options: Any) -> Process:
        process = self.agent.spawn(["cmd"], **options)
        assert self.hear(Kind.SPAWN).id == process.id
        return process


@pytest.fixture
def guest() -> Iterator[Guest]:
    one = Guest()
    yield one
    one.agent.close()
    one.link.close()
    assert not [t for t in threading.enumerate() if t.name == "agent"]


def refused(guest: Guest, process: Process, why: str) -> None:
    """See that the connection ends, for everybody, with a reason."""
    with pytest.raises(AgentError, match=why):
        process.wait(PATIENCE)
    assert guest.agent.closed.wait(PATIENCE)
    with pytest.raises(AgentError, match=why):
        guest.agent.spawn(["true"])
    with pytest.raises(AgentError, match=why):
        guest.agent.wait_ready(PATIENCE, boot=9)


def test_a_guest_that_says_nothing(guest: Guest) -> None:
    with pytest.raises(AgentTimeoutError, match=r"did not answer within 0\.05 s; the initramfs"):
        guest.agent.wait_ready(0.05)
    with pytest.raises(AgentTimeoutError, match=r"no answer to a ping within 0\.05 s"):
        guest.agent.ping(0.05)
    process = guest.agent.spawn(["some", "command"])
    with pytest.raises(AgentTimeoutError, match=r"agent: some command: not ended within 0\.05 s"):
        process.wait(0.05)
    with pytest.raises(AgentTimeoutError, match=r"agent: exists /x: not ended"):
        guest.agent.exists("/x", timeout=0.05)


def test_a_guest_that_takes_nothing_blocks_nobody(guest: Guest) -> None:
    """Requests far beyond what a socket holds are left to the reader thread."""
    running = [guest.agent.spawn(["x" * MIB], stdin=bytes(MIB)) for _ in range(8)]
    with pytest.raises(AgentTimeoutError):
        running[0].wait(0.05)
    ids = [guest.hear(Kind.SPAWN).id for _ in running]
    assert ids == [process.id for process in running]


def test_a_guest_that_ends_wakes_everybody(guest: Guest) -> None:
    process = guest.spawned()
    waiter = threading.Timer(0.1, guest.link.close)
    waiter.start()
    refused(guest, process, ENDED)
    waiter.join()


def test_half_a_frame_and_then_the_end(guest: Guest) -> None:
    process = guest.spawned()
    guest.link.sendall(protocol.encode(Frame(1, Kind.STDOUT, b"out"))[:-1])
    guest.link.close()
    refused(guest, process, ENDED)
    assert process.stdout == b""


def test_the_connection_closed_on_this_side(guest: Guest) -> None:
    process = guest.spawned()
    guest.agent.close()
    refused(guest, process, "closed on this side")


def test_the_agents_last_words(guest: Guest) -> None:
    process = guest.spawned()
    guest.say(Frame(0, Kind.FAILED, b"no\nroot\xff"))
    guest.link.close()
    refused(guest, process, "agent: the guest's agent gave up: no root\N{REPLACEMENT CHARACTER}$")


@pytest.mark.parametrize(
    ("wire", "why"),
    [
        (b"login: root\n", "sent no frame"),
        (protocol.encode(Frame(1, Kind.SPAWN, b"x")), "the guest sent SPAWN"),
        (protocol.encode(Frame(1, Kind.EXIT, b"x")), "sent EXIT with 1 bytes"),
        (protocol.encode(Frame(1, Kind.STARTED)), "sent STARTED with 0 bytes"),
        (protocol.encode(Frame(1, Kind.CREDIT, b"\1\0\0\0")), "more credit than there is"),
        (protocol.encode(Frame(0, Kind.HELLO)), "sent HELLO with 0 bytes"),
        (protocol.encode(Frame(0, Kind.HELLO, bytes(12))), "speaks version 0 of the protocol"),
    ],
)
def test_a_breach_ends_the_connection(guest: Guest, wire: bytes, why: str) -> None:
    process = guest.spawned(stdin=b"")
    guest.link.sendall(wire)
    refused(guest, process, why)


@given(st.binary(max_size=100))
@settings(max_examples=50, deadline=None)
def test_no_bytes_hang_a_waiter(data: bytes) -> None:
    one = Guest()
    process = one.spawned(stdin=b"")
    one.link.sendall(data)
    one.link.close()
    with pytest.raises(AgentError):
        process.wait(PATIENCE)
    one.agent.close()


def test_what_is_for_nobody_is_ignored(guest: Guest) -> None:
    process = guest.spawned()
    for number in (0, 77, 2**32 - 1):
        guest.say(
            Frame(number, Kind.STDOUT, b"x"),
            Frame(number, Kind.CREDIT, bytes(4)),
            Frame(number, Kind.PONG),
            Frame(number, Kind.EXIT, EXIT),
        )
    guest.say(HELLO, Frame(process.id, Kind.STDOUT, b"mine"), Frame(process.id, Kind.EXIT, EXIT))
    assert process.wait(PATIENCE)[:3] == (0, b"mine", b"")
    assert guest.agent.wait_ready(PATIENCE).release == "6.1"
    guest.say(Frame(process.id, Kind.STDOUT, b"more"), Frame(process.id, Kind.EXIT, b"bad"))
    guest.say(HELLO)
    guest.agent.wait_ready(PATIENCE, boot=2)
    assert process.stdout == b"mine"


def test_a_flood_is_kept_within_bounds(guest: Guest) -> None:
    process = guest.spawned(keep=100_000)
    flood = b"".join(b"%09d\n" % n for n in range(6000))
    for _ in range(200):
        guest.say(Frame(process.id, Kind.STDERR, flood))
    guest.say(Frame(process.id, Kind.STDERR, b"the end"), Frame(process.id, Kind.EXIT, EXIT))
    result = process.wait(PATIENCE)
    whole = flood * 200 + b"the end"
    assert result.stderr == whole[:50_000] + whole[-50_000:]
    assert result.dropped == len(whole) - 100_000


@given(st.lists(st.binary(max_size=30), max_size=20), st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_what_is_kept_is_the_first_and_the_last(parts: list[bytes], keep: int) -> None:
    process = Process(
        1, ["x"], lambda _: None, stdin=None, open_stdin=False, keep=keep, on_output=None
    )
    for part in parts:
        process.receive(Frame(1, Kind.STDOUT, part))
    process.receive(Frame(1, Kind.EXIT, EXIT))
    whole = b"".join(parts)
    half = keep // 2
    result = process.wait(0)
    if len(whole) <= 2 * half:
        assert (result.stdout, result.dropped) == (whole, 0)
    else:
        assert result.stdout == whole[:half] + whole[len(whole) - half :]
        assert result.dropped == len(whole) - 2 * half


def test_a_guest_that_boots_anew(guest: Guest) -> None:
    early = guest.spawned()
    guest.say(HELLO)
    assert guest.agent.wait_ready(PATIENCE).release == "6.1"
    assert early.running
    guest.say(HELLO._replace(payload=HELLO.payload + b"-other"))
    assert guest.agent.wait_ready(PATIENCE, boot=2).release == "6.1-other"
    with pytest.raises(AgentError, match="agent: cmd: the guest booted anew"):
        early.wait(PATIENCE)
    later = guest.spawned()
    guest.say(Frame(later.id, Kind.EXIT, EXIT))
    assert later.wait(PATIENCE).code == 0


def test_input_keeps_to_the_credit(guest: Guest) -> None:
    process = guest.spawned(stdin=bytes(protocol.WINDOW + 10))
    got = 0
    while got < protocol.WINDOW:
        got += len(guest.hear(Kind.INPUT).payload)
    assert got == protocol.WINDOW
    guest.link.settimeout(0.1)
    with pytest.raises(TimeoutError):
        guest.hear(Kind.INPUT)
    guest.link.settimeout(PATIENCE)
    with pytest.raises(AgentTimeoutError, match="does not take its input"):
        process.drain(time.monotonic() + 0.05)
    guest.say(Frame(process.id, Kind.CREDIT, struct.pack("<I", 4)))
    assert len(guest.hear(Kind.INPUT).payload) == 4
    guest.say(Frame(process.id, Kind.CREDIT, struct.pack("<I", 100)))
    assert len(guest.hear(Kind.INPUT).payload) == 6
    guest.hear(Kind.INPUT_END)


def test_it_tells_when_it_last_heard(guest: Guest) -> None:
    guest.say(HELLO)
    guest.agent.wait_ready(PATIENCE)
    before = guest.agent.last_heard
    time.sleep(0.02)
    threading.Thread(target=lambda: guest.say(Frame(guest.hear(Kind.PING).id, Kind.PONG))).start()
    assert 0 < guest.agent.ping(PATIENCE) < PATIENCE
    assert before + 0.02 <= guest.agent.last_heard <= time.monotonic()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_is_told(guest: Guest) -> None:
    def fail(stream: int, data: bytes) -> None:
        raise RuntimeError(data)

    process = guest.spawned(on_output=fail)
    guest.say(Frame(process.id, Kind.STDOUT, b"x"))
    refused(guest, process, "a callback of this side raised an exception")


def test_the_pid_of_what_never_started(guest: Guest) -> None:
    process = guest.spawned()
    guest.say(Frame(process.id, Kind.EXIT, EXIT))
    assert process.pid == 0
    other = guest.spawned()
    guest.say(Frame(other.id, Kind.STARTED, struct.pack("<I", 77)))
    assert other.pid == 77
