"""A socket device behind its transport, with a driver."""

from __future__ import annotations

import select
import struct
import time

from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.vsock import Socket

from .bench import RING_STEP, RINGS, DeviceBench
from .mock_driver import Driver, Layout, Ram

SIZE, SECONDS = 32, 10
RX, TX, EVENT = 0, 1, 2
CID = 0x1_2345
DATA, BUFFERS = 0x100_0000, 0x200_0000
HEADER = struct.Struct("<QQIIIHHIII")
REQUEST, RESPONSE, RST = 1, 2, 3


class VsockBench(DeviceBench):
    """A driver with receive buffers of 4 KiB."""

    device: Socket

    def __init__(self, device: Socket) -> None:
        self.ram = Ram([(0, 0x400_0000)])
        super().__init__(self.ram, device)  # type: ignore[arg-type]
        self.drivers: list[Driver] = []
        self._places: dict[int, int] = {}

    def start(self, *, queues: int = 3) -> int:
        """Go from reset to DRIVER_OK with the first `queues`; return Status."""
        self.drivers.clear()
        self.negotiate(r.VERSION_1 | r.EVENT_IDX)
        for index in range(queues):
            base = RINGS + index * RING_STEP
            self.ram.view(base, RING_STEP)[:] = bytes(RING_STEP)
            # The event queue is smaller.
            size = SIZE if index != EVENT else 16
            layout = Layout(base, base + 0x4000, base + 0x8000, size, event_idx=True)
            self.drivers.append(Driver(self.ram, layout))
            self.set_queue(index, size)
        status = self.set_status(r.DRIVER_OK)
        for place in range(8):
            address = BUFFERS + place * 4096
            self._places[self.drivers[RX].add(writable=[(address, 4096)])] = address
        self.publish(RX)
        return status

    def publish(self, index: int) -> None:
        if self.drivers[index].publish():
            self.set(r.QUEUE_NOTIFY, index)

    def say(self, op: int, guest_port: int, host_port: int) -> None:
        packet = HEADER.pack(CID, 2, guest_port, host_port, 0, 1, op, 0, 1 << 16, 0)
        address = DATA + self.drivers[TX].position % SIZE * 64
        self.ram.view(address, len(packet))[:] = packet
        self.drivers[TX].add([(address, len(packet))])
        self.publish(TX)

    def hear(self) -> tuple[int, ...]:
        """Return the header of the one packet that is there; wait for it."""
        driver = self.drivers[RX]
        deadline = time.monotonic() + SECONDS
        while True:
            # As a driver does: ask for the interrupt, then look.
            driver.enable_interrupts()
            if done := driver.collect():
                break
            assert time.monotonic() < deadline
            select.select([self.irq_fd], [], [], 0.01)
        ((head, length),) = done
        assert length == HEADER.size
        return HEADER.unpack_from(self.ram.view(self._places[head], length))

    def stat(self, name: str) -> int:
        return int(getattr(self.device.stats(), name))

    def close(self) -> None:
        super().close()
        self.device.close()
