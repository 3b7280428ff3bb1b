"""The serial port's backends, driven through the port's registers."""

from __future__ import annotations

import os
import select
import socket
import stat
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.chardev import FILE, NULL, PTY, RINGBUF, SOCKET, ChardevConfig
from pyvirt.devices.serial import Serial
from pyvirt.errors import BackendError, ConfigError
from pyvirt.native import ffi, lib

DATA, IER, LSR = 0, 1, 5
SECONDS = 10


class Port:
    """A started serial port, and the guest's side of it."""

    def __init__(self, config: ChardevConfig) -> None:
        self.irq_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.serial = Serial(config, irq_fd=self.irq_fd)
        self.serial.start()

    def put(self, data: bytes) -> None:
        for byte in data:
            lib.pv_uart_write(self.serial.handle, DATA, byte)

    def get(self, count: int) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + SECONDS
        while len(data) < count and time.monotonic() < deadline:
            if lib.pv_uart_read(self.serial.handle, LSR) & 1:
                data.append(lib.pv_uart_read(self.serial.handle, DATA))
        return bytes(data)

    def close(self) -> None:
        self.serial.close()
        os.close(self.irq_fd)


@pytest.fixture
def ports() -> Iterator[list[Port]]:
    """Ports to be closed at the end."""
    opened: list[Port] = []
    yield opened
    for port in opened:
        port.close()


def open_port(ports: list[Port], kind: str, path: Path | str = "") -> Port:
    port = Port(ChardevConfig("c", kind, path=str(path)))
    ports.append(port)
    return port


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], SECONDS)[0], f"nothing after {data!r}"
        piece = os.read(fd, count - len(data))
        assert piece, f"closed after {data!r}"
        data += piece
    return data


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_file(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("what was there before")
    port = open_port(ports, FILE, path)
    assert port.serial.first_output_ns() == 0
    before = time.monotonic_ns()
    port.put(b"Linux version\r\n")
    assert port.serial.flush(SECONDS * 1000)
    assert path.read_bytes() == b"Linux version\r\n"
    assert before <= port.serial.first_output_ns() <= time.monotonic_ns()
    assert port.serial.stats().bytes_out == 15


def test_a_file_that_is_emptied_meanwhile_has_no_hole(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "log"
    port = open_port(ports, FILE, path)
    port.put(b"the first lines\n")
    assert port.serial.flush(SECONDS * 1000)
    os.truncate(path, 0)
    port.put(b"those after\n")
    assert port.serial.flush(SECONDS * 1000)
    assert path.read_bytes() == b"those after\n"


def test_a_file_may_be_added_to(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    port = Port(ChardevConfig("c", FILE, path=str(path), append=True))
    ports.append(port)
    port.put(b"after\n")
    assert port.serial.flush(SECONDS * 1000)
    assert path.read_text() == "before\nafter\n"


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = open_fds()
    for name, says in (
        ("no/such/folder", "No such file"),
        ("", "directory"),
        ("fifo", "start its reader first"),
    ):
        with pytest.raises(ConfigError) as caught:
            Serial(ChardevConfig("c", FILE, path=f"{tmp_path}/{name}"), irq_fd=-1)
        assert says in str(caught.value)
        assert str(caught.value).startswith(f"-chardev id=c: {tmp_path}/{name}: ")
    assert open_fds() == before


def test_none_never_holds_the_guest_up(ports: list[Port]) -> None:
    port = open_port(ports, NULL)
    for _ in range(20):
        deadline = time.monotonic() + SECONDS
        while not lib.pv_uart_read(port.serial.handle, LSR) & 0x20:
            assert time.monotonic() < deadline
        port.put(b"." * 10000)
    assert port.serial.flush(0)
    assert port.serial.stats().bytes_dropped == 0


def test_socket(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    port = open_port(ports, SOCKET, path)
    port.put(b"before anybody came\n")
    for name in (b"first", b"second"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            if name == b"first":
                assert read_exactly(client.fileno(), 20) == b"before anybody came\n"
            client.sendall(name)
            assert port.get(len(name)) == name
            port.put(b"hello " + name)
            assert read_exactly(client.fileno(), 6 + len(name)) == b"hello " + name
    assert stat.S_ISSOCK(path.stat().st_mode)
    port.serial.close()
    assert not path.exists()


def test_socket_left_behind_is_replaced(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    port = open_port(ports, SOCKET, path)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"x")
        assert port.get(1) == b"x"


def test_socket_in_use_is_left_alone(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    open_port(ports, SOCKET, path)
    with pytest.raises(ConfigError, match="end the process that listens there"):
        Serial(ChardevConfig("c", path=str(path)), irq_fd=-1)
    assert path.exists()
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ConfigError):
        Serial(ChardevConfig("c", path=str(file)), irq_fd=-1)
    assert file.read_text() == "kept"


def test_socket_of_another_is_not_removed(ports: list[Port], tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    port = open_port(ports, SOCKET, path)
    path.unlink()
    path.write_text("somebody else's")
    port.serial.close()
    assert path.exists()


def test_pty(ports: list[Port]) -> None:
    port = open_port(ports, PTY)
    assert port.serial.chardev.pty_path.startswith("/dev/pts/")
    port.put(b"early\n")
    for turn in range(2):
        fd = os.open(port.serial.chardev.pty_path, os.O_RDWR | os.O_NOCTTY)
        try:
            assert not termios.tcgetattr(fd)[3] & (termios.ECHO | termios.ICANON)
            if turn == 0:
                assert read_exactly(fd, 6) == b"early\n"
            port.put(b"login: ")
            assert read_exactly(fd, 7) == b"login: "
            os.write(fd, b"root\x03")
            assert port.get(5) == b"root\x03"
        finally:
            os.close(fd)


def test_a_ring_buffer_keeps_the_newest(ports: list[Port]) -> None:
    port = Port(ChardevConfig("c", RINGBUF, size=16))
    ports.append(port)
    port.put(b"the oldest and the newest bytes")
    assert port.serial.flush(SECONDS * 1000)
    data = bytearray(100)
    kept = lib.pv_ringbuf_read(port.serial.chardev.ringbuf, ffi.from_buffer(data), 100)
    assert data[:kept] == b"the newest bytes"
    assert port.serial.is_taken()


def test_interrupt_reaches_the_eventfd(ports: list[Port], tmp_path: Path) -> None:
    port = open_port(ports, FILE, tmp_path / "log")
    with pytest.raises(BlockingIOError):
        os.eventfd_read(port.irq_fd)
    lib.pv_uart_write(port.serial.handle, IER, 0x02)
    assert os.eventfd_read(port.irq_fd) == 1


def test_attach_enters_eight_ports(ports: list[Port]) -> None:
    port = open_port(ports, NULL)
    entered: list[tuple[object, ...]] = []

    class Bus:
        def add_ports(self, *arguments: object) -> None:
            entered.append(arguments)

    port.serial.attach(Bus(), 0x3F8)
    assert entered == [(0x3F8, 8, "pv_uart_read", "pv_uart_write", port.serial.handle)]


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    before = open_fds()
    tasks = len(os.listdir("/proc/self/task"))
    for kind, path in ((FILE, "log"), (SOCKET, "sock"), (PTY, "tty"), (NULL, ""), (RINGBUF, "")):
        port = Port(ChardevConfig("c", kind, path=str(tmp_path / path)))
        with pytest.raises(BackendError, match="busy"):
            port.serial.start()
        port.close()
        port.serial.close()
    assert open_fds() == before
    assert len(os.listdir("/proc/self/task")) == tasks


def test_a_reset_port_is_as_a_new_one(ports: list[Port]) -> None:
    new, used = open_port(ports, NULL), open_port(ports, NULL)
    for offset, value in ((3, 0x80), (0, 1), (1, 7), (3, 0x1B), (IER, 0xF), (2, 0xC1), (4, 0x1F)):
        lib.pv_uart_write(used.serial.handle, offset, value)

    def state(port: Port) -> list[int]:
        registers = [lib.pv_uart_read(port.serial.handle, offset) for offset in range(1, 7)]
        lib.pv_uart_write(port.serial.handle, 3, 0x83)
        registers += [lib.pv_uart_read(port.serial.handle, offset) for offset in (0, 1)]
        lib.pv_uart_write(port.serial.handle, 3, 3)
        return registers

    assert state(used) != state(new)
    used.serial.reset()
    state(used)  # what changed of the modem's lines is told once
    assert state(used) == state(new)
