"""What becomes of a machine whose files, terminals and logs are taken from it while it runs.

Its guest is guests/writer.S, which goes on as long as its disk answers.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.disk import Disk
from pyvirt.qmp.client import Client
from pyvirt.qmp.connection import OUTPUT_MAX
from pyvirt.qmp.framing import REQUEST_MAX
from pyvirt.qmp.server import CLIENTS_MAX

from ..effort import tries
from ..unit.file_limit import file_limit
from ..unit.qmp.hostile_clients import QUERIES, Stream, talk
from .support import PATIENCE
from .test_run import command, wait_for
from .writer import BLOCK, BLOCKS, check, make_image, told

pytestmark = pytest.mark.any_kvm
CROWD = 500
# All that the monitor may hold for as many clients as it serves, twice.
CROWD_MEMORY = 2 * CLIENTS_MAX * (OUTPUT_MAX + REQUEST_MAX)
Kernel = Callable[[str], Path]
# Of which the monitor has something to say.
PTY = (
    "-chardev",
    "pty,id=p",
    "-device",
    "virtio-serial-device",
    "-device",
    "virtconsole,chardev=p",
)


class Writing:
    """A guest that writes, and what it has told so far; a client of its monitor."""

    def __init__(
        self,
        kernel: Path,
        image: Path,
        *words: str,
        stderr: int = subprocess.PIPE,
        stdio: int = subprocess.DEVNULL,
    ) -> None:
        """Start it; with a descriptor as `stdio` that is its stderr, too."""
        self._sockets = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.path = f"{self._sockets.name}/qmp"
        self.out = image.parent / "out"
        self.events: list[dict[str, Any]] = []
        monitor = ("-qmp", f"unix:{self.path},server,nowait", "-serial", f"file,path={self.out}")
        self.process = subprocess.Popen(
            command(kernel, "-disk", str(image), *monitor, *words),
            stdin=stdio,
            stdout=stdio,
            stderr=stderr if stdio == subprocess.DEVNULL else stdio,
            env=os.environ | {"XDG_RUNTIME_DIR": self._sockets.name},
        )
        try:
            wait_for(self._is_listening, "socket")
            self.client = Client(self.path, self.events.append)
        except BaseException:
            self._end()
            raise

    def _is_listening(self) -> bool:
        return os.path.exists(self.path) or self.process.poll() is not None

    def told(self) -> list[int]:
        """Return the numbers of the blocks that are safe."""
        return told(self.out.read_bytes())

    def go_on(self, blocks: int = 3) -> list[int]:
        """Wait until so many more blocks are safe; return those."""
        before = self.told()
        wait_for(lambda: len(self.told()) >= len(before) + blocks, "more blocks")
        return self.told()[len(before) :]

    def end(self) -> str:
        """End it in good order; return what it had to say."""
        self.process.terminate()
        _, errors = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, errors
        return (errors or b"").decode()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._sockets.cleanup()

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._end()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image")


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Have a file open, whatever becomes of its name."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


# Images.


def test_an_image_whose_name_goes(kernel: Kernel, image: Path) -> None:
    with Writing(kernel("writer"), image) as guest, held(image) as fd:
        guest.go_on()
        image.unlink()
        guest.go_on()
        assert guest.end() == ""
        check(fd, guest.told())


def test_an_image_in_whose_place_there_is_another(kernel: Kernel, image: Path) -> None:
    """The guest has that which it began with, and who comes later the other."""
    with Writing(kernel("writer"), image) as guest, held(image) as fd:
        guest.go_on()
        make_image(image.with_name("new")).rename(image)
        guest.go_on()
        Disk(str(image)).close()  # which is not locked
        assert guest.end() == ""
        check(fd, guest.told())
    assert image.read_bytes().strip(b"\0") == b""


def test_an_image_that_is_cut(kernel: Kernel, image: Path) -> None:
    """What is written then is there; the file grows to where that lies."""
    with Writing(kernel("writer"), image) as guest:
        guest.go_on()
        os.truncate(image, 0)
        guest.go_on(1)  # it may have been written before
        numbers = guest.go_on(BLOCKS)
        assert guest.end() == ""
    check(image, numbers)


def test_storage_that_has_room_for_a_half(kernel: Kernel, image: Path) -> None:
    """A write that fails is told to the guest and to clients, and others go on."""
    with file_limit(BLOCK * BLOCKS // 2):
        guest = Writing(kernel("writer"), image)
    with guest:
        # Twice around: the lower half of them is written, the upper is not.
        wait_for(lambda: BLOCKS + 9 in guest.told(), "blocks of the second round")
        numbers = guest.told()
        assert {number % BLOCKS < BLOCKS // 2 for number in numbers} == {True}
        assert guest.client.execute("query-status")["running"]
        failed = [one["data"] for one in guest.events if one["event"] == "BLOCK_IO_ERROR"]
        assert failed[0]["operation"] == "write"
        assert "File too large" in guest.end()
    check(image, numbers)


# Terminals and logs.


@contextmanager
def full_pipe() -> Iterator[int]:
    """A pipe that nobody reads, with no room in it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(writer)
        os.close(reader)


def test_messages_that_nobody_reads(kernel: Kernel, image: Path) -> None:
    """From the first one on, which tells of a terminal."""
    with full_pipe() as stderr, Writing(kernel("writer"), image, *PTY, stderr=stderr) as guest:
        guest.go_on()
        assert guest.client.execute("query-status")["running"]
        guest.end()
    check(image, guest.told())


def test_a_log_that_cannot_be_written(kernel: Kernel, image: Path) -> None:
    with Writing(kernel("writer"), image, *PTY, "-D", "/dev/full") as guest:
        guest.go_on()
        assert guest.end() == ""
    check(image, guest.told())


def test_a_terminal_that_is_closed(kernel: Kernel, image: Path) -> None:
    """That of stdin, stdout and stderr, on which a console of the guest's is, too."""
    master, terminal = os.openpty()
    words = ("-chardev", "stdio,id=tty,mux=off", "-device", "virtio-serial-device")
    with Writing(
        kernel("writer"), image, *words, "-device", "virtconsole,chardev=tty", stdio=terminal
    ) as guest:
        os.close(terminal)
        guest.go_on()
        os.close(master)
        guest.go_on()
        assert guest.client.execute("query-status")["running"]
        guest.end()
    check(image, guest.told())


# The whole monitor.


def state_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_monitor_that_is_stopped_and_goes_on(kernel: Kernel, image: Path) -> None:
    """What clients asked for meanwhile is answered, and the guest has missed nothing."""
    with Writing(kernel("writer"), image) as guest:
        guest.go_on()
        for _ in range(3):
            guest.process.send_signal(signal.SIGSTOP)
            wait_for(lambda: state_of(guest.process) == "T", "it stands")
            stands = guest.told()
            with socket.socket(socket.AF_UNIX) as late:
                late.settimeout(PATIENCE)
                late.connect(guest.path)
                late.sendall(b'{"execute":"query-status","id":"asked meanwhile"}')
                assert guest.told() == stands
                guest.process.send_signal(signal.SIGCONT)
                said = b""
                while b'"asked meanwhile"' not in said:
                    said += late.recv(4096)
            guest.go_on()
            assert guest.client.execute("query-status")["running"]
        guest.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: state_of(guest.process) == "T", "it stands")
        guest.process.terminate()
        guest.process.send_signal(signal.SIGCONT)
        assert guest.end() == ""
    check(image, guest.told())


# Clients.


def resident(process: subprocess.Popen[bytes]) -> int:
    """Return how many bytes of memory a process has."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


def descriptors(process: subprocess.Popen[bytes]) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def crowd(stack: ExitStack, path: str, data: bytes) -> None:
    """Have hundreds connect that send something and never read."""
    for _ in range(CROWD):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        with suppress(BlockingIOError, ConnectionError, BrokenPipeError):
            client.connect(path)  # as many wait as may, and the others are turned away
            client.send(data)


def test_a_crowd_at_each_socket(kernel: Kernel, image: Path) -> None:
    """The guest goes on, one client is answered, and what is kept for the others is little."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        port, vsock = f"{folder}/port", f"{folder}/vsock"
        words = (
            *("-chardev", f"socket,id=c,path={port},server,nowait"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=c,name=p"),
            *("-device", f"vsock-device,guest-cid=3,uds={vsock}"),
        )
        with Writing(kernel("writer"), image, *words) as guest:
            guest.go_on()
            process = guest.process
            memory, files = resident(process), descriptors(process)
            asked = b'{"execute":"query-qmp-schema"}' * 500 + b'{"execute":"'
            for path, data in ((guest.path, asked), (port, b"x" * 65536), (vsock, b"CONNECT ")):
                with ExitStack() as stack:
                    crowd(stack, path, data)
                    guest.go_on()
                    assert guest.client.execute("query-status")["running"]
                    assert resident(process) < memory + CROWD_MEMORY
                wait_for(lambda: descriptors(process) <= files, "they are gone")
                guest.go_on()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        assert os.listdir(folder) == []
    check(image, guest.told())


def test_hostile_streams_at_its_monitor(kernel: Kernel, image: Path) -> None:
    seed = random.randrange(1, 1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Writing(kernel("writer"), image) as guest:
        guest.go_on()  # its disk has all that it needs
        files = descriptors(guest.process)
        for _ in range(3):
            for _ in range(tries(100)):
                talk(guest.path, Stream(rng, QUERIES, only_asks=True))
            guest.go_on()
            assert guest.client.execute("query-status")["running"]
        wait_for(lambda: descriptors(guest.process) <= files, "they are gone")
        assert "please report" not in guest.end()
    check(image, guest.told())
