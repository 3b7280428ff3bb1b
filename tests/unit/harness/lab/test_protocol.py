"""The lab's protocol without I/O: frames in any pieces, channels under any schedule."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.lab import protocol
from pyvirt.harness.lab.protocol import Channel, Decoder, Frame, Kind, ProtocolError

FRAMES = st.builds(
    Frame,
    st.integers(0, protocol.SOCKETS.stop - 1),
    st.sampled_from(Kind),
    st.binary(max_size=300) | st.just(bytes(protocol.TEXT_MAX)),
)


@given(st.lists(FRAMES, max_size=8), st.data())
def test_frames_survive_any_split(frames: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(map(protocol.encode, frames))
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=30).map(sorted))
    decoder = Decoder()
    got = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += decoder.feed(wire[begin:end])
    assert got == frames


@pytest.mark.parametrize(
    ("channel", "kind", "length"), [(80, 11, 1), (0, 0, 0), (0, 16, 0), (1, 11, 131073)]
)
def test_a_header_out_of_range_is_refused(channel: int, kind: int, length: int) -> None:
    header = (channel | kind << 16 | length << 32).to_bytes(8, "little")
    with pytest.raises(ProtocolError, match="the agent sent no frame"):
        Decoder().feed(header)


def test_the_header_file_has_the_same_numbers() -> None:
    text = Path(protocol.__file__).with_name("mux.h").read_text()
    kinds = re.findall(r"^    KIND_(\w+)", text, re.MULTILINE)
    assert kinds == [kind.name for kind in Kind]
    numbers = dict(re.findall(r"\b(MUX_\w+|CH_\w+) = (\d+)", text))
    assert int(numbers["MUX_VERSION"]) == protocol.VERSION
    assert int(numbers["MUX_WINDOW"]) == protocol.WINDOW
    assert int(numbers["MUX_TEXT_MAX"]) == protocol.TEXT_MAX
    assert range(int(numbers["CH_SOCKET"]), int(numbers["CH_COUNT"])) == protocol.SOCKETS


class Side:
    """A channel with what it still has to send and what it has got."""

    def __init__(self, to_send: bytes) -> None:
        self.channel = Channel(16)
        self.left = to_send
        self.got = bytearray()
        self.wire: deque[Frame] = deque()

    def send(self, size: int) -> None:
        size = min(size, self.channel.sendable)
        if self.left and size:
            self.wire.append(self.channel.data(self.left[:size]))
            self.left = self.left[size:]
        if not self.left:
            self.channel.end()
        self.wire.extend(self.channel.due())

    def take(self, size: int) -> None:
        self.got += self.channel.arrived[:size]
        self.channel.taken(min(size, len(self.channel.arrived)))
        self.wire.extend(self.channel.due())


STEPS = st.tuples(
    st.booleans(), st.sampled_from(["send", "take", "deliver"]), st.integers(1, 70000)
)


@given(st.lists(STEPS, max_size=60), st.integers(0, 200_000), st.integers(0, 200_000))
def test_channels_deliver_all_under_any_schedule(
    steps: list[tuple[bool, str, int]], there: int, back: int
) -> None:
    sent = bytes(range(251)) * 800
    a, b = Side(sent[:there]), Side(sent[-back:] if back else b"")

    def step(side: Side, other: Side, action: str, size: int) -> None:
        if action == "deliver" and other.wire:
            side.channel.receive(other.wire.popleft())
        elif action == "send":
            side.send(size)
        elif action == "take":
            side.take(size)

    for first, action, size in steps:
        step(*((a, b) if first else (b, a)), action, size)
    for _ in range(200):
        for action in ("send", "deliver", "take"):
            step(a, b, action, 65536)
            step(b, a, action, 65536)
    assert a.channel.over
    assert b.channel.over
    assert b.got == sent[:there]
    assert a.got == (sent[-back:] if back else b"")


def test_data_beyond_the_credit_is_refused() -> None:
    channel = Channel(1)
    channel.receive(Frame(1, Kind.DATA, bytes(protocol.WINDOW)))
    channel.taken(100)
    with pytest.raises(ProtocolError, match="without credit"):
        channel.receive(Frame(1, Kind.DATA, b"x"))


def test_too_much_credit_is_refused() -> None:
    channel = Channel(1)
    channel.data(b"ab")
    with pytest.raises(ProtocolError, match="too much credit"):
        channel.receive(Frame(1, Kind.CREDIT, (3).to_bytes(4, "little")))


def test_refusing_tells_the_sender_and_keeps_its_credit_coming() -> None:
    channel = Channel(2, sends=False)
    channel.receive(Frame(2, Kind.DATA, bytes(protocol.WINDOW // 2)))
    channel.refuse()
    assert [frame.kind for frame in channel.due()] == [Kind.CREDIT, Kind.CLOSE]
    channel.receive(Frame(2, Kind.DATA, b"on its way before it knew"))
    channel.receive(Frame(2, Kind.CLOSE))
    assert channel.over
    assert not channel.arrived


def test_close_after_eof_keeps_what_came_before() -> None:
    channel = Channel(16)
    for frame in (Frame(16, Kind.DATA, b"last"), Frame(16, Kind.EOF), Frame(16, Kind.CLOSE)):
        channel.receive(frame)
    assert channel.due() == []
    assert channel.arrived == b"last"
    channel.taken(4)
    assert [frame.kind for frame in channel.due()] == [Kind.CLOSE]


def test_close_without_eof_drops_what_came_before() -> None:
    channel = Channel(16)
    channel.receive(Frame(16, Kind.DATA, b"half a"))
    channel.receive(Frame(16, Kind.CLOSE))
    assert not channel.arrived
    assert channel.sendable == 0
    assert [frame.kind for frame in channel.due()] == [Kind.CLOSE]


@pytest.mark.parametrize("size", [0, protocol.WINDOW + 1])
def test_sending_what_the_credit_does_not_allow_is_a_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="bytes for a channel"):
        Channel(1).data(bytes(size))
