"""What a client sends to a monitor: cut into requests, parsed, and read by each command's schema.

The first byte says in what pieces the rest comes, which is to make no difference.
"""

from __future__ import annotations

import json

from pyvirt.errors import QmpError
from pyvirt.qmp import table
from pyvirt.qmp.framing import REQUEST_MAX, Decoder, Fault, encode, parse

from .input import Input, check_line


def items(stream: bytes, piece: int) -> list[bytes | str]:
    decoder = Decoder()
    found: list[bytes | str] = []
    for at in range(0, len(stream), piece):
        decoder.feed(stream[at : at + piece])
        while (item := decoder.next()) is not None:
            found.append(item.description if isinstance(item, Fault) else item)
    end = decoder.end()
    return [*found, end.description] if end else found


def ask(request: dict[str, object]) -> None:
    """Have the arguments read, by all commands if none is named."""
    name = request.get("execute")
    arguments = request.get("arguments", {})
    known = isinstance(name, str) and name in table.BY_NAME
    commands = [table.BY_NAME[str(name)]] if known else table.TABLE
    for command in commands:
        try:
            command.arguments.read(arguments, "")
        except QmpError as error:
            check_line(error)
            encode({"error": {"class": error.kind, "desc": str(error)}})


def fuzz(data: bytes) -> None:
    source = Input(data)
    piece = source.take(1) % 32 + 1
    stream = source.rest()
    whole = items(stream, len(stream) + 1)
    assert whole == items(stream, piece)
    for item in whole:
        if isinstance(item, str):
            continue
        assert len(item) <= REQUEST_MAX
        request = parse(item)
        if isinstance(request, Fault):
            assert "\n" not in request.description
            continue
        answer = encode({"return": {}, "id": request.get("id")})
        assert json.loads(answer).keys() == {"return", "id"}
        ask(request)
