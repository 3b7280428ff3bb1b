"""Ports: control messages, both directions, back-pressure, and the life of the device."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio import console
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.console import MULTIPORT, Console, ConsoleConfig, PortConfig
from pyvirt.errors import ConfigError
from pyvirt.native import lib

from .port_bench import (
    BUFFERS,
    CONTROL_IN,
    DATA,
    DEVICE_READY,
    IN,
    LENGTH,
    MESSAGES,
    OUT,
    PIECES,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    SECONDS,
    Make,
    PortBench,
    bench,
    make,
    noise,
    queues,
    read_all,
)

__all__ = ["bench", "make"]  # fixtures


# What the driver is offered


def test_queues_and_configuration_space(make: Make) -> None:
    bench = make("a", "b", ports_max=5)
    assert bench.device.queue_sizes == (128, 128, 32, 32, *(128, 128) * 4)
    assert bench.device.features == MULTIPORT
    assert struct.unpack("<HHII", bench.device.config()) == (0, 0, 5, 0)


def test_what_python_allows_is_what_c_allows() -> None:
    assert console.PORTS_MAX == lib.PV_PORTS_MAX
    assert console.NAME_BYTES == lib.PV_PORT_NAME_MAX


# Control messages


def test_a_driver_is_told_of_ports_names_and_open_ends(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "b")
    bench = make("first", "b", paths={"b": path})
    bench.start()
    bench.tell(0xFFFFFFFF, DEVICE_READY, 1)
    assert bench.hear() == (1, PORT_ADD, 1, b"")
    assert bench.hear() == (2, PORT_ADD, 1, b"")
    bench.tell(1, PORT_READY, 1)
    assert bench.hear() == (1, PORT_NAME, 1, b"first")
    assert bench.hear() == (1, PORT_OPEN, 1, b"")
    bench.tell(2, PORT_READY, 1)
    assert bench.hear() == (2, PORT_NAME, 1, b"b")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert bench.hear() == (2, PORT_OPEN, 1, b"")
    assert bench.hear() == (2, PORT_OPEN, 0, b"")


def test_a_driver_that_asks_again_is_told_again(bench: PortBench) -> None:
    bench.tell(0xFFFFFFFF, DEVICE_READY, 1)
    assert bench.hear() == (1, PORT_ADD, 1, b"")
    bench.tell(1, PORT_READY, 1)
    assert bench.hear() == (1, PORT_NAME, 1, b"agent")
    assert bench.hear() == (1, PORT_OPEN, 1, b"")


def test_a_port_that_the_driver_could_not_add_is_left_alone(make: Make) -> None:
    bench = make("a", "b")
    bench.start()
    bench.tell(0xFFFFFFFF, DEVICE_READY, 1)
    assert [bench.hear()[:2] for _ in range(2)] == [(1, PORT_ADD), (2, PORT_ADD)]
    bench.tell(1, PORT_READY, 0)
    bench.host[1].close()
    bench.tell(2, PORT_READY, 1)
    assert bench.hear() == (2, PORT_NAME, 1, b"b")


def test_unknown_events_ask_for_nothing(bench: PortBench) -> None:
    for event in (2, 4, 5, 7, 8, 0xFFFF):
        bench.tell(99, event, 1)
    bench.add(OUT, b"lives")
    assert read_all(bench.host[1], 5) == b"lives"
    assert not bench.broken


def test_without_multiport_there_is_nothing_but_a_sink(make: Make) -> None:
    bench = make("agent")
    bench.start(0)
    bench.add(1, b"console")
    assert bench.used(1)
    bench.wait_stat("dropped", 7)
    assert bench.drivers[CONTROL_IN].collect() == []


# Data


@pytest.mark.parametrize("event_idx", [False, True])
def test_bytes_go_both_ways(make: Make, event_idx: bool) -> None:
    bench = make("agent")
    bench.start(event_idx=event_idx)
    bench.introduce(1)
    bench.offer(IN, 8, 4096)
    for size in (1, 7, 4096, 4097, 20_000):
        data = noise(size)
        bench.host[1].sendall(data)
        assert bench.receive(1, size) == data
        bench.add(OUT, data)
        assert read_all(bench.host[1], size) == data
        assert bench.used(OUT)
    assert bench.stat("bytes_in") == bench.stat("bytes_out") == 1 + 7 + 4096 + 4097 + 20_000
    assert bench.stat("dropped") == 0


def test_megabytes_both_ways_at_once_arrive_whole_and_in_order(bench: PortBench) -> None:
    size = 4 << 20
    data = noise(size)
    got = bytearray()

    def talk() -> None:
        bench.host[1].sendall(data)

    def listen() -> None:
        got.extend(read_all(bench.host[1], size))

    threads = [threading.Thread(target=talk), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    bench.offer(IN, 16, 4096)
    received = bytearray()
    sent = 0
    while len(received) < size or sent < size:
        while sent < size and bench.drivers[OUT].free:
            piece = data[sent : sent + 30_000]
            bench.add(OUT, piece, DATA + sent)
            sent += len(piece)
        if len(received) < size:
            pieces = bench.collect(IN)
            received += b"".join(pieces)
            bench.offer(IN, len(pieces), 4096)
        bench.drivers[OUT].enable_interrupts()
        bench.drivers[OUT].collect()
    for thread in threads:
        thread.join(SECONDS)
    assert received == data
    assert got == data


def test_a_buffer_in_segments_and_one_in_a_table(make: Make) -> None:
    bench = make("agent")
    bench.start(MULTIPORT | r.INDIRECT_DESC)
    bench.introduce(1)
    ram = bench.ram
    ram.view(DATA, 6)[:] = b"abcdef"
    bench.drivers[OUT].add([(DATA, 1), (DATA + 1, 2), (DATA + 3, 0), (DATA + 3, 3)])
    bench.drivers[OUT].add([(DATA, 3), (DATA + 3, 3)], table=DATA + 0x1000)
    bench.publish(OUT)
    assert read_all(bench.host[1], 12) == b"abcdefabcdef"
    bench.drivers[IN].add(writable=[(BUFFERS, 2), (BUFFERS + 0x100, 4)], table=DATA + 0x2000)
    bench.publish(IN)
    bench.host[1].sendall(b"uvwxyz")
    assert [length for _, length in bench.used(IN)] == [6]
    assert bytes(ram.view(BUFFERS, 2)) + bytes(ram.view(BUFFERS + 0x100, 4)) == b"uvwxyz"


def test_nothing_is_read_before_the_guest_opens_the_port(make: Make) -> None:
    bench = make("a", "b")
    bench.start()
    bench.introduce(2)
    bench.offer(IN, 4, 64)
    bench.offer(queues(2)[0], 4, 64)
    bench.host[1].sendall(b"early")
    bench.host[2].sendall(b"in time")
    assert bench.collect(queues(2)[0]) == [b"in time"]
    assert bench.stat("bytes_in") == 7
    bench.tell(1, PORT_OPEN, 1)
    assert bench.collect(IN) == [b"early"]


def test_a_port_that_the_guest_closes_keeps_its_socket_and_what_it_holds(bench: PortBench) -> None:
    bench.offer(IN, 4, 64)
    bench.tell(1, PORT_OPEN, 0)
    bench.host[1].sendall(b"kept")
    bench.add(OUT, b"last words")
    assert read_all(bench.host[1], 10) == b"last words"
    assert bench.stat("bytes_in") == 0
    bench.tell(1, PORT_OPEN, 1)
    assert bench.collect(IN) == [b"kept"]


def test_an_idle_device_does_not_ask_for_kicks_of_receive_buffers(bench: PortBench) -> None:
    bench.offer(IN, 4, 64)
    bench.host[1].sendall(b"x")
    assert bench.collect(IN) == [b"x"]
    before = bench.stat("kicks")
    for _ in range(3):
        bench.host[1].sendall(b"x")
        assert bench.collect(IN) == [b"x"]
        bench.offer(IN, 1, 64)
    assert bench.stat("kicks") == before


# Back-pressure


def test_what_the_socket_does_not_take_stays_in_the_ring(bench: PortBench) -> None:
    pieces = [noise(LENGTH + i)[i:] for i in range(PIECES)]
    for index, piece in enumerate(pieces):
        bench.add(OUT, piece, DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    done = len(bench.drivers[OUT].collect())
    assert done < PIECES
    assert bench.stat("bytes_out") < PIECES * LENGTH
    # Others have their turn meanwhile.
    bench.host[1].sendall(b"x")
    bench.offer(IN, 1, 64)
    assert bench.collect(IN) == [b"x"]
    assert read_all(bench.host[1], PIECES * LENGTH) == b"".join(pieces)
    while done < PIECES:
        done += len(bench.used(OUT))
    assert bench.stat("bytes_out") == PIECES * LENGTH


def test_a_buffer_larger_than_the_socket_goes_out_in_pieces(bench: PortBench) -> None:
    data = noise(2 << 20)
    bench.add(OUT, data)
    bench.add(OUT, b"after it", DATA + (4 << 20))
    part = 1 << 18
    for times in range(3):
        # What is read makes room, which is filled before it blocks again.
        bench.wait_stat("blocked", times + 1)
        assert read_all(bench.host[1], part) == data[times * part : (times + 1) * part]
    assert read_all(bench.host[1], len(data) - 3 * part) == data[3 * part :]
    assert read_all(bench.host[1], 8) == b"after it"


def test_a_guest_without_buffers_stops_the_host(bench: PortBench) -> None:
    bench.host[1].setblocking(False)
    sent = 0
    bench.wait_stat("starved", 1)
    while True:
        try:
            sent += bench.host[1].send(noise(65536))
        except BlockingIOError:
            break
    assert bench.stat("bytes_in") == 0
    bench.offer(IN, 16, 4096)
    data = bench.receive(1, sent)
    assert len(data) == sent
    assert sent == bench.stat("bytes_in")


def test_a_stuck_port_holds_up_no_other(make: Make) -> None:
    bench = make("stuck", "free")
    bench.start()
    bench.introduce(1, 2)
    for index in range(PIECES):
        bench.add(OUT, noise(LENGTH), DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.add(queues(2)[1], b"passes", MESSAGES + 0x1000)
    assert read_all(bench.host[2], 6) == b"passes"


# Life


def test_connections_outlive_the_driver(bench: PortBench) -> None:
    bench.offer(IN, 4, 64)
    bench.set(r.STATUS, 0)
    bench.host[1].sendall(b"meanwhile")
    bench.start()
    bench.introduce(1)
    bench.offer(IN, 4, 64)
    assert bench.collect(IN) == [b"meanwhile"]
    bench.add(OUT, b"again")
    assert read_all(bench.host[1], 5) == b"again"


def test_a_blocked_device_resets_at_once(bench: PortBench) -> None:
    for index in range(PIECES):
        bench.add(OUT, noise(LENGTH), DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0


def test_close_closes_sockets_and_removes_the_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "port"
    ours, theirs = socket.socketpair()
    with ours:
        ports = (
            PortConfig(1, ChardevConfig("a", path=str(path))),
            PortConfig(2, ChardevConfig("b", fd=theirs.detach())),
        )
        device = Console(ConsoleConfig("s", ports, 3))
        assert path.is_socket()
        device.close()
        assert not path.exists()
        assert ours.recv(1) == b""


def test_sockets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    def refuse(config: ChardevConfig) -> str:
        with pytest.raises(ConfigError) as caught:
            Console(ConsoleConfig("s", (PortConfig(1, config),), 2))
        return str(caught.value)

    mend = "hand over a stream socket that is connected or listens"
    assert refuse(ChardevConfig("c", fd=999)) == (
        f"-chardev id=c: fd=999: Bad file descriptor; {mend}"
    )
    with (tmp_path / "file").open("w") as file:
        assert "Socket operation on non-socket; hand" in refuse(
            ChardevConfig("c", fd=file.fileno())
        )
    with socket.socket(socket.AF_UNIX) as lone:
        assert "not connected; hand" in refuse(ChardevConfig("c", fd=lone.fileno()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as packets:
        assert "wrong type for socket; hand" in refuse(ChardevConfig("c", fd=packets.fileno()))
    assert refuse(ChardevConfig("c", path=str(tmp_path / "no" / "folder"))) == (
        f"-chardev id=c: {tmp_path}/no/folder: No such file or directory; "
        "name another path, in a folder that can be written"
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "served"))
        server.listen()
        assert "Address already in use" in refuse(ChardevConfig("c", path=str(tmp_path / "served")))
