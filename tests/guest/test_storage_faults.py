"""A guest's storage under the kernel's own faults: its host loses power, it fails, it stands.

The storage is what device mapper makes of two files in memory. The guest is tests/kvm's writer:
what it told of is what it was told to be safe.
"""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest.tool import run
from pyvirt.harness.lab import module
from pyvirt.qmp.client import Client

from ..kvm.support import GUESTS, build
from ..kvm.writer import BLOCK, BLOCKS, check, make_image, told
from .conftest import command
from .test_disk import loop_device

SECTOR = 512
SIZE = BLOCK * BLOCKS // SECTOR
NAME = "pyvirt-test"
SECONDS = 60.0
# Documentation/admin-guide/device-mapper/log-writes.rst, and the structs of the kernel's file.
MAGIC, MARK, DISCARD = 0x6A736677736872, 8, 4
SUPER, ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


def dmsetup(*words: str) -> str:
    return run(["dmsetup", "--noudevsync", *words], timeout=SECONDS).decode().strip()


def change(table: str) -> None:
    """Have the storage be something else from now on; what is in flight is completed before."""
    dmsetup("suspend", "--nolockfs", NAME)
    dmsetup("load", NAME, "--table", table)
    dmsetup("resume", NAME)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("loop", "dm-log-writes", "dm-flakey"):
        module.load(name)
    return build(GUESTS / "writer.S", tmp_path_factory.mktemp("guest") / "writer.elf")


@pytest.fixture
def image(shm: Path) -> Path:
    return make_image(shm / "image")


@contextmanager
def mapped(table: str) -> Iterator[str]:
    """Have storage by a table; yield its device, as the kernel calls it."""
    dmsetup("create", NAME, "--table", table)
    try:
        yield f"/dev/{dmsetup('info', '-c', '--noheadings', '-o', 'blkdevname', NAME)}"
    finally:
        dmsetup("remove", "--retry", NAME)


class Writing:
    """The guest on that storage, and a client of its monitor."""

    def __init__(self, kernel: Path, folder: Path, *words: str, before: Sequence[str] = ()) -> None:
        """Start it; `before` are words in front of the command."""
        self.out, path = folder / "out", folder / "qmp"
        monitor = ("-qmp", f"unix:{path},server,nowait", "-serial", f"file,path={self.out}")
        run = command(kernel, "-m", "128", *monitor, *words, append="")
        self.process = subprocess.Popen(
            ["timeout", "-k", "5", "300", *before, *run],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.status = 0  # with which it is to end
        self.messages = b""  # the pattern of what it is to say
        try:
            self.wait_for(lambda: self._meets(path), "its monitor")
        except BaseException:
            self.process.terminate()
            self.process.communicate()
            raise

    def _meets(self, path: Path) -> bool:
        try:
            self.client = Client(str(path), lambda _: None)
        except PyvirtError:
            return False  # the socket may be one that was left behind
        return True

    def told(self) -> list[int]:
        return told(self.out.read_bytes()) if self.out.exists() else []

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        until = time.monotonic() + SECONDS
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[1].decode()
            assert time.monotonic() < until, f"not within {SECONDS:.0f} s: {what}"
            time.sleep(0.01)

    def go_on(self, blocks: int = 3) -> None:
        before = len(self.told())
        self.wait_for(lambda: len(self.told()) >= before + blocks, "more blocks")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the monitor, which is the one child of `timeout`."""
        pid = self.process.pid
        os.kill(int(Path(f"/proc/{pid}/task/{pid}/children").read_text()), number)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.client.execute("quit")
        self.client.close()
        errors = self.process.communicate(timeout=SECONDS)[1]
        assert self.process.returncode == self.status, errors
        assert re.fullmatch(self.messages, errors), errors


class Log:
    """What dm-log-writes wrote down: each write, in the order in which all before it were safe."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        magic, _, self._count, self._sector = SUPER.unpack(self._file.read(SUPER.size))
        assert magic == MAGIC

    def replay(self) -> Iterator[tuple[str, bytes]]:
        """Yield each mark, and what the storage would have held if power had been lost there."""
        storage, at = bytearray(SIZE * SECTOR), self._sector
        for _ in range(self._count):
            self._file.seek(at)
            sector, sectors, flags, length = ENTRY.unpack(self._file.read(ENTRY.size))
            mark = self._file.read(length)
            at += self._sector
            if flags & MARK:
                yield mark.decode(), bytes(storage)
                continue
            if flags & DISCARD:
                continue
            self._file.seek(at)
            start, size = sector * self._sector, sectors * self._sector
            storage[start : start + size] = self._file.read(size)
            at += size
        self._file.close()


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_what_was_flushed_is_there_after_a_loss_of_power(
    writer: Path, image: Path, shm: Path, aio: str
) -> None:
    """At whichever moment: the storage is played back up to several."""
    (shm / "log").write_bytes(b"")
    os.truncate(shm / "log", 256 << 20)
    marks = {}
    with loop_device(image) as data, loop_device(shm / "log") as log:
        with (
            mapped(f"0 {SIZE} log-writes {data} {log}") as device,
            Writing(writer, shm, "-disk", f"{device},aio={aio}") as guest,
        ):
            for mark in ("first", "second", "third", "fourth"):
                guest.go_on()
                marks[mark] = guest.told()
                dmsetup("message", NAME, "0", "mark", mark)
        found = {}
        for mark, storage in Log(shm / "log").replay():
            if mark in marks:
                (shm / mark).write_bytes(storage)
                check(shm / mark, marks[mark])
                found[mark] = storage
    assert found.keys() == marks.keys()


def test_storage_that_fails_for_a_while_and_storage_that_stands(
    writer: Path, image: Path, shm: Path
) -> None:
    """What fails is told to the guest; while nothing is answered, the monitor is there."""
    with loop_device(image) as data:
        good = f"0 {SIZE} linear {data} 0"
        with mapped(good) as device:
            with Writing(writer, shm, "-disk", device) as guest:
                guest.go_on()
                change(f"0 {SIZE} flakey {data} 0 0 1 1 error_writes")
                guest.wait_for(lambda: b"!" in guest.out.read_bytes(), "a failure")
                guest.messages = rb"(pyvirt: disk disk0: (write|flush): Input/output error\n)+"
                assert guest.client.execute("query-status")["running"]
                change(good)
                guest.go_on()
                dmsetup("suspend", "--nolockfs", NAME)
                stands = guest.told()
                for _ in range(10):
                    assert guest.client.execute("query-status")["running"]
                assert len(guest.told()) <= len(stands) + 1
                dmsetup("resume", NAME)
                guest.go_on()
            check(image, guest.told())


@contextmanager
def clock_ahead(seconds: float) -> Iterator[None]:
    """Have the host's time of day jump, as after it was suspended, and jump back."""
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)


def test_a_clock_that_jumps_and_a_monitor_that_is_stopped(
    writer: Path, image: Path, shm: Path
) -> None:
    """Neither is the guest's affair, nor a client's."""
    with Writing(writer, shm, "-disk", str(image), "-machine", "rtc=on") as guest:
        guest.go_on()
        for seconds in (86400.0, -86400.0):
            with clock_ahead(seconds):
                guest.go_on()
                assert guest.client.execute("query-status")["running"]
                guest.signal(signal.SIGSTOP)
            guest.signal(signal.SIGCONT)
            guest.go_on()
            assert guest.client.execute("query-status")["running"]
    check(image, guest.told())


@contextmanager
def control_group() -> Iterator[Path]:
    """A control group of the lab's, for memory."""
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists():
        run(["mount", "-t", "cgroup2", "none", str(root)], timeout=SECONDS)
    (root / "cgroup.subtree_control").write_text("+memory")
    group = root / "pyvirt-test"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def test_a_monitor_whose_memory_is_used_up(writer: Path, image: Path, shm: Path) -> None:
    """The kernel kills it; what was flushed is there, and the same command starts again."""
    with control_group() as group:
        enter = ("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh")
        words = ("-disk", str(image), "-pidfile", str(shm / "pid"))
        with Writing(writer, shm, *words, before=enter) as guest:
            guest.go_on()
            (group / "memory.max").write_text("8M")
            guest.process.wait(SECONDS)
            guest.status = guest.process.returncode
        assert guest.status in {-signal.SIGKILL, 128 + signal.SIGKILL}
        assert re.search(r"^oom_kill [1-9]", (group / "memory.events").read_text(), re.MULTILINE)
    check(image, guest.told())
    with Writing(writer, shm, *words) as guest:
        guest.go_on()
    check(image, guest.told())
    assert {one.name for one in shm.iterdir()} == {"image", "out"}
