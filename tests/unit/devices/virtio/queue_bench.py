"""Any virtio device behind its transport, with a driver of each of its queues."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.device import Device

from .bench import RING_STEP, RINGS, DeviceBench
from .mock_driver import Driver, Layout, Ram

SIZE = 16
SECONDS = 10
RAM = 0x80_0000
DATA = 0x40_0000  # where a test has its buffers


class DriverBench(DeviceBench):
    """A driver that keeps the rules unless told otherwise, and kicks when it is asked to."""

    def __init__(self, device: Device, ram: Ram | None = None) -> None:
        self.ram = ram or Ram([(0, RAM)])
        super().__init__(self.ram, device)  # type: ignore[arg-type]
        self.drivers: dict[int, Driver] = {}

    def get(self, offset: int, size: int = 4) -> int:
        """Read as a guest would; the device's threads may change what there is meanwhile."""
        return self.transport.read(offset, size)

    def publish(self, index: int = 0) -> None:
        """Show the device what was added to a queue."""
        if self.drivers[index].publish():
            self.set(r.QUEUE_NOTIFY, index)

    def used(self, index: int = 0) -> list[tuple[int, int]]:
        """Return what was used of a queue; wait for something."""
        deadline = time.monotonic() + SECONDS
        while True:
            # As a driver does: ask for the interrupt, then look.
            self.drivers[index].enable_interrupts()
            if done := self.drivers[index].collect():
                return done
            assert time.monotonic() < deadline, f"nothing was used of queue {index}"
            select.select([self.irq_fd], [], [], 0.01)
            self.interrupts()

    @property
    def broken(self) -> bool:
        """Tell whether the device needs a reset."""
        return bool(self.get(r.STATUS) & r.NEEDS_RESET)

    def wait_broken(self) -> str:
        """Return the log's line on why the device broke; wait for it."""
        while not self.broken:
            assert select.select([self.broken_fd], [], [], SECONDS)[0]
            os.eventfd_read(self.broken_fd)
        self.transport.report()
        return self.log[-1]

    def wait_news(self) -> str:
        """Return the log's line on what the device met with; wait for it."""
        deadline = time.monotonic() + SECONDS
        before = len(self.log)
        while len(self.log) == before:
            assert time.monotonic() < deadline
            assert select.select([self.broken_fd], [], [], SECONDS)[0]
            os.eventfd_read(self.broken_fd)
            self.transport.report()
        return self.log[-1]

    def stat(self, name: str) -> int:
        """Return a counter."""
        device: Any = self.device
        return int(getattr(device.stats(), name))

    def wait_stat(self, name: str, least: int) -> None:
        """Wait until a counter has reached `least`."""
        deadline = time.monotonic() + SECONDS
        while self.stat(name) < least:
            assert time.monotonic() < deadline, f"{name} is {self.stat(name)}, not {least}"
            time.sleep(0.001)

    def close(self) -> None:
        """Close everything."""
        super().close()
        self.device.close()


class QueueBench(DriverBench):
    """One of any device."""

    def start(
        self,
        features: int = 0,
        *,
        event_idx: bool = True,
        indirect: bool = False,
        queues: tuple[int, ...] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Go from reset to DRIVER_OK; `queues` are those that are made ready, None: all.

        `before` is what a driver does besides, when the features are agreed on.
        """
        self.drivers.clear()
        self.set(r.STATUS, 0)
        features |= r.EVENT_IDX if event_idx else 0
        self.negotiate(features | r.VERSION_1 | (r.INDIRECT_DESC if indirect else 0))
        before()
        for index, most in enumerate(self.device.queue_sizes):
            if queues is not None and index not in queues:
                continue
            base, size = RINGS + index * RING_STEP, min(SIZE, most)
            self.ram.view(base, RING_STEP)[:] = bytes(RING_STEP)
            layout = Layout(base, base + 0x4000, base + 0x8000, size, event_idx, indirect)
            self.drivers[index] = Driver(self.ram, layout)
            self.set_queue(index, size)
        assert self.set_status(r.DRIVER_OK) & (r.DRIVER_OK | r.NEEDS_RESET) == r.DRIVER_OK

    def add(self, index: int, *lengths: int, writable: bool, address: int = DATA) -> int:
        """Offer a chain of these lengths from `address` on, one behind the other."""
        spans = []
        for length in lengths:
            spans.append((address, length))
            address += length
        driver = self.drivers[index]
        head = driver.add(writable=spans) if writable else driver.add(spans)
        self.publish(index)
        return head


Make = Callable[..., QueueBench]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return what puts a device behind a transport; all are closed at the end."""
    benches: list[QueueBench] = []

    def maker(*arguments: Any) -> QueueBench:
        benches.append(QueueBench(*arguments))
        return benches[-1]

    yield maker
    for bench in benches:
        bench.close()


def idle(seconds: float) -> bool:
    """Tell whether this process does next to nothing for a while."""
    before = os.times()
    time.sleep(seconds)
    after = os.times()
    return after.user + after.system - before.user - before.system < seconds / 2
