"""Requests out of a stream of bytes, and answers into one. No I/O.

Requests need no newline between them. A request begins with `{` and ends where that brace is
balanced (braces within strings do not count), so it is found whole however the bytes arrive, and
one that is not JSON costs itself and nothing after it. Between requests there is white space.

What is wrong gives one `Fault` and the stream goes on:
- A request that is not JSON, has a member twice, NaN, Infinity or a number no float can hold, is
  not UTF-8, or is nested deeper than 64: after its closing brace.
- A request of over 64 KiB: likewise, but nothing of it is kept meanwhile.
- A JSON array in place of a request: after its closing bracket.
- Anything else between requests: after the next line feed, or before the next `{` or `[`.
- A line feed within a string, which JSON does not allow: after it. So a request that was cut off
  in the middle of a string costs no more than its line.
- The byte 0xff, which UTF-8 never has: what came before it is dropped. A client sends it to be
  sure of where it stands; it is a fault only where it cuts a request.
"""

from __future__ import annotations

import json
import re
from math import isinf
from typing import Any, NoReturn

REQUEST_MAX = 64 << 10  # bytes
DEPTH_MAX = 64

_RESET = 0xFF
_SPACE = re.compile(rb"[ \t\r\n\xff]*")
_AFTER_JUNK = re.compile(rb"[\n{\[\xff]")
_OUTSIDE = re.compile(rb'["{}\[\]\xff]')
_INSIDE = re.compile(rb'["\\\n\xff]')
# An escape as `json` writes it; a pair of surrogates is one character.
_ESCAPE = re.compile(r"\\(?:ud[89ab]..\\ud[c-f]..|(?P<lone>ud[89a-f]..)|.)")
_CLOSERS = {ord("{"): ord("}"), ord("["): ord("]")}


class Fault:
    """Something in the stream that is no request; `description` says what.

    `is_stray`: bytes between requests that begin none.
    """

    __slots__ = ("description", "is_stray")

    def __init__(self, description: str, *, is_stray: bool = False) -> None:
        self.description = description
        self.is_stray = is_stray


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _out_of_range(text: str) -> ValueError:
    return ValueError(f"number out of range: {text[:40]}")


def _float(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise _out_of_range(text)
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python converts a few thousand digits, which is more than anybody means
        raise _out_of_range(text) from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate field `{name[:40]}`")
            seen.add(name)
    return members


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_float=_float,
    parse_int=_integer,
    object_pairs_hook=_members,
)


def parse(data: bytes) -> dict[str, Any] | Fault:
    """Return the request that `Decoder.next` found, in time that grows with its length."""
    try:
        value = _DECODER.decode(data.decode())
    except UnicodeDecodeError as error:
        return Fault(f"invalid UTF-8 at byte {error.start + 1} of the request")
    except json.JSONDecodeError as error:
        return Fault(f"{error.msg.removesuffix(' at')} at line {error.lineno} column {error.colno}")
    except ValueError as error:  # ours, from above
        return Fault(str(error))
    assert isinstance(value, dict)
    return value


class Decoder:
    """Takes bytes in pieces of any size, gives requests one by one; keeps at most 64 KiB of one.

    A request comes out as it came in, for `parse`: who limits requests counts it before that.

    What comes out depends on the bytes alone, not on where they were split.
    """

    __slots__ = ("_at", "_depth", "_escape", "_input", "_nesting", "_opener", "_parts", "_size",
                 "_skipping", "_string", "_too_deep")  # fmt: skip

    def __init__(self) -> None:
        self._input = b""
        self._at = 0
        self._skipping = False  # past something that is no request
        self._start_over()

    def _start_over(self) -> None:
        self._opener = 0  # the byte that the request began with, 0 between requests
        self._parts: list[bytes] = []
        self._size = 0  # of the request so far
        self._depth = 0  # of brackets like the opener
        self._nesting = 0  # of all brackets
        self._too_deep = False
        self._string = False
        self._escape = False  # the next byte is the second of an escape

    def feed(self, data: bytes) -> None:
        """Take what has arrived."""
        self._input = self._input[self._at :] + data
        self._at = 0

    def next(self) -> bytes | Fault | None:
        """Return the next request or fault, None when more bytes are needed for one."""
        while self._at < len(self._input):
            if self._opener:
                found = self._go_on()
            elif self._skipping:
                found = None
                self._skip()
            else:
                found = self._begin()
            if found is not None:
                return found
        return None

    def end(self) -> Fault | None:
        """Return the fault of a stream that ends here, None when no request is cut off."""
        cut = self._opener != 0
        self._start_over()
        return Fault("EOF while parsing the request") if cut else None

    def _begin(self) -> Fault | None:
        space = _SPACE.match(self._input, self._at)
        assert space is not None
        self._at = space.end()
        if self._at == len(self._input):
            return None
        byte = self._input[self._at]
        if byte in _CLOSERS:
            self._opener = byte
            return None
        self._skipping = True
        text = f"expected a request, an object in braces, found {chr(byte)!a}"
        return Fault(text, is_stray=True)

    def _skip(self) -> None:
        end = _AFTER_JUNK.search(self._input, self._at)
        if end is None:
            self._at = len(self._input)
            return
        self._skipping = False
        self._at = end.start() if self._input[end.start()] in _CLOSERS else end.end()

    def _go_on(self) -> bytes | Fault | None:
        """Look for the end of the request that has begun, as far as there are bytes."""
        start = self._at
        end, cut = self._scan()
        self._at = end
        self._size += end - start
        if self._size <= REQUEST_MAX:
            self._parts.append(self._input[start:end])
        else:
            self._parts.clear()
        if cut:
            fault = Fault(cut)
        elif self._depth:
            return None
        elif self._size > REQUEST_MAX:
            fault = Fault(f"The request is longer than {REQUEST_MAX} bytes")
        elif self._too_deep:
            fault = Fault(f"The request is nested deeper than {DEPTH_MAX}")
        elif self._opener == ord("["):
            fault = Fault("invalid type: sequence, expected a request, an object in braces")
        else:
            data = b"".join(self._parts)
            self._start_over()
            return data
        self._start_over()
        return fault

    def _scan(self) -> tuple[int, str]:
        """Return where the request ends or the input does, and why it is cut, if it is."""
        data, at = self._input, self._at
        while True:
            if self._escape:
                if at == len(data):
                    return at, ""
                self._escape = False
                # A line feed or 0xff cuts here as well.
                at += data[at] not in b"\n\xff"
            found = (_INSIDE if self._string else _OUTSIDE).search(data, at)
            if found is None:
                return len(data), ""
            at = found.end()
            byte = data[at - 1]
            if byte == _RESET:
                return at, "The request was cut off by the byte 0xff"
            if byte == ord("\n"):
                return at, "control character in a string: a line feed"
            if byte == ord('"'):
                self._string = not self._string
            elif byte == ord("\\"):
                self._escape = True
            elif self._count(byte):
                return at, ""

    def _count(self, byte: int) -> bool:
        """Follow a bracket; return whether it ends the request."""
        if byte in _CLOSERS:
            self._nesting += 1
            self._too_deep |= self._nesting > DEPTH_MAX
        else:
            self._nesting -= 1
        if byte == self._opener:
            self._depth += 1
        elif byte == _CLOSERS[self._opener]:
            self._depth -= 1
        return self._depth == 0


def encode(message: object) -> bytes:
    """Return one object as it goes to a client: compact, in ASCII, with CR and LF behind it.

    Bytes of a file's name that are not UTF-8, which Python keeps as lone surrogates, become U+FFFD:
    many a JSON reader refuses the whole message for one surrogate.
    """
    text = json.dumps(message, separators=(",", ":"), allow_nan=False)
    if "\\ud" in text:
        text = _ESCAPE.sub(_valid, text)
    return text.encode() + b"\r\n"


def _valid(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape["lone"] else escape[0]
