"""A vhost-user disk behind its transport, with a driver, and a back end that can die."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from pyvirt.devices.vhost_user.block import Block, BlockConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.device import Device
from pyvirt.vmm.memory import GuestMemory

from ..virtio.bench import RING_STEP, RINGS, DeviceBench
from ..virtio.mock_driver import Driver, Layout

SECONDS = 10
SIZE = 16
DATA = 0x200_0000
STEP = 0x1_0000
MIB = 1 << 20


def wait(condition: Callable[[], object], what: str = "") -> None:
    """Wait until the condition holds."""
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, what or "it does not come about"
        time.sleep(0.002)


def block(path: Path, queues: int = 1) -> Block:
    """Return a disk that is connected to `path`."""
    return BlockConfig("d0", SocketBackEnd("-chardev id=c", str(path)), queues=queues).make()


class VhostUserBench(DeviceBench):
    """A driver that keeps the rules, for the device's queue 0 and those after it."""

    def __init__(self, device: Device, *, shared: bool = True) -> None:
        self.memory = GuestMemory(128 * MIB, shared=shared)
        super().__init__(self.memory, device)
        self.drivers: list[Driver] = []
        self._place = 0

    def start(self, features: int = r.VERSION_1 | r.EVENT_IDX) -> int:
        """Go from reset to DRIVER_OK; return Status."""
        self.drivers.clear()
        self.negotiate(features)
        for index in range(len(self.device.queue_sizes)):
            base = RINGS + index * RING_STEP
            self.memory.write(base, bytes(RING_STEP))
            layout = Layout(base, base + 0x4000, base + 0x8000, SIZE, bool(features & r.EVENT_IDX))
            self.drivers.append(Driver(self.memory, layout))  # type: ignore[arg-type]
            self.set_queue(index, SIZE)
        return self.set_status(r.DRIVER_OK)

    def offer(self, data: bytes, queue: int = 0, room: int = 512) -> int:
        """Send a request with `room` for its answer; return where that will be."""
        self._place = (self._place + 1) % 64
        place = DATA + self._place * STEP
        self.memory.write(place, data)
        answer = place + STEP // 2
        self.memory.write(answer, bytes(room))
        self.drivers[queue].add([(place, len(data))], [(answer, room)])
        if self.drivers[queue].publish():
            os.eventfd_write(self.kicks[queue], 1)
        return answer

    def used(self, count: int = 1, queue: int = 0) -> list[tuple[int, int]]:
        """Wait for that many answers."""
        found: list[tuple[int, int]] = []
        until = time.monotonic() + SECONDS
        driver = self.drivers[queue]
        while True:
            driver.enable_interrupts()
            found += driver.collect()
            if len(found) >= count:
                return found
            left = until - time.monotonic()
            assert left > 0, f"{len(found)} of {count} answers"
            if select.select([self.irq_fd], [], [], left)[0]:
                os.eventfd_read(self.irq_fd)

    def ask(self, data: bytes, queue: int = 0) -> bytes:
        """Return what a request is answered with."""
        answer = self.offer(data, queue)
        ((_, length),) = self.used(1, queue)
        return self.memory.read(answer, length)

    def report(self) -> list[str]:
        """Return the lines of the log so far."""
        self.transport.report()
        return self.log

    @property
    def is_broken(self) -> bool:
        """Tell whether the driver sees DEVICE_NEEDS_RESET."""
        return bool(self.transport.status & r.NEEDS_RESET)

    def close(self) -> None:
        """Close everything, the device too."""
        self.transport.halt()
        super().close()
        self.device.close()
        self.drivers.clear()
        self.memory.close()
