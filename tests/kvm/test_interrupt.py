"""An interrupt from outside: an eventfd, KVM's IOAPIC, the local APIC, the guest's handler."""

from __future__ import annotations

import os
import threading

from pyvirt.vmm import bus

from .conftest import Make
from .support import PATIENCE, PORT

PIN = 4
READY, PENDING, DELIVERED = 1, 2, 3
DELIVERIES = 3


class Stages:
    """The port that interrupt.S tells its stages to."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self.reported = threading.Semaphore(0)

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self.values.append(value)
        self.reported.release()

    def wait(self) -> None:
        assert self.reported.acquire(timeout=PATIENCE)


def test_each_edge_reaches_the_guest_once(machine: Make) -> None:
    """An emulating KVM delivers this too, though not the exception that the probe tries."""
    guest = machine("interrupt")
    stages = Stages()
    guest.bus.add(bus.PIO, PORT, 1, stages)
    line = guest.interrupt_line(PIN)
    guest.start()
    stages.wait()
    assert not stages.reported.acquire(timeout=0.05)  # nothing is pending before the edge
    assert stages.values == [READY]
    os.eventfd_write(line.fd, 1)
    stages.wait()  # pending
    for _ in range(DELIVERIES - 1):
        stages.wait()
        assert not stages.reported.acquire(timeout=0.05)
        os.eventfd_write(line.fd, 1)
    end = guest.wait()
    assert (end.reason, end.status) == ("debug-exit", 0)
    assert stages.values == [READY, PENDING] + [DELIVERED] * DELIVERIES
