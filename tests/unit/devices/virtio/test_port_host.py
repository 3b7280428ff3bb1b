"""The host's ends of ports: peers that close in every way, and clients that come and go."""

from __future__ import annotations

import os
import select
import socket
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio.console import Console, ConsoleConfig, PortConfig

from .port_bench import (
    CONTROL_IN,
    DATA,
    DEVICE_READY,
    IN,
    LENGTH,
    OUT,
    PIECES,
    PORT_ADD,
    PORT_OPEN,
    PORT_READY,
    SECONDS,
    Make,
    PortBench,
    bench,
    make,
    noise,
    read_all,
)
from .queue_bench import idle

__all__ = ["bench", "make"]  # fixtures


def test_a_peer_that_closes_is_told_of_after_all_it_said(bench: PortBench) -> None:
    bench.offer(IN, 2, 4)
    bench.host[1].sendall(b"0123456789")
    assert b"".join(bench.collect(IN)) == b"01234567"
    bench.host[1].close()
    bench.drivers[CONTROL_IN].enable_interrupts()
    bench.wait_stat("starved", 1)
    assert bench.drivers[CONTROL_IN].collect() == []
    bench.offer(IN, 2, 4)
    assert bench.collect(IN) == [b"89"]
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert bench.stat("closed") == 1


@pytest.mark.parametrize("opened", [False, True])
def test_a_peer_that_closes_is_told_of_though_the_guest_does_not_read(
    make: Make, opened: bool
) -> None:
    bench = make("agent")
    bench.start()
    bench.introduce(*(1,) * opened)
    bench.host[1].close()
    assert bench.hear() == (1, PORT_OPEN, 0, b"")


def test_what_a_dead_peer_does_not_take_is_dropped(bench: PortBench) -> None:
    for index in range(PIECES):
        bench.add(OUT, noise(LENGTH), DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.host[1].close()
    done = 0
    while done < PIECES:
        done += len(bench.used(OUT))
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert bench.stat("bytes_out") + bench.stat("dropped") == PIECES * LENGTH
    bench.add(OUT, b"more")
    assert bench.used(OUT)


def test_what_waits_for_a_peer_that_ends_is_dropped(bench: PortBench) -> None:
    for index in range(PIECES):
        bench.add(OUT, noise(LENGTH), DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.host[1].sendall(b"x")
    bench.host[1].shutdown(socket.SHUT_WR)
    assert idle(0.1)
    bench.offer(IN, 1, 64)
    assert bench.collect(IN) == [b"x"]
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    bench.wait_stat("dropped", 1)
    done = len(bench.drivers[OUT].collect())
    while done < PIECES:
        done += len(bench.used(OUT))


def test_a_peer_that_will_not_read_is_still_heard(bench: PortBench) -> None:
    bench.host[1].sendall(b"farewell")
    bench.host[1].shutdown(socket.SHUT_RD)
    bench.add(OUT, b"nobody")
    assert bench.used(OUT)
    bench.wait_stat("dropped", 6)
    bench.offer(IN, 1, 64)
    assert bench.collect(IN) == [b"farewell"]
    assert not bench.broken


def test_a_peer_that_closes_one_way_sees_the_end_of_the_other(bench: PortBench) -> None:
    bench.host[1].shutdown(socket.SHUT_WR)
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert bench.host[1].recv(1) == b""


def test_clients_of_a_path_come_one_after_the_other(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    bench = make("agent", paths={"agent": path})
    bench.start()
    bench.introduce(1)
    bench.offer(IN, 8, 64)
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(path)
        second.connect(path)
        second.sendall(b"two")
        second.settimeout(SECONDS)
        assert bench.hear() == (1, PORT_OPEN, 1, b"")
        first.sendall(b"one")
        assert bench.collect(IN) == [b"one"]
        first.close()
        assert bench.hear() == (1, PORT_OPEN, 0, b"")
        assert bench.hear() == (1, PORT_OPEN, 1, b"")
        assert bench.collect(IN) == [b"two"]
        bench.add(OUT, b"answer")
        assert read_all(second, 6) == b"answer"
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert (bench.stat("opened"), bench.stat("closed")) == (2, 2)
    bench.add(OUT, b"nobody")
    bench.wait_stat("dropped", 6)


def test_a_client_waits_for_the_guest_to_open_the_port(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "port")
    bench = make("agent", paths={"agent": path})
    bench.start()
    bench.tell(0, DEVICE_READY, 1)
    assert bench.hear() == (1, PORT_ADD, 1, b"")
    bench.offer(IN, 4, 64)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(b"hello")
        bench.wait_stat("opened", 1)
        assert idle(0.1)
        assert bench.stat("bytes_in") == 0
        bench.tell(1, PORT_OPEN, 1)
        assert bench.collect(IN) == [b"hello"]


def test_the_next_client_waits_until_the_driver_knows_of_the_last_ones_end(
    make: Make, tmp_path: Path
) -> None:
    path = str(tmp_path / "port")
    bench = make("agent", paths={"agent": path})
    bench.start(buffers=3)
    bench.tell(0, DEVICE_READY, 1)
    bench.tell(1, PORT_READY, 1)
    bench.tell(1, PORT_OPEN, 1)
    bench.offer(IN, 4, 64)
    heads: list[tuple[int, int]] = []
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(path)
        while len(heads) < 3:  # ADD, NAME, OPEN: no buffer is left
            heads += bench.used(CONTROL_IN)
        first.close()
        bench.wait_stat("closed", 1)
        second.connect(path)
        second.sendall(b"hello")
        assert not select.select([bench.irq_fd], [], [], 0)[0] or bench.interrupts()
        assert not select.select([bench.irq_fd], [], [], 0.2)[0]
        assert (bench.stat("opened"), bench.stat("bytes_in")) == (1, 0)
        bench.offer(CONTROL_IN, 2, 64)
        assert bench.collect(IN) == [b"hello"]
    assert bench.stat("opened") == 2


def test_a_listening_socket_can_be_handed_over(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "listener")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        device = Console(
            ConsoleConfig("s", (PortConfig(1, ChardevConfig("c", fd=os.dup(server.fileno()))),), 2)
        )
        device.close()


@pytest.mark.parametrize("opened", [False, True])
def test_a_peer_that_left_something_unread_does_not_spin(make: Make, opened: bool) -> None:
    bench = make("agent")
    bench.start()
    bench.introduce(*(1,) * opened)
    bench.host[1].sendall(b"x")
    bench.host[1].close()
    assert idle(0.2)
    bench.tell(1, PORT_OPEN, 1)
    bench.offer(IN, 1, 64)
    assert bench.collect(IN) == [b"x"]
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert idle(0.2)
