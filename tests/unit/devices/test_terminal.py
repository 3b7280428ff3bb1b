"""The user's terminal: a process with a serial port on its standard streams, on a pty."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.terminal import RawTerminal

SECONDS = 20

# A guest that gives back what it is sent, in capitals, until it is told to end.
ECHO = """
import os, select, signal, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it a session leader's controlling terminal
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.serial import Serial
from pyvirt.devices.terminal import RawTerminal
from pyvirt.native import lib

quit_fd = os.eventfd(0, os.EFD_NONBLOCK)
wakeup_reader, wakeup = os.pipe2(os.O_NONBLOCK)
signal.set_wakeup_fd(wakeup)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
config = ChardevConfig("serial0", "stdio")
config.quit_fd = quit_fd
serial = Serial(config, irq_fd=-1)
uart = serial.handle
try:
    with RawTerminal():
        serial.start()
        os.write(2, b"process %d ready\\n" % os.getpid())
        while not select.select([quit_fd], [], [], 0.001)[0]:
            while lib.pv_uart_read(uart, 5) & 1:
                byte = lib.pv_uart_read(uart, 0)
                if byte == ord("!"):
                    raise RuntimeError("as asked")
                lib.pv_uart_write(uart, 0, byte - 32 if 97 <= byte <= 122 else byte)
        serial.flush(1000)
finally:
    serial.close()
"""


class Session:
    """A process that leads a session of its own with a pty as its terminal."""

    def __init__(self, program: str) -> None:
        # The terminal stays open here, so that its mode can be read after the process has gone.
        self.master, self.terminal = os.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.text = b""
        self.passed = b""  # what came before that which was expected last

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, data: bytes) -> None:
        """Wait until the process has written `data` since the last call."""
        deadline = time.monotonic() + SECONDS
        while data not in self.text:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.master], [], [], left)[0], f"no {data!r} in {self.text!r}"
            self.text += os.read(self.master, 4096)
        self.passed, _, self.text = self.text.partition(data)

    def local_mode(self) -> int:
        mode = termios.tcgetattr(self.terminal)[3]
        assert isinstance(mode, int)
        return mode

    def is_raw(self) -> bool:
        return not self.local_mode() & (termios.ECHO | termios.ICANON | termios.ISIG)

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self.master)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def session() -> Iterator[Session]:
    opened = Session(ECHO)
    yield opened
    opened.close()


def test_keys_reach_the_guest_and_the_terminal_is_restored(session: Session) -> None:
    session.expect(b"ready")
    assert session.is_raw()
    assert termios.tcgetattr(session.terminal)[1] == session.before[1]  # output as it was
    session.send(b"hello\r\x03\x1a\x11\x13\xff\x01\x01")
    session.expect(b"HELLO\r\x03\x1a\x11\x13")
    session.send(b"\x01h")
    session.expect(b"Ctrl-A X")
    session.send(b"\x01x")
    assert session.wait() == 0
    assert termios.tcgetattr(session.terminal) == session.before


def test_an_exception_restores_the_terminal(session: Session) -> None:
    session.expect(b"ready")
    session.send(b"!")
    session.expect(b"as asked")
    assert session.wait() == 1
    assert termios.tcgetattr(session.terminal) == session.before


def test_sigterm_restores_the_terminal(session: Session) -> None:
    session.expect(b"ready")
    os.kill(session.pid, signal.SIGTERM)
    assert session.wait() == 7
    assert termios.tcgetattr(session.terminal) == session.before


def test_a_stopped_process_gives_the_terminal_back(session: Session) -> None:
    session.expect(b"ready")
    os.kill(session.pid, signal.SIGTSTP)
    eventually(lambda: is_stopped(session.pid))
    assert termios.tcgetattr(session.terminal) == session.before
    os.kill(session.pid, signal.SIGCONT)
    eventually(session.is_raw)
    session.send(b"back")
    session.expect(b"BACK")
    session.send(b"\x01x")
    assert session.wait() == 0
    assert termios.tcgetattr(session.terminal) == session.before


def test_the_background_leaves_the_terminal_alone() -> None:
    leader = f"""
import os
os.close(os.open(os.ttyname(0), os.O_RDWR))
if os.fork() == 0:
    os.setpgid(0, 0)
    exec({ECHO!r})
    os._exit(0)
os.wait()
"""
    session = Session(leader)
    try:
        session.expect(b"process ")
        session.expect(b" ready")
        job = int(session.passed)
        before = session.local_mode()
        assert not session.is_raw()
        session.send(b"for another\n")
        time.sleep(0.3)
        assert not session.is_raw()
        os.kill(job, signal.SIGTERM)  # its way out leaves the terminal alone too
        assert session.wait() == 0
        assert session.local_mode() == before
        session.expect(b"for another")
        assert b"ANOTHER" not in session.text
    finally:
        session.close()


def test_handlers_are_put_back() -> None:
    master, terminal = os.openpty()
    taken = (signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)
    before = [signal.getsignal(n) for n in taken]
    try:
        with RawTerminal(fd=terminal):
            assert signal.getsignal(signal.SIGTSTP) not in before
        assert [signal.getsignal(n) for n in taken] == before
    finally:
        os.close(master)
        os.close(terminal)


def test_a_terminal_that_has_gone_is_no_error() -> None:
    master, terminal = os.openpty()
    with RawTerminal(fd=terminal):
        os.close(master)
        os.close(terminal)


def test_a_change_of_size_is_told_of() -> None:
    master, terminal = os.openpty()
    told: list[os.terminal_size] = []
    with RawTerminal(terminal, resized=lambda: told.append(os.get_terminal_size(terminal))):
        termios.tcsetwinsize(master, (7, 90))
        os.kill(os.getpid(), signal.SIGWINCH)
        assert told == [(90, 7)]
        os.kill(os.getpid(), signal.SIGCONT)
        assert len(told) == 2
    os.close(master)
    os.close(terminal)


def test_signals_may_stay_the_terminals_own() -> None:
    master, terminal = os.openpty()
    with RawTerminal(terminal, signals=True):
        assert termios.tcgetattr(terminal)[3] & termios.ISIG
        assert not termios.tcgetattr(terminal)[3] & termios.ICANON
    os.close(master)
    os.close(terminal)
