"""What comes from the agent in a guest, and from that of the lab: frames in pieces of any size.

The first byte chooses which of them, the second in what pieces the rest comes.
"""

from __future__ import annotations

import contextlib

from pyvirt.harness.agent import protocol as agent
from pyvirt.harness.lab import protocol as lab

from .input import Input, check_line


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


def frames_of_agent(parts: list[bytes], start: bytes) -> tuple[list[agent.Frame], str]:
    decoder, found = agent.Decoder(start), list[agent.Frame]()
    for part in parts:
        try:
            found += decoder.feed(part)
        except agent.AgentError as error:
            return found, str(error)
    return found, ""


def try_agent(stream: bytes, size: int) -> None:
    start = agent.reset() if size & 1 else b""
    stream = (b"cut off" + start + stream) if start else stream
    _, why = frames_of_agent([stream], start)
    found, why_cut = frames_of_agent(pieces(stream, size), start)
    assert why == why_cut
    for frame in found:
        for read in (agent.hello, agent.exit_of, agent.number):
            with contextlib.suppress(agent.AgentError):
                read(frame)
        assert "\n" not in agent.text(frame)


def try_lab(stream: bytes, size: int) -> None:
    decoder, channel = lab.Decoder(), lab.Channel(16)
    try:
        for part in pieces(stream, size):
            for frame in decoder.feed(part):
                channel.receive(frame)
                assert len(channel.arrived) <= lab.WINDOW
                assert 0 <= channel.sendable <= lab.WINDOW
                if channel.sendable:
                    channel.data(b"x")
                channel.taken(len(channel.arrived) // 2)
                for due in channel.due():
                    lab.encode(due)
                if channel.over:
                    return
    except lab.ProtocolError as error:
        check_line(error)


def fuzz(data: bytes) -> None:
    source = Input(data)
    which, size = source.take(1), source.take(1) + 1
    (try_lab if which & 1 else try_agent)(source.rest(), size)
