"""The devices that are not virtio, saved and restored: the serial port, registers, ports."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyvirt.devices import debug, power, testdev
from pyvirt.devices.chardev import FILE, NULL, ChardevConfig
from pyvirt.devices.power import Stateless
from pyvirt.devices.serial import Serial
from pyvirt.errors import StateError
from pyvirt.native import lib
from pyvirt.state import Fields

from .virtio.mutants import mutants

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCRATCH = 0, 1, 2, 2, 3, 4, 5, 6, 7
SECONDS = 10


def round_trip(state: object) -> Fields:
    """Return a state as a file would have it."""
    return Fields(json.loads(json.dumps(state)))


# Of a few registers


def register_devices(irq_fd: int) -> dict[str, Any]:
    def nothing(*_: object) -> None:
        """Be told."""

    return {
        "power": power.AcpiPower(nothing, nothing),
        "i8042": power.I8042(nothing),
        "events": power.EventDevice(irq_fd),
        "exit": debug.DebugExit(nothing),
        "timer": debug.BootTimer(nothing),
        "off": debug.BochsPowerOff(nothing),
        "panic": debug.PanicPort(nothing),
        "memory": testdev.SlowMemory(64),
        "flush": testdev.FlushPort(nothing),
        "lines": testdev.LinePorts(nothing),
    }


@pytest.fixture
def irq_fd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_every_device_of_registers_has_a_state(irq_fd: int) -> None:
    devices, others = register_devices(irq_fd), register_devices(irq_fd)
    for name, device in devices.items():
        for value in b"Shut":
            device.write(0, 1, value)
        state = device.save()
        assert (state == {}) == isinstance(device, Stateless), name
        fields = round_trip(state)
        others[name].restore(fields)
        fields.done()
        assert others[name].save() == state, name


def test_there_is_a_line_for_each_of_them(irq_fd: int) -> None:
    found = {
        made.__name__
        for module in (power, debug, testdev)
        for made in vars(module).values()
        if isinstance(made, type) and made.__module__ == module.__name__ and hasattr(made, "read")
    }
    assert found == {type(device).__name__ for device in register_devices(irq_fd).values()}


def test_a_power_button_that_the_guest_has_not_looked_at(irq_fd: int) -> None:
    before, after = power.EventDevice(irq_fd), power.EventDevice(irq_fd)
    before.press_power_button()
    after.restore(round_trip(before.save()))
    os.eventfd_read(irq_fd)
    after.resume()
    assert os.eventfd_read(irq_fd) == 1
    assert after.read(0, 4) == power.EventDevice.POWER_BUTTON
    after.resume()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(irq_fd)


def test_a_word_that_is_half_written() -> None:
    ends: list[int] = []
    before = debug.BochsPowerOff(lambda: ends.append(0))
    after = debug.BochsPowerOff(lambda: ends.append(1))
    for letter in b"Shut":
        before.write(0, 1, letter)
    after.restore(round_trip(before.save()))
    for letter in b"down":
        after.write(0, 1, letter)
    assert ends == [1]


@pytest.mark.parametrize(
    ("device", "state", "text"),
    [
        ("events", {"pending": 1 << 32}, "pending: 4294967296 is not between 0 and 4294967295"),
        ("off", {"letters": 8}, "letters: 8 is not between 0 and 7"),
        ("memory", {"bytes": "00"}, "bytes: has 1 bytes, not 64"),
    ],
)
def test_registers_that_cannot_be(
    irq_fd: int, device: str, state: dict[str, object], text: str
) -> None:
    with pytest.raises(StateError) as caught:
        register_devices(irq_fd)[device].restore(Fields(state))
    assert str(caught.value) == f"state: {text}"


# The serial port


class Port:
    """A serial port, the guest's side of it, and what is at its other end."""

    def __init__(self, stack: ExitStack, config: ChardevConfig) -> None:
        self.irq_fd = os.eventfd(0, os.EFD_NONBLOCK)
        stack.callback(os.close, self.irq_fd)
        self.serial = stack.enter_context(Serial(config, irq_fd=self.irq_fd))

    def read(self, offset: int) -> int:
        return int(lib.pv_uart_read(self.serial.handle, offset))

    def write(self, offset: int, value: int) -> None:
        lib.pv_uart_write(self.serial.handle, offset, value)

    def put(self, data: bytes) -> None:
        for byte in data:
            self.write(DATA, byte)

    def get(self, count: int) -> bytes:
        data = bytearray()
        until = time.monotonic() + SECONDS
        while len(data) < count:
            assert time.monotonic() < until, bytes(data)
            if self.read(LSR) & 1:
                data.append(self.read(DATA))
        return bytes(data)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self.serial.save()))
        return found

    def restore(self, state: object) -> None:
        fields = round_trip(state)
        self.serial.restore(fields)
        fields.done()

    def edges(self) -> int:
        try:
            return os.eventfd_read(self.irq_fd)
        except BlockingIOError:
            return 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def null(stack: ExitStack) -> Port:
    return Port(stack, ChardevConfig("c", NULL))


def connected(stack: ExitStack) -> tuple[Port, socket.socket]:
    """Return a port with a client, and the client."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return Port(stack, ChardevConfig("c", fd=theirs.detach())), ours


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_registers(stack: ExitStack) -> None:
    before, after = null(stack), null(stack)
    before.write(LCR, 0x80)
    before.write(0, 12)
    before.write(1, 34)
    before.write(LCR, 0x1B)
    before.write(FCR, 0xC1)
    before.write(IER, 0x0B)
    before.write(MCR, 0x0B)
    before.write(SCRATCH, 0x5A)
    state = before.state()
    after.restore(state)
    assert after.state() == state
    for register in (IER, LCR, MCR, SCRATCH, IIR, LSR, MSR):
        assert after.read(register) == before.read(register)
    after.write(LCR, 0x80)
    assert [after.read(0), after.read(1)] == [12, 34]


def test_what_was_written_and_not_taken_is_written_later(stack: ExitStack, tmp_path: Path) -> None:
    before = null(stack)  # not started: nobody takes it
    before.put(b"the end of a log")
    after = Port(stack, ChardevConfig("c", FILE, path=str(tmp_path / "log")))
    after.restore(before.state())
    after.serial.start()
    after.put(b", and more")
    assert after.serial.flush(SECONDS * 1000)
    assert (tmp_path / "log").read_bytes() == b"the end of a log, and more"


@pytest.mark.parametrize("is_started", [False, True])
def test_what_was_typed_and_not_read_is_read_later(stack: ExitStack, is_started: bool) -> None:
    before, typist = connected(stack)
    before.serial.start()
    before.write(FCR, 0x81)
    before.write(IER, 1)
    typist.sendall(b"0123456789abcdefghij")
    wait_for(lambda: len(before.state()["input"]) == 40)
    assert before.get(3) == b"012"
    state = before.state()
    assert bytes.fromhex(state["bytes"]) == b"3456789abcdef"
    assert bytes.fromhex(state["input"]) == b"3456789abcdefghij"
    after, successor = connected(stack)
    if is_started:
        after.serial.start()
    after.restore(state)
    if not is_started:
        after.serial.start()
    after.serial.resume()
    assert after.edges() > 0
    successor.sendall(b"!")
    assert after.get(18) == b"3456789abcdefghij!"
    # And the guest that goes on here reads it as well.
    assert before.get(17) == b"3456789abcdefghij"


def test_a_fifo_that_is_cleared_gives_back_what_was_unread(stack: ExitStack) -> None:
    before, typist = connected(stack)
    before.serial.start()
    before.write(FCR, 0x81)
    before.write(IER, 1)
    typist.sendall(b"abc")
    wait_for(lambda: before.state()["bytes"] == b"abc".hex())
    after, _ = connected(stack)
    after.restore(before.state())
    after.write(FCR, 0x83)
    assert after.get(3) == b"abc"


def test_bytes_in_loopback(stack: ExitStack) -> None:
    before, after = null(stack), null(stack)
    before.write(FCR, 1)
    before.write(MCR, 0x10)
    before.put(b"xyz")
    after.restore(before.state())
    assert after.get(3) == b"xyz"


def test_a_line_that_is_high_rises_again(stack: ExitStack) -> None:
    before, after = null(stack), null(stack)
    before.write(IER, 2)
    assert before.edges() == 1
    state = before.state()
    assert state["line"]
    after.restore(state)
    assert after.edges() == 0
    after.serial.resume()
    assert after.edges() == 1
    assert after.read(IIR) & 0xF == 2
    after.serial.resume()
    assert after.edges() == 0


def test_a_ring_that_is_full_tells_when_it_has_room(stack: ExitStack) -> None:
    before = null(stack)
    before.write(IER, 2)
    before.put(b"x" * 40_000)
    assert not before.read(LSR) & 0x20
    after, reader = connected(stack)
    after.restore(before.state())
    after.serial.resume()
    after.edges()
    after.serial.start()
    left = 40_000
    while left:
        assert select.select([reader], [], [], SECONDS)[0]
        left -= len(reader.recv(left))
    wait_for(lambda: after.read(IIR) & 0xF == 2)
    assert after.edges() == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ier": 256}, "ier: 256 is not between 0 and 255"),
        ({"bytes": "00" * 17}, "bytes: has 17 bytes, and 16 are the most"),
        ({"bytes": "00"}, "byte_errors: has 0 bytes, not 1"),
        ({"output": "00" * 65537}, "output: has 65537 bytes, and 65536 are the most"),
        ({"bytes": "61", "of_host": "01", "byte_errors": "00"}, "bytes: is no FIFO of this port"),
        (
            {"bytes": "6161", "of_host": "0000", "byte_errors": "0000"},  # and the FIFO is off
            "bytes: is no FIFO of this port",
        ),
    ],
)
def test_a_serial_port_that_cannot_be(
    stack: ExitStack, change: dict[str, object], text: str
) -> None:
    port = null(stack)
    with pytest.raises(StateError) as caught:
        port.restore(port.state() | change)
    assert str(caught.value).startswith(f"state: {text}")


@given(st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_state_that_somebody_has_changed(data: st.DataObject) -> None:
    with ExitStack() as stack:
        before, after = null(stack), null(stack)
        before.write(FCR, 1)
        before.write(MCR, 0x10)
        before.put(b"xyz")
        state = data.draw(mutants(before.state()))
        try:
            after.restore(state)
        except StateError:
            return
        after.serial.resume()
        for offset in range(8):
            after.read(offset)
            after.write(offset, 0xFF)
            after.read(offset)
        after.state()
