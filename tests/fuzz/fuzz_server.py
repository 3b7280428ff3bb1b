"""The first line of a connection to the process that makes machines, with what comes along.

The first byte says how many descriptors come, and in what pieces the line.
"""

from __future__ import annotations

import os
import socket

from pyvirt.cli.server.code import Code
from pyvirt.cli.server.connection import Connection, Refused, is_path, read_file, read_run
from pyvirt.cli.server.limits import STREAMS_MAX

from .input import Input

code = Code()


def understand(message: dict[str, object]) -> None:
    if "run" in message:
        run = read_run(message)
        numbers = [number for some in (*run.streams.values(), run.fds) for number in some]
        assert len(numbers) == len(set(numbers))
        assert all(0 <= number < STREAMS_MAX for number in numbers)
        for word in (run.cwd, *run.words):
            os.fsencode(word)
        if run.caller is not None:
            assert run.template is None
            for name, value in run.caller.env.items():
                assert name
                assert b"=" not in os.fsencode(name)
                assert b"\0" not in os.fsencode(name + value)
            code.difference(run.caller)
    elif "read" in message:
        read_file(message["read"])
    elif is_path(message.get("switch")):
        os.fsencode(str(message["switch"]))


def fuzz(data: bytes) -> None:
    source = Input(data)
    choice = source.take(1)
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    connection = Connection(ours, 0)
    line, piece = source.rest(), choice // 4 + 1
    pieces = [line[at : at + piece] for at in range(0, len(line), piece)] or [b"\n"]
    try:
        for number, part in enumerate(pieces):
            socket.send_fds(theirs, [part], [0] * (choice % 4 if number == 0 else 0))
            message = connection.read_line()
            if message is not None:
                understand(message)
                break
    except Refused:
        pass
    connection.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before
