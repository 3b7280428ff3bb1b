"""Messages of vhost-user as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.devices.vhost_user import protocol as p


def test_sizes_are_those_of_the_specification() -> None:
    assert p.HEADER.size == 12
    assert p.ADDRESS.size == 40
    assert p.INFLIGHT.size == 24


def test_a_request() -> None:
    assert p.message(p.SET_FEATURES, p.U64.pack(5)) == struct.pack("=IIIQ", 2, 1, 8, 5)
    assert p.message(p.SET_OWNER, need_reply=True) == struct.pack("=III", 3, 9, 0)


def test_the_table_of_memory_tells_no_address_of_ours() -> None:
    table = p.regions([(0, 4096, 0), (1 << 32, 8192, 4096)])
    assert struct.unpack("=II8Q", table) == (
        *(2, 0),
        *(0, 4096, 0, 0),
        *(1 << 32, 8192, 1 << 32, 4096),
    )


@given(st.binary(max_size=100), st.data())
def test_messages_come_in_any_pieces(payload: bytes, data: st.DataObject) -> None:
    inbox = p.Inbox()
    stream = p.HEADER.pack(7, 5, len(payload)) + payload
    while stream:
        assert inbox.take() is None
        assert 1 <= inbox.wants <= len(stream)
        size = data.draw(st.integers(1, inbox.wants))
        inbox.feed(stream[:size])
        stream = stream[size:]
    got = inbox.take()
    assert got
    assert (got.request, got.payload, got.needs_reply) == (7, payload, False)
    assert inbox.take() is None
    assert inbox.wants == p.HEADER.size


@given(st.binary(min_size=12, max_size=12))
def test_a_header_is_refused_or_of_the_limits(data: bytes) -> None:
    inbox = p.Inbox()
    try:
        inbox.feed(data)
    except p.ProtocolError:
        return
    assert data[4] & 3 == 1
    assert int.from_bytes(data[8:], "little") <= p.PAYLOAD_MAX


@given(st.integers(0, 99), st.integers(0, 15), st.binary(max_size=20), st.integers(0, 3))
def test_only_an_answer_is_taken_for_one(
    request: int, flags: int, payload: bytes, fds: int
) -> None:
    got = p.Message(request, flags, payload, range(fds))
    right = request == 11 and flags & 4 and len(payload) in {8, 9} and fds == 1
    if right:
        p.check_reply(got, 11, (8, 9), 1)
    else:
        with pytest.raises(p.ProtocolError):
            p.check_reply(got, 11, (8, 9), 1)
