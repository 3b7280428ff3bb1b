"""Consoles, and ends of ports other than sockets: terminals, files, memory, nobody."""

from __future__ import annotations

import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.chardev import FILE, NULL, PTY, RINGBUF, ChardevConfig
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.console import MULTIPORT, SIZE, PortConfig
from pyvirt.native import ffi, lib

from .port_bench import (
    CONSOLE_PORT,
    DATA,
    DEVICE_READY,
    IN,
    LENGTH,
    OUT,
    PIECES,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    RESIZE,
    SECONDS,
    Make,
    PortBench,
    make,
    noise,
    queues,
    read_all,
)

__all__ = ["make"]  # a fixture

HVC_IN, HVC_OUT = queues(0)


def console(config: ChardevConfig, number: int = 0) -> PortConfig:
    return PortConfig(number, config, is_console=True)


def chardev(bench: PortBench, index: int = 0) -> Any:
    return bench.device.chardevs()[index][0]


def states(bench: PortBench) -> list[tuple[bool, bool]]:
    return [(is_open, is_taken) for _, is_open, is_taken in bench.device.chardevs()]


@contextmanager
def terminal(bench: PortBench, index: int = 0) -> Iterator[int]:
    """Open the pty of a port as a user's program would."""
    fd = os.open(chardev(bench, index).pty_path, os.O_RDWR | os.O_NOCTTY)
    try:
        yield fd
    finally:
        os.close(fd)


def read_fd(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], SECONDS)[0], f"nothing after {data!r}"
        data += os.read(fd, count - len(data))
    return data


def introduce(bench: PortBench, number: int) -> None:
    bench.tell(0xFFFFFFFF, DEVICE_READY, 1)
    assert bench.hear() == (number, PORT_ADD, 1, b"")
    bench.tell(number, PORT_READY, 1)


# Several ports


def test_a_driver_is_told_that_a_port_is_a_console_and_of_what_size(make: Make) -> None:
    bench = make(more=(PortConfig(2, ChardevConfig("c", PTY), "tty", is_console=True),))
    assert bench.device.features == SIZE | MULTIPORT
    bench.start(SIZE | MULTIPORT)
    introduce(bench, 2)
    assert bench.hear() == (2, CONSOLE_PORT, 1, b"")
    assert bench.hear() == (2, PORT_NAME, 1, b"tty")
    with terminal(bench) as fd:
        termios.tcsetwinsize(fd, (24, 132))
        heard = [bench.hear(), bench.hear()]
        assert sorted(heard, key=lambda one: one[1]) == [
            (2, RESIZE, 1, struct.pack("<HH", 132, 24)),
            (2, PORT_OPEN, 1, b""),
        ]
        termios.tcsetwinsize(fd, (25, 80))
        assert bench.hear() == (2, RESIZE, 1, struct.pack("<HH", 80, 25))
    assert bench.hear() == (2, PORT_OPEN, 0, b"")
    bench.tell(2, PORT_READY, 1)
    heard = [bench.hear() for _ in range(3)]
    assert [event for _, event, _, _ in heard] == [CONSOLE_PORT, PORT_NAME, RESIZE]


def test_who_opens_a_pty_is_the_host_and_may_come_again(make: Make) -> None:
    bench = make(more=(PortConfig(1, ChardevConfig("c", PTY)),))
    bench.start()
    introduce(bench, 1)
    bench.tell(1, PORT_OPEN, 1)
    bench.offer(IN, 8, 64)
    assert states(bench) == [(True, False)]
    bench.add(OUT, b"nobody")
    bench.wait_stat("dropped", 6)
    for word in (b"one", b"two"):
        with terminal(bench) as fd:
            assert bench.hear() == (1, PORT_OPEN, 1, b"")
            assert states(bench) == [(True, True)]
            os.write(fd, word)
            assert bench.collect(IN) == [word]
            bench.add(OUT, b"answer")
            assert read_fd(fd, 6) == b"answer"
        assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert (bench.stat("opened"), bench.stat("closed")) == (2, 2)


def test_a_console_that_nobody_reads_holds_the_driver_up_for_a_second(make: Make) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        bench = make(more=(console(ChardevConfig("c", fd=theirs.detach()), 1),))
        bench.start(SIZE | MULTIPORT)
        introduce(bench, 1)
        for index in range(PIECES):
            bench.add(OUT, noise(LENGTH), DATA + index * LENGTH)
        bench.wait_stat("blocked", 1)
        done = 0
        while done < PIECES:
            done += len(bench.used(OUT))
        assert bench.stat("dropped") > 0
        assert bench.stat("dropped") + bench.stat("bytes_out") == PIECES * LENGTH
        # Once it is read again, nothing is dropped.
        ours.settimeout(SECONDS)
        read_all(ours, bench.stat("bytes_out"))
        before = bench.stat("dropped")
        bench.add(OUT, b"again")
        assert read_all(ours, 5) == b"again"
        assert bench.stat("dropped") == before


# One console alone


@pytest.fixture
def alone(make: Make) -> PortBench:
    """Return a device that is a console on a pty."""
    bench = make(more=(console(ChardevConfig("c", PTY)),))
    assert (bench.device.features, bench.device.queue_sizes) == (SIZE, (128, 128))
    bench.start(SIZE)
    return bench


def test_a_console_alone_is_open_from_the_start(alone: PortBench) -> None:
    alone.add(HVC_OUT, b"nobody is there")
    alone.wait_stat("dropped", 15)
    alone.offer(HVC_IN, 4, 64)
    with terminal(alone) as fd:
        os.write(fd, b"root\n")
        assert alone.collect(HVC_IN) == [b"root\n"]
        alone.add(HVC_OUT, b"login: ")
        assert read_fd(fd, 7) == b"login: "
        assert states(alone) == [(True, True)]


def test_a_driver_that_starts_is_told_to_look_at_the_size(alone: PortBench) -> None:
    assert alone.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


def shown(bench: PortBench) -> tuple[int, int]:
    """Return the size that a driver finds, once the monitor has told of what is new."""
    bench.transport.report()
    return bench.get(r.CONFIG, 2), bench.get(r.CONFIG + 2, 2)


def test_its_size_is_in_the_configuration_space(alone: PortBench) -> None:
    assert struct.unpack("<HHII", alone.device.config()) == (0, 0, 1, 0)
    for rows, columns in ((24, 80), (50, 132)):
        alone.set(r.INTERRUPT_ACK, r.INTERRUPT_CONFIG)
        with terminal(alone) as fd:
            termios.tcsetwinsize(fd, (rows, columns))
            alone.device.terminal_resized()
            deadline = time.monotonic() + SECONDS
            while shown(alone) != (columns, rows):
                assert time.monotonic() < deadline, shown(alone)
                select.select([alone.broken_fd], [], [], 0.01)
            assert alone.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


# Other ends


def test_a_file_takes_output_and_another_gives_input(make: Make, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"from the file")
    config = ChardevConfig("c", FILE, path=str(target), input_path=str(source))
    bench = make(more=(PortConfig(1, config),))
    bench.start()
    introduce(bench, 1)
    assert bench.hear() == (1, PORT_OPEN, 1, b"")
    bench.tell(1, PORT_OPEN, 1)
    bench.offer(IN, 4, 64)
    assert bench.collect(IN) == [b"from the file"]
    for piece in (b"to ", b"the ", b"other"):
        bench.add(OUT, piece)
        assert bench.used(OUT)
    assert target.read_bytes() == b"to the other"
    assert bench.stat("closed") == 0


def test_nobody_takes_everything(make: Make) -> None:
    bench = make(more=(PortConfig(1, ChardevConfig("c", NULL)),))
    bench.start()
    introduce(bench, 1)
    assert bench.hear() == (1, PORT_OPEN, 1, b"")
    bench.add(OUT, noise(LENGTH))
    assert bench.used(OUT)
    assert bench.stat("dropped") == LENGTH


def test_a_ring_buffer_keeps_the_newest(make: Make) -> None:
    bench = make(more=(console(ChardevConfig("c", RINGBUF, size=1024)),))
    bench.start(SIZE)
    for piece in (noise(LENGTH), b"the end"):
        bench.add(HVC_OUT, piece)
        assert bench.used(HVC_OUT)
    data = bytearray(2000)
    kept = lib.pv_ringbuf_read(chardev(bench).ringbuf, ffi.from_buffer(data), len(data))
    assert data[:kept] == (noise(LENGTH) + b"the end")[-1024:]


def test_tcp_clients_and_servers(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = ChardevConfig("c", host="127.0.0.1", port=port, listens=False)
        bench = make(more=(PortConfig(1, config),))
        bench.start()
        peer = server.accept()[0]
    with peer:
        peer.settimeout(SECONDS)
        introduce(bench, 1)
        assert bench.hear() == (1, PORT_OPEN, 1, b"")
        bench.add(OUT, b"hello")
        assert read_all(peer, 5) == b"hello"
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    listening = ChardevConfig("c", host="127.0.0.1", port=port)
    bench = make(more=(PortConfig(1, listening),))
    bench.start()
    introduce(bench, 1)
    with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
        assert bench.hear() == (1, PORT_OPEN, 1, b"")
        bench.add(OUT, b"hello")
        assert read_all(client, 5) == b"hello"
