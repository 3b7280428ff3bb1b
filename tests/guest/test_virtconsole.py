"""Consoles under Linux's own driver: the kernel's output, a login, sizes, what memory has kept."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from pyvirt.devices.chardev import PTY, RINGBUF, ChardevConfig
from pyvirt.devices.virtio.console import Console, ConsoleConfig, PortConfig
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.qmp.machine import MachineHost

from .conftest import command
from .live import Live, live

SECONDS = 60.0


class End:
    """The host's end of a console: an open descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.text = ""

    def expect(self, text: str) -> str:
        """Wait until `text` comes; return what came before it since the last call."""
        until = time.monotonic() + SECONDS
        while text not in self.text:
            left = until - time.monotonic()
            assert left > 0, f"no {text!r}, but: {self.text[-2000:]}"
            if select.select([self.fd], [], [], left)[0]:
                data = os.read(self.fd, 65536)
                assert data, f"it ended: {self.text[-2000:]}"
                # A terminal of the host adds its own.
                self.text += data.decode(errors="replace").replace("\r", "")
        before, _, self.text = self.text.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.fd, (rows, columns))

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield f"{folder}/hvc0"


@pytest.fixture(scope="module")
def guest(
    micro: kernel.Kernel, path: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A guest whose consoles are a socket, a pty and memory, beside its serial port."""
    ports = (
        PortConfig(0, ChardevConfig("socket", path=path), is_console=True),
        PortConfig(1, ChardevConfig("pty", PTY), is_console=True),
        PortConfig(2, ChardevConfig("log", RINGBUF, size=65536), "a.log"),
    )
    console = ConsoleConfig("serial0", ports, 4)
    folder = tmp_path_factory.mktemp("console")
    cmdline = "console=hvc0 console=ttyS0 quiet panic=-1"
    with live(micro, folder, devices=(console,), cmdline=cmdline) as running:
        yield running


def device(guest: Live) -> Console:
    assert guest.machine.slots
    found = guest.machine.slots.transports[-1].device
    assert isinstance(found, Console)
    return found


def await_met(guest: Live, end: End, name: str) -> None:
    """Return when the device knows of the end: until then what the guest writes is dropped."""
    until = time.monotonic() + SECONDS
    while not select.select([end.fd], [], [], 0.1)[0]:
        assert time.monotonic() < until, f"{name} does not know of its end"
        guest.run(f"echo somebody is there >/dev/{name}")
    end.expect("somebody is there\n")


@pytest.fixture(scope="module")
def hvc0(guest: Live, path: str) -> Iterator[End]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        with closing(End(client.detach())) as end:
            await_met(guest, end, "hvc0")
            yield end


@pytest.fixture(scope="module")
def hvc1(guest: Live) -> Iterator[End]:
    where = device(guest).chardevs()[1][0].pty_path
    with closing(End(os.open(where, os.O_RDWR | os.O_NOCTTY))) as end:
        await_met(guest, end, "hvc1")
        yield end


def log_in(guest: Live, end: End, name: str) -> None:
    guest.run("echo root::0:0::/root:/bin/sh >/etc/passwd; echo root:x:0: >/etc/group")
    guest.run(f"(setsid getty -L 0 {name} vt100 </dev/null >/dev/null 2>&1 &)")
    end.expect("login: ")
    end.type("root\r")
    end.expect(" # ")
    end.type("echo logged in on $(tty)\r")
    end.expect(f"logged in on /dev/{name}\n")


def test_the_kernels_output(guest: Live, hvc0: End) -> None:
    guest.run("dmesg -n 8; echo from the kernel >/dev/kmsg; dmesg -n 1")
    hvc0.expect("from the kernel\n")
    guest.run("echo and from a process >/dev/hvc0")
    hvc0.expect("and from a process\n")


def test_a_login_over_a_socket(guest: Live, hvc0: End) -> None:
    log_in(guest, hvc0, "hvc0")
    # Linux sends 16 bytes at a time, and waits for each.
    hvc0.type("seq 1000 1300; exit\r")
    hvc0.expect("\n" + "".join(f"{number}\n" for number in range(1000, 1301)))


def test_a_login_over_a_pty(guest: Live, hvc1: End) -> None:
    log_in(guest, hvc1, "hvc1")
    hvc1.type("exit\r")


def test_the_size_of_the_pty(guest: Live, hvc1: End) -> None:
    for rows, columns in ((43, 132), (24, 80)):
        hvc1.resize(rows, columns)
        guest.run(
            f"i=0; while [ \"$(stty -F /dev/hvc1 size)\" != '{rows} {columns}' ] && "
            "[ $i -lt 100 ]; do i=$((i + 1)); sleep 0.1; done"
        )
        assert guest.run("stty -F /dev/hvc1 size") == f"{rows} {columns}"


def test_what_memory_has_kept(guest: Live) -> None:
    host = MachineHost(guest.machine)
    assert host.read_ringbuf("log", 100) == b""
    guest.run("seq 20000 >/dev/vport0p2")
    kept = host.read_ringbuf("log", 1 << 17)
    assert (len(kept), kept[-12:]) == (65536, b"19999\n20000\n")
    assert {one.label: one.filename for one in host.chardevs()}["log"] == "ringbuf"


def test_a_reset_keeps_the_consoles(guest: Live, hvc0: End) -> None:
    guest.machine.reset()
    guest.ready()
    guest.run("echo after the reset >/dev/hvc0")
    hvc0.expect("after the reset\n")


def test_stdio_is_the_only_console(micro: kernel.Kernel) -> None:
    script = "until stty size 2>/dev/null; do sleep 0.1; done; "
    script += "while [ \"$(stty size)\" = '33 99' ]; do sleep 0.1; done; stty size; "
    script += "read -r line; echo typed $line; sleep 100"
    options = ["-initrd", str(initramfs.build(micro, script=script))]
    options += ["-chardev", "stdio,id=c", "-device", "virtio-serial-device"]
    options += ["-device", "virtconsole,chardev=c,nr=0"]
    append = "console=hvc0 quiet panic=-1"
    master, terminal = os.openpty()
    with closing(End(master)) as end:
        end.resize(33, 99)
        process = subprocess.Popen(
            ["setsid", "--ctty", *command(micro.image, *options, append=append)],
            stdin=terminal,
            stdout=terminal,
        )
        try:
            os.close(terminal)
            end.expect("33 99\n")
            end.resize(24, 80)
            end.expect("24 80\n")
            end.type("typed\r")
            end.expect("typed typed\n")
            end.type("\x01x")
            assert process.wait(SECONDS) == 0
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
