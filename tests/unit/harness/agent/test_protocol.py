"""Frames between the agent and its client, in pieces of any size."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.agent import image, protocol
from pyvirt.harness.agent.protocol import AgentError, Decoder, Frame, Kind

HEADER = (image.HERE / "protocol.h").read_text()

FRAMES = st.lists(
    st.builds(
        Frame,
        st.integers(0, 2**32 - 1),
        st.sampled_from(Kind),
        st.binary(max_size=40) | st.just(bytes(1000)),
    ),
    max_size=6,
)


@given(FRAMES, st.lists(st.integers(1, 70000), min_size=1, max_size=8))
def test_frames_come_through_whatever_the_pieces(frames: list[Frame], sizes: list[int]) -> None:
    wire = b"".join(map(protocol.encode, frames))
    decoder = Decoder()
    got = []
    at = 0
    while at < len(wire):
        size = sizes[at % len(sizes)]
        got += decoder.feed(wire[at : at + size])
        at += size
    assert got == frames


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_frames_or_refused(data: bytes) -> None:
    decoder = Decoder()
    try:
        frames = decoder.feed(data)
    except AgentError:
        return
    assert data.startswith(b"".join(map(protocol.encode, frames)))


def test_text_on_the_port_is_refused() -> None:
    with pytest.raises(AgentError, match=r"no frame \(kind 30575\); a process in the guest"):
        Decoder().feed(b"hellow world")


def constants(text: str) -> dict[str, int]:
    """Read the enumerations of a C header."""
    found: dict[str, int] = {}
    for body in re.findall(r"enum(?: \w+)? \{(.*?)\}", re.sub(r"/\*.*?\*/", "", text), re.DOTALL):
        last = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, value = map(str.strip, item.partition("="))
            last = eval(value) if value else last + 1
            found[name] = last
    return found


def test_the_header_says_the_same() -> None:
    header = constants(HEADER)
    assert {k: v for k, v in header.items() if k.startswith("KIND_")} == {
        f"KIND_{kind.name}": kind.value for kind in Kind
    }
    assert header["AGENT_VERSION"] == protocol.VERSION
    assert header["FRAME_PAYLOAD_MAX"] == protocol.PAYLOAD_MAX
    assert header["FRAME_DATA_MAX"] == protocol.DATA_MAX
    assert header["INPUT_WINDOW"] == protocol.WINDOW


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1),
    st.sampled_from([1, 70_000]),
    st.booleans(),
    st.booleans(),
)
def test_spawn_is_cut_into_frames(argv: list[str], long: int, stdin: bool, builtin: bool) -> None:
    argv = [*argv, "x" * long]
    wire = protocol.spawn(9, argv, cwd="/d", env={"A": "b=c"}, stdin=stdin, builtin=builtin)
    frames = Decoder().feed(wire)
    assert [f.kind for f in frames] == [Kind.MORE] * (len(frames) - 1) + [Kind.SPAWN]
    assert {f.id for f in frames} == {9}
    data = b"".join(f.payload for f in frames)
    assert struct.unpack_from("<II", data) == (stdin | builtin << 1, len(argv))
    assert data[8:].split(b"\0") == [b"/d", *(a.encode() for a in argv), b"A=b=c", b""]


def test_bytes_that_are_no_text_pass_through_names() -> None:
    name = b"\xff\xfe".decode(errors="surrogateescape")
    assert b"\0\xff\xfe\0" in protocol.spawn(1, ["cat", name], env={})


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_a_command_that_is_none(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="one word at least, without NUL"):
        protocol.spawn(1, argv, env={})


@pytest.mark.parametrize("before", [b"", b"junk", bytes(100), b"half of the sta"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_came_for_another_client_is_skipped(before: bytes, size: int) -> None:
    start = b"half of the start"
    frame = Frame(1, Kind.STDOUT, b"text")
    data = before + start + protocol.encode(frame)
    decoder = Decoder(start)
    got = []
    for at in range(0, len(data), size):
        got += decoder.feed(data[at : at + size])
    assert got == [frame]


def test_another_version_is_told() -> None:
    frame = Frame(0, Kind.HELLO, struct.pack("<IQ", 7, 0) + b"6.1")
    with pytest.raises(AgentError, match="speaks version 7 of the protocol, this pyvirt 3; make"):
        protocol.hello(frame)


def test_hello() -> None:
    frame = Frame(0, Kind.HELLO, struct.pack("<IQ", protocol.VERSION, 1 << 40 | 512) + b"6.1-x\xff")
    assert protocol.hello(frame) == (protocol.VERSION, "6.1-x�", 1 << 40 | 512)


def test_exit() -> None:
    frame = Frame(5, Kind.EXIT, struct.pack("<IIQ", 137, 3, 1_500_000))
    assert protocol.exit_of(frame) == (137, True, True, 1.5)


@pytest.mark.parametrize(
    ("read", "kind"),
    [(protocol.hello, Kind.HELLO), (protocol.exit_of, Kind.EXIT), (protocol.number, Kind.CREDIT)],
)
def test_a_wrong_size_is_refused(read: object, kind: Kind) -> None:
    assert callable(read)
    for size in (0, 3, 5, 11) if kind == Kind.HELLO else (0, 3, 5, 17):
        with pytest.raises(AgentError, match=f"sent {kind.name} with {size} bytes"):
            read(Frame(1, kind, bytes(size)))
