"""Drivers of ports that break the rules: each breach ends the device and nothing else."""

from __future__ import annotations

import struct

import pytest
from pyvirt.devices.virtio import registers as r

from .mock_driver import Driver
from .port_bench import (
    BUFFERS,
    CONTROL_IN,
    CONTROL_OUT,
    DATA,
    DEVICE_READY,
    IN,
    MESSAGES,
    OUT,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    Make,
    PortBench,
    bench,
    make,
    read_all,
)
from .queue_bench import idle

__all__ = ["bench", "make"]  # fixtures


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
    assert idle(0.2)
