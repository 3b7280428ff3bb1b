"""Whoever serves a disk is killed at hundreds of random moments, and what it answered stays.

A child process serves a ring over memory that it shares with the driver, which is this process,
and is killed in the midst of writes and flushes. A killed process loses nothing that the kernel
has, so this holds for every write that was answered, flushed or not; that a flush waits for the
storage itself, native/tests/test_block.c shows.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import struct
import time
from pathlib import Path
from typing import NoReturn

import pytest
from pyvirt.devices.disk import Disk
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.device import Activation, Queue
from pyvirt.errors import ConfigError
from pyvirt.native import check, ffi, lib

from ....effort import tries
from .mock_driver import Driver, Layout, Ram

IMAGES = 10  # in turn, for the kernel takes a while to let go of a killed process's file
ROUNDS = tries(6)
KILLS = ROUNDS * IMAGES  # for each way to do I/O
VERSION_1, FLUSH_FEATURE = 1 << 32, 1 << 9
OUT, FLUSH = 1, 4
UNIT = 4096  # what is written whole or not at all, also by a process that dies meanwhile
UNITS = 256
PLACES = 16  # of requests in guest memory, which has one unit of data pages for each
UNITS_MAX = 4  # of a request
QUEUE_SIZE = 128
RING, HEADERS, DATA = 0, 0x4000, 0x10000
OK, UNANSWERED = 0, 0xFF
SECONDS = 30


class Server:
    """A process that serves the disk, killed in the end."""

    def __init__(self, image: Path, engine: str, direct: bool | None) -> None:
        self.ram = Ram([(0, 1 << 20)], mmap.mmap(-1, 1 << 20))
        self.layout = Layout.at(RING, QUEUE_SIZE)
        self.kick_fd, self.irq_fd, self.broken_fd = (os.eventfd(0) for _ in range(3))
        alive, self._alive = os.pipe()
        self.driver = Driver(self.ram, self.layout)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._alive)
            self._run(BlockConfig("d", str(image), engine=engine, direct=direct), alive)
        os.close(alive)

    def _run(self, config: BlockConfig, alive: int) -> NoReturn:
        """Serve until the other end of the pipe is closed, be it by the end of the tests."""
        try:
            self._serve(config, alive)
        finally:
            os._exit(1)

    def _serve(self, config: BlockConfig, alive: int) -> None:
        page = mmap.mmap(-1, mmap.PAGESIZE)
        words = ffi.cast("void *", ffi.from_buffer(page))
        irq, ring = ffi.new("struct pv_virtio_irq **"), ffi.new("struct pv_virtqueue **")
        check(lib.pv_virtio_irq_new(words, self.irq_fd, self.broken_fd, irq), "irq")
        memory = self.ram.native()
        layout = ffi.new("struct pv_virtqueue_config *", vars(self.layout))
        check(lib.pv_virtqueue_new(memory, layout, ring), "ring")
        queue = Queue(0, ring[0], self.kick_fd)
        features = VERSION_1 | FLUSH_FEATURE
        Block(config).activate(Activation(features, [queue], irq[0], memory))
        os.read(alive, 1)

    def kick(self) -> None:
        if self.driver.publish():
            os.eventfd_write(self.kick_fd, 1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSIGNALED(status), "the server ended by itself"
        for fd in (self.kick_fd, self.irq_fd, self.broken_fd, self._alive):
            os.close(fd)


class Writer:
    """A guest that writes random units, flushes now and then, and knows what must be there.

    No two requests in flight are for the same unit. `contents` has the number that a unit holds
    for certain; what an unanswered request wrote is there or not.
    """

    def __init__(self, image: Path, seed: int) -> None:
        self.image = image
        image.write_bytes(bytes(UNITS * UNIT))
        self.random = random.Random(seed)
        self.contents = [0] * UNITS
        self.requests: dict[int, tuple[int, int, int, range]] = {}
        self.count = self.answered = self.interrupted = 0

    def begin(self, server: Server) -> None:
        self.server = server
        self.free = list(range(PLACES))
        self.busy: set[int] = set()
        self.requests = {}

    def ask(self) -> None:
        """Add a request, at a place of its own in guest memory; it is not yet published."""
        place = self.free.pop()
        length = self.random.randint(1, UNITS_MAX)
        first = self.random.randrange(UNITS - length)
        units = range(first, first + length)
        flush = self.random.random() < 0.2 or not self.busy.isdisjoint(units)
        if flush:
            units = range(0)
        self.busy.update(units)
        self.count += 1
        ram, header, data = self.server.ram, HEADERS + 32 * place, DATA + UNITS_MAX * UNIT * place
        kind = FLUSH if flush else OUT
        ram.view(header, 17)[:] = struct.pack("<IIQB", kind, 0, first * 8, UNANSWERED)
        ram.view(data, len(units) * UNIT)[:] = pattern(self.count) * len(units)
        spans = [(data + UNIT * i, UNIT) for i in range(len(units))]
        head = self.server.driver.add([(header, 16), *spans], [(header + 16, 1)])
        self.requests[head] = (place, header, self.count, units)

    def collect(self) -> None:
        """Take note of what was answered."""
        for head, _ in self.server.driver.collect():
            place, header, number, units = self.requests.pop(head)
            assert self.server.ram.view(header + 16, 1)[0] == OK
            for unit in units:
                self.contents[unit] = number
            self.busy.difference_update(units)
            self.free.append(place)
            self.answered += bool(units)

    def work(self) -> None:
        """Write a random while, at the end of which requests are in flight, or just were."""
        for _ in range(self.random.randrange(4)):
            self.submit()
            wanted = self.random.randrange(len(self.requests) + 1)
            while len(self.requests) > wanted:
                assert select.select([self.server.irq_fd], [], [], SECONDS)[0], "no answer"
                os.eventfd_read(self.server.irq_fd)
                self.collect()
        self.submit()
        until = time.perf_counter() + self.random.uniform(0, 0.0005)
        while time.perf_counter() < until:
            pass

    def submit(self) -> None:
        for _ in range(self.random.randint(0, len(self.free))):
            self.ask()
        self.server.kick()

    def check(self) -> None:
        """Compare the image once it is free; what unanswered requests left is then certain."""
        wait_until_free(self.image)
        if self.requests:
            self.collect()
        self.interrupted += bool(self.requests)
        unanswered = {unit: number for *_, number, us in self.requests.values() for unit in us}
        data = self.image.read_bytes()
        for unit, number in enumerate(self.contents):
            found = data[unit * UNIT : (unit + 1) * UNIT]
            if found != pattern(number):
                assert unit in unanswered, f"unit {unit}: write {number} was answered and is gone"
                assert found == pattern(unanswered[unit]), f"unit {unit}: neither old nor new"
                self.contents[unit] = unanswered[unit]


def pattern(number: int) -> bytes:
    return number.to_bytes(8, "little") * (UNIT // 8)


def wait_until_free(image: Path) -> None:
    """Wait until the lock has fallen, which what was in flight holds to its very end."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            return Disk(str(image), direct=False).close()
        except ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_no_answered_write_is_lost(tmp_path: Path, engine: str, direct: bool | None) -> None:
    writers = [Writer(tmp_path / f"{seed}.img", seed) for seed in range(IMAGES)]
    for _ in range(ROUNDS):
        for writer in writers:
            writer.check()
            server = Server(writer.image, engine, direct)
            try:
                writer.begin(server)
                writer.work()
            finally:
                server.kill()
    for writer in writers:
        writer.check()
    # The kills came in the midst of work, and there was something to lose.
    assert sum(writer.interrupted for writer in writers) > KILLS / 10
    assert sum(writer.answered for writer in writers) > KILLS
