"""A guest whose host loses power: what it was told to be flushed is on the storage.

The storage is of device mapper's, which writes down in which order things became safe. The guest is
tests/kvm's writer: what it told of is what it was told to be safe.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("loop", "dm-log-writes"):
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

    def __init__(self, kernel: Path, folder: Path, *words: str) -> None:
        self.out, path = folder / "out", folder / "qmp"
        monitor = ("-qmp", f"unix:{path},server,nowait", "-serial", f"file,path={self.out}")
        run = command(kernel, "-m", "128", *monitor, *words, append="")
        self.process = subprocess.Popen(
            ["timeout", "-k", "5", "300", *run],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
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

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.client.execute("quit")
        self.client.close()
        errors = self.process.communicate(timeout=SECONDS)[1]
        assert (self.process.returncode, errors) == (0, b"")


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
