"""Ports: control messages, both directions, ends that come and go, and hostile drivers."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio import console
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.console import MULTIPORT, Console, ConsoleConfig, PortConfig
from pyvirt.errors import ConfigError
from pyvirt.native import lib

from .mock_driver import Driver
from .port_bench import (
    BUFFERS,
    CONTROL_IN,
    CONTROL_OUT,
    DATA,
    DEVICE_READY,
    MESSAGES,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    SECONDS,
    PortBench,
    queues,
)

IN, OUT = queues(1)
PIECES, LENGTH = 30, 60_000  # more than a socket takes
Make = Callable[..., PortBench]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a maker of devices; all are closed at the end."""
    benches: list[PortBench] = []

    def maker(*names: str, **options: object) -> PortBench:
        benches.append(PortBench(*names, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield maker
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make: Make) -> PortBench:
    """Return a device with one port, open on both sides."""
    bench = make("agent")
    bench.start()
    bench.introduce(1)
    return bench


def read_all(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = end.recv(count - len(data))
        assert piece
        data += piece
    return bytes(data)


def noise(count: int) -> bytes:
    return bytes(range(251)) * (count // 251 + 1)


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
        data = noise(size)[:size]
        bench.host[1].sendall(data)
        assert bench.receive(1, size) == data
        bench.add(OUT, data)
        assert read_all(bench.host[1], size) == data
        assert bench.used(OUT)
    assert bench.stat("bytes_in") == bench.stat("bytes_out") == 1 + 7 + 4096 + 4097 + 20_000
    assert bench.stat("dropped") == 0


def test_megabytes_both_ways_at_once_arrive_whole_and_in_order(bench: PortBench) -> None:
    size = 4 << 20
    data = noise(size)[:size]
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
    before = bench.stat("kicks")
    for _ in range(4):
        bench.host[1].sendall(b"x")
        assert bench.collect(IN) == [b"x"]
        bench.offer(IN, 1, 64)
    assert bench.stat("kicks") == before


# Back-pressure


def test_what_the_socket_does_not_take_stays_in_the_ring(bench: PortBench) -> None:
    pieces = [noise(LENGTH)[i : i + LENGTH] for i in range(PIECES)]
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
        bench.add(OUT, noise(LENGTH)[:LENGTH], DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.add(queues(2)[1], b"passes", MESSAGES + 0x1000)
    assert read_all(bench.host[2], 6) == b"passes"


# The host's end comes and goes


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
        bench.add(OUT, noise(LENGTH)[:LENGTH], DATA + index * LENGTH)
    bench.wait_stat("blocked", 1)
    bench.host[1].close()
    done = 0
    while done < PIECES:
        done += len(bench.used(OUT))
    assert bench.hear() == (1, PORT_OPEN, 0, b"")
    assert bench.stat("bytes_out") + bench.stat("dropped") == PIECES * LENGTH
    bench.add(OUT, b"more")
    assert bench.used(OUT)


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
        bench.add(OUT, noise(LENGTH)[:LENGTH], DATA + index * LENGTH)
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


# Hostile drivers


def message(port: int, event: int, value: int) -> bytes:
    return struct.pack("<IHH", port, event, value)


@pytest.mark.parametrize("event", [PORT_READY, PORT_OPEN])
@pytest.mark.parametrize("port", [0, 2, 31, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_message_about_a_port_that_there_is_not(bench: PortBench, port: int, event: int) -> None:
    bench.add(CONTROL_OUT, message(port, event, 1))
    assert bench.wait_broken() == (
        f"virtio-serial serial0: a control message about port {port}, which there is not; "
        "it needs a reset"
    )


@pytest.mark.parametrize("size", [0, 1, 7, 9, 4096])
def test_a_message_of_another_size(bench: PortBench, size: int) -> None:
    bench.add(CONTROL_OUT, message(1, PORT_OPEN, 1).ljust(size, b"x")[:size])
    assert "a control message of the wrong size or direction" in bench.wait_broken()


def offer(driver: Driver, readable: int, writable: int) -> None:
    driver.add([(DATA, readable)] if readable else [], [(BUFFERS, writable)] if writable else [])


@pytest.mark.parametrize(
    ("index", "readable", "writable", "why"),
    [
        (CONTROL_OUT, 8, 8, "a control message of the wrong size or direction"),
        (CONTROL_OUT, 0, 8, "a control message of the wrong size or direction"),
        (IN, 8, 0, "a receive buffer of a port that is to be read"),
        (IN, 8, 8, "a receive buffer of a port that is to be read"),
        (OUT, 0, 8, "a transmit buffer of a port that is to be written"),
        (OUT, 8, 8, "a transmit buffer of a port that is to be written"),
    ],
)
def test_buffers_of_the_wrong_direction(
    bench: PortBench, index: int, readable: int, writable: int, why: str
) -> None:
    offer(bench.drivers[index], readable, writable)
    bench.publish(index)
    assert why in bench.wait_broken()


def test_a_receive_buffer_without_room(bench: PortBench) -> None:
    bench.drivers[IN].add(writable=[(BUFFERS, 0)])
    bench.publish(IN)
    assert "a receive buffer of a port without room" in bench.wait_broken()


def test_a_transmit_buffer_without_bytes_is_given_back(bench: PortBench) -> None:
    bench.drivers[OUT].add([(DATA, 0)])
    bench.add(OUT, b"x")
    done = 0
    while done < 2:
        done += len(bench.used(OUT))
    assert bench.host[1].recv(10) == b"x"


@pytest.mark.parametrize(("readable", "writable"), [(0, 7), (0, 12), (8, 64), (8, 0)])
def test_a_buffer_that_a_message_does_not_fit(make: Make, readable: int, writable: int) -> None:
    bench = make("agent")
    bench.start(buffers=0)
    offer(bench.drivers[CONTROL_IN], readable, writable)
    bench.drivers[CONTROL_IN].add(writable=[(BUFFERS, 12)])  # too small for the name
    bench.publish(CONTROL_IN)
    bench.add(CONTROL_OUT, message(0, DEVICE_READY, 1))
    bench.add(CONTROL_OUT, message(1, PORT_READY, 1), MESSAGES)
    assert "a buffer that a control message does not fit" in bench.wait_broken()


@pytest.mark.parametrize("index", [IN, OUT, CONTROL_IN, CONTROL_OUT])
def test_a_ring_whose_rules_are_broken(bench: PortBench, index: int) -> None:
    ring = bench.drivers[index].ring
    ring.offer(bench.drivers[index].position, 5)
    ring.describe(5, DATA, 8, 1, 5)  # its own successor
    ring.avail_idx = bench.drivers[index].position + 1
    bench.set(r.QUEUE_NOTIFY, index)
    if index == CONTROL_IN:
        bench.wait_stat("messages", 3)
        for _ in range(8):  # until the sound buffers are used up
            bench.add(CONTROL_OUT, message(1, PORT_READY, 1), MESSAGES)
            if bench.broken:
                break
            bench.used(CONTROL_OUT)
    assert bench.wait_broken().endswith("it needs a reset")


def test_a_driver_that_takes_no_messages_is_owed_a_fixed_number(make: Make) -> None:
    bench = make("a", "b")
    bench.start(buffers=0)
    for _ in range(500):
        bench.tell(0, DEVICE_READY, 1)
        bench.tell(1, PORT_READY, 1)
        bench.tell(2, PORT_READY, 1)
    bench.tell(1, PORT_OPEN, 1)
    bench.offer(IN, 1, 64)
    bench.host[1].sendall(b"flows")
    assert bench.collect(IN) == [b"flows"]
    bench.offer(CONTROL_IN, 20, 512)
    heard = [bench.hear()[:2] for _ in range(4)]
    assert heard == [(1, PORT_NAME), (1, PORT_OPEN), (2, PORT_NAME), (2, PORT_OPEN)]
    bench.tell(1, PORT_OPEN, 1)
    assert bench.drivers[CONTROL_IN].collect() == []


def test_a_broken_device_works_again_after_a_reset(bench: PortBench) -> None:
    bench.add(CONTROL_OUT, b"short")
    bench.wait_broken()
    bench.set(r.STATUS, 0)
    bench.start()
    bench.introduce(1)
    bench.add(OUT, b"well")
    assert read_all(bench.host[1], 4) == b"well"


def test_a_broken_device_does_not_spin(bench: PortBench) -> None:
    bench.add(CONTROL_OUT, b"short")
    bench.wait_broken()
    bench.host[1].sendall(b"x")
    before = os.times()
    select.select([], [], [], 0.2)
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.1
