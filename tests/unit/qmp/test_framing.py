"""Requests out of bytes: where each ends, what is refused, and that splits do not matter."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyvirt.qmp import framing
from pyvirt.qmp.framing import DEPTH_MAX, REQUEST_MAX, Decoder, Fault, encode, parse

STATUS = b'{"execute":"query-status"}'
PARSED = {"execute": "query-status"}


def drain(decoder: Decoder) -> list[Any]:
    found: list[Any] = []
    while (raw := decoder.next()) is not None:
        item = parse(raw) if isinstance(raw, bytes) else raw
        found.append(f"fault: {item.description}" if isinstance(item, Fault) else item)
    return found


def decode(*pieces: bytes, ends: bool = True) -> list[Any]:
    """Return what comes out of a stream that arrives in pieces; faults as text."""
    decoder = Decoder()
    found = []
    for piece in pieces:
        decoder.feed(piece)
        found += drain(decoder)
    if ends and (cut := decoder.end()):
        found.append(f"fault: {cut.description}")
    return found


def bytewise(data: bytes) -> list[Any]:
    return decode(*(data[at : at + 1] for at in range(len(data))))


@pytest.mark.parametrize(
    ("stream", "count"),
    [
        (b"", 0),
        (b" \r\n\t", 0),
        (STATUS, 1),
        (STATUS + b"\n", 1),
        (STATUS + STATUS, 2),
        (STATUS + b"\r\n\r\n  " + STATUS + b"\r\n", 2),
        (b"\xff" + STATUS + b"\xff\xff" + STATUS, 2),
    ],
)
def test_requests_need_nothing_between_them(stream: bytes, count: int) -> None:
    assert decode(stream) == [PARSED] * count
    assert bytewise(stream) == [PARSED] * count


def test_request_is_there_with_its_last_byte() -> None:
    assert decode(STATUS, ends=False) == [PARSED]
    assert decode(STATUS[:-1], ends=False) == []


@pytest.mark.parametrize(
    "text", ["}{", "{", '\\"{', "\\\\", '\\\\\\"}', "\\u007d", "é{ü", "☃}", "[", "]"]
)
def test_braces_in_strings_do_not_count(text: str) -> None:
    raw = b'{"execute":"x","id":"' + text.encode() + b'"}'
    assert decode(raw + STATUS) == [json.loads(raw), PARSED]
    assert bytewise(raw + STATUS) == [json.loads(raw), PARSED]


# Each costs itself and nothing after it.
BAD = [
    (b'{"execute" "x"}', "Expecting ':' delimiter at line 1 column 12"),
    (b'{"execute":}', "Expecting value at line 1 column 12"),
    (b'{\n"execute": x}', "Expecting value at line 2 column 12"),
    (b"{'execute':'x'}", "Expecting property name enclosed in double quotes at line 1 column 2"),
    (b'{"a":1,}', "Expecting property name enclosed in double quotes at line 1 column 8"),
    (b'{"a":[1,2}', "Expecting ',' delimiter at line 1 column 10"),
    (b'{"a":]}', "Expecting value at line 1 column 6"),
    (b'{"a":NaN}', "NaN is not JSON"),
    (b'{"a":-Infinity}', "-Infinity is not JSON"),
    (b'{"a":1e999}', "number out of range: 1e999"),
    (b'{"id":' + b"9" * 5000 + b"}", f"number out of range: {'9' * 40}"),
    (b'{"a":[-' + b"9" * 5000 + b"]}", f"number out of range: -{'9' * 39}"),
    (b'{"id":1,"id":2}', "duplicate field `id`"),
    (b'{"a":{"b":1,"b":1}}', "duplicate field `b`"),
    (b'{"a":"\xe9"}', "invalid UTF-8 at byte 7 of the request"),
    (b'{"a":"\xed\xa0\x80"}', "invalid UTF-8 at byte 7 of the request"),
    (b'{"a":"\x01"}', "Invalid control character at line 1 column 7"),
    (b'{"a":"x\n', "control character in a string: a line feed"),
    (b'{"a":"x\\\n', "control character in a string: a line feed"),
    (b'{"a":1\xff', "The request was cut off by the byte 0xff"),
    (b'{"a":"x\xff', "The request was cut off by the byte 0xff"),
    (b"[]", "invalid type: sequence, expected a request, an object in braces"),
    (b'[{"execute":"quit"}]', "invalid type: sequence, expected a request, an object in braces"),
    (b"quit\n", "expected a request, an object in braces, found 'q'"),
    (b"quit ", "expected a request, an object in braces, found 'q'"),
    (b'"quit"', "expected a request, an object in braces, found '\"'"),
    (b"}", "expected a request, an object in braces, found '}'"),
    (b"\x00\x00", "expected a request, an object in braces, found '\\x00'"),
    (b"\xef\xbb\xbf", "expected a request, an object in braces, found '\\xef'"),
    (b'{"a":' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"}",
     "The request is nested deeper than 64"),
    (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, "The request is longer than 65536 bytes"),
    (b'{"a":"' + b"x" * REQUEST_MAX + b'"}', "The request is longer than 65536 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=range(len(BAD)))
def test_bad_request_costs_only_itself(bad: bytes, reason: str) -> None:
    expected = [PARSED, f"fault: {reason}", PARSED]
    assert decode(STATUS + bad + STATUS) == expected
    assert bytewise(STATUS + bad + STATUS) == expected


def test_array_of_requests_is_not_run() -> None:
    assert PARSED not in decode(b"[" + STATUS + b"," + STATUS + b"]")


@pytest.mark.parametrize("cut", range(1, len(STATUS)))
def test_stream_that_ends_in_a_request(cut: int) -> None:
    assert decode(STATUS[:cut]) == ["fault: EOF while parsing the request"]


def test_a_stream_ends_once() -> None:
    decoder = Decoder()
    decoder.feed(STATUS[:-1])
    assert decoder.next() is None
    assert isinstance(decoder.end(), Fault)
    assert decoder.end() is None


@pytest.mark.parametrize("cut", range(1, len(STATUS)))
def test_reset_byte_ends_whatever_there_was(cut: int) -> None:
    assert decode(STATUS[:cut] + b"\xff" + STATUS)[-1] == PARSED


@pytest.mark.parametrize("size", [REQUEST_MAX - 1, REQUEST_MAX, REQUEST_MAX + 1, 3 * REQUEST_MAX])
def test_length_limit_is_exact(size: int) -> None:
    request = b'{"id":"' + b"x" * (size - 9) + b'"}'
    assert len(request) == size
    kept = size <= REQUEST_MAX
    for found in (decode(request, STATUS), decode(request[:70_000], request[70_000:] + STATUS)):
        assert [isinstance(item, dict) for item in found] == [kept, True]


def test_nesting_limit_is_exact() -> None:
    deep = b'{"a":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}"
    assert isinstance(decode(deep)[0], dict)


def test_endless_request_is_not_kept() -> None:
    decoder = Decoder()
    for _ in range(100):
        decoder.feed(b'{"a":' * 1000)
        assert decoder.next() is None
    kept = sum(len(part) for part in decoder._parts) + len(decoder._input)
    assert kept <= REQUEST_MAX


def test_time_grows_with_the_bytes_only() -> None:
    # A scan from the start for each byte would take minutes.
    start = time.process_time()
    bytewise(b'{"a":"' + b"x" * 60_000 + b'"}')
    assert time.process_time() - start < 10


def splits(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                 max_size=3),
    max_leaves=8,
)  # fmt: skip
REQUESTS = st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), max_size=5)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)


class Name(str):
    """A member's name that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_looking_for_a_member_twice_takes_linear_time() -> None:
    count = 20_000
    pairs = [(Name(f"m{n}"), n) for n in range(count)]
    with pytest.raises(ValueError, match="duplicate field `m19999`"):
        framing._members([*pairs, (Name("m19999"), 0)])
    assert Name.compared < 10 * count


def test_the_longest_request_with_a_member_twice() -> None:
    members = b",".join(b'"%x":0' % n for n in range(6500))
    request = b"{" + members + b',"0":1}'
    assert len(request) <= REQUEST_MAX
    assert decode(request + STATUS) == ["fault: duplicate field `0`", PARSED]


@pytest.mark.parametrize(
    ("stream", "strays"),
    [(b"POST / HTTP/1.1\r\n{]}", [True, False]), (b"[]{]}", [False, False]), (b"5{}", [True])],
)
def test_stray_bytes_are_told_from_bad_requests(stream: bytes, strays: list[bool]) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    items = iter(decoder.next, None)
    faults = [parse(item) if isinstance(item, bytes) else item for item in items]
    assert [fault.is_stray for fault in faults if isinstance(fault, Fault)] == strays


@given(REQUESTS, st.sampled_from([b"", b" ", b"\n", b"\r\n", b"\xff"]), CUTS, st.booleans())
def test_any_split_of_requests_gives_the_requests(
    requests: list[dict[str, Any]], between: bytes, cuts: list[int], ascii_only: bool
) -> None:
    data = between.join(json.dumps(r, ensure_ascii=ascii_only).encode() for r in requests)
    assert decode(*splits(data, cuts)) == requests


PIECES = st.lists(
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b'"', b"\\", b"\n", b"\xff", b" ", b":", b",", b"a", b"\xc3",
         b'"a":1', STATUS, b"\x00"]
    ) | st.binary(max_size=3),
    max_size=40,
)  # fmt: skip


@given(PIECES, CUTS)
@example([b"{", b'"', b"\\", b"\n", STATUS], [3, 4])
@example([b"x", b"\xff", STATUS], [1, 2])
def test_any_split_of_anything_gives_the_same(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces)
    assert decode(*splits(data, cuts)) == decode(data) == bytewise(data)


@given(st.binary(max_size=64))
def test_a_line_of_its_own_is_understood_after_anything(garbage: bytes) -> None:
    assert decode(garbage + b"\xff" + STATUS)[-1] == PARSED


@given(JSON)
def test_encoder_keeps_values(value: Any) -> None:
    data = encode({"return": value})
    assert data.endswith(b"\r\n")
    assert data.isascii()
    assert data.count(b"\n") == 1
    assert json.loads(data) == {"return": value}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("/tmp/\udcff", "/tmp/\ufffd"),  # the byte 0xff in a file's name
        ("\ud800\udbff", "\ufffd\ufffd"),
        ("\udc00\ud83d\ude00\ud83d", "\ufffd\U0001f600\ufffd"),
        ("\\ud800 \\\\udcff", "\\ud800 \\\\udcff"),  # no escapes: backslashes
    ],
)  # fmt: skip
def test_no_lone_surrogate_goes_out(text: str, read: str) -> None:
    data = encode({text: [text]})
    json.loads(data)[read][0].encode()  # UnicodeEncodeError for a surrogate
    assert json.loads(data) == {read: [read]}
