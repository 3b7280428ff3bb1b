"""A virtio device that keeps notes, and the part of a driver that writes registers."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.device import Activation, Device
from pyvirt.devices.virtio.mmio import Mmio
from pyvirt.errors import PyvirtError
from pyvirt.state import Fields
from pyvirt.vmm.memory import GuestMemory

OWN_FEATURES = 1 << 3 | 1 << 20 | 1 << 60 | 1 << 100
OFFERED = OWN_FEATURES | r.VERSION_1 | r.INDIRECT_DESC | r.EVENT_IDX
RINGS = 0x10_0000
RING_STEP = 0x1_0000
NEGOTIATED = r.ACKNOWLEDGE | r.DRIVER | r.FEATURES_OK
RUNNING = NEGOTIATED | r.DRIVER_OK


class Notes(Device):
    """Notes what the transport asks of it; the configuration's first half can be written."""

    def __init__(self, queue_sizes: tuple[int, ...] = (256, 16), config: bytes = b"") -> None:
        super().__init__("dev0", device_type=42, features=OWN_FEATURES, queue_sizes=queue_sizes)
        self.space = bytearray(config or range(20))
        self.calls: list[str] = []
        self.activation: Activation | None = None
        self.refusal: PyvirtError | None = None
        self.closed = 0

    def config(self) -> bytes:
        return bytes(self.space)

    def write_config(self, offset: int, data: bytes) -> None:
        assert data
        assert offset + len(data) <= len(self.space)
        for index, byte in enumerate(data, offset):
            if index < len(self.space) // 2:
                self.space[index] = byte

    def activate(self, activation: Activation) -> None:
        if self.refusal:
            raise self.refusal
        assert self.activation is None
        self.activation = activation
        self.calls.append("activate")

    def reset(self, limit: float) -> None:
        assert self.activation is not None
        self.activation = None
        self.calls.append("reset")

    def close(self) -> None:
        self.closed += 1


class DeviceBench:
    """A transport on a page of its own, with every descriptor at hand."""

    def __init__(
        self,
        memory: GuestMemory,
        device: Device,
        *,
        exclusively: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self.log: list[str] = []
        self._memory = memory.native()
        self._before = ExitStack()  # what was moved away from
        self._put(device, exclusively)

    def _put(
        self, device: Device, exclusively: Callable[[Callable[[], None]], None] | None = None
    ) -> None:
        self.device = device
        self.map = mmap.mmap(-1, r.PAGE_SIZE)
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self.irq_fd, self.broken_fd = os.eventfd(0, flags), os.eventfd(0, flags)
        self.kicks = [os.eventfd(0, flags) for _ in self.device.queue_sizes]
        self.transport = Mmio(
            self.device,
            memoryview(self.map),
            memory=self._memory,
            irq_fd=self.irq_fd,
            broken_fd=self.broken_fd,
            kicks=self.kicks,
            warn=self.log.append,
            exclusively=exclusively,
        )

    def state(self) -> dict[str, Any]:
        """Return the device's state as a file has it; it stands then."""
        self.transport.drain(10)
        found: dict[str, Any] = json.loads(json.dumps(self.transport.save()))
        return found

    def move(self, device: Device) -> dict[str, Any]:
        """Let another device go on, and this one stand for good; return the state."""
        state = self.state()
        self._let_go(self._before)
        self._put(device)
        self._go_on(state)
        return state

    def move_on(self, make: Callable[[], Device]) -> None:
        """Let another device go on that can be made only when this one is closed."""
        state = self.state()
        with ExitStack() as stack:
            self._let_go(stack)
        self._put(make())
        self._go_on(state)

    def _let_go(self, stack: ExitStack) -> None:
        """Have the device closed with the stack."""
        for fd in (self.irq_fd, self.broken_fd, *self.kicks):
            stack.callback(os.close, fd)
        for close in (self.map.close, self.device.close, self.transport.close):
            stack.callback(close)

    def _go_on(self, state: dict[str, Any]) -> None:
        fields = Fields(state)
        self.transport.restore(fields)
        fields.done()
        self.transport.resume()

    def get(self, offset: int, size: int = 4) -> int:
        """Read as a guest would."""
        value = self.transport.read(offset, size)
        assert value == int.from_bytes(self.map[offset : offset + size], "little")
        return value

    def set(self, offset: int, value: int, size: int = 4) -> None:
        """Write the low `size` bytes of `value` as a guest would."""
        self.transport.write(offset, size, value & (1 << 8 * size) - 1)

    def set_status(self, bits: int) -> int:
        """Add status bits and return what Status reads then."""
        self.set(r.STATUS, self.get(r.STATUS) | bits)
        return self.get(r.STATUS)

    def accept(self, features: int) -> None:
        """Write the driver's features, all four words."""
        for word in range(4):
            self.set(r.DRIVER_FEATURES_SEL, word)
            self.set(r.DRIVER_FEATURES, features >> 32 * word & r.WORD)

    def negotiate(self, features: int = r.VERSION_1) -> int:
        """Go from reset to FEATURES_OK, if the device agrees; return Status."""
        self.set_status(r.ACKNOWLEDGE)
        self.set_status(r.DRIVER)
        self.accept(features)
        return self.set_status(r.FEATURES_OK)

    def set_queue(
        self, index: int, size: int = 16, base: int | None = None, ready: int = 1
    ) -> None:
        """Describe a queue, all of its parts from `base` on."""
        base = RINGS + index * RING_STEP if base is None else base
        self.set(r.QUEUE_SEL, index)
        self.set(r.QUEUE_NUM, size)
        for offset, register in enumerate((r.QUEUE_DESC, r.QUEUE_DRIVER, r.QUEUE_DEVICE)):
            address = base + offset * 0x4000
            self.set(register, address & r.WORD)
            self.set(register + 4, address >> 32)
        self.set(r.QUEUE_READY, ready)

    def run(self, features: int = r.VERSION_1) -> int:
        """Go from reset to DRIVER_OK with every queue; return Status."""
        self.negotiate(features)
        for index in range(len(self.device.queue_sizes)):
            self.set_queue(index)
        return self.set_status(r.DRIVER_OK)

    def interrupts(self) -> int:
        """Return how many edges the line had since the last call."""
        return take(self.irq_fd)

    def close(self) -> None:
        """Close everything but the device."""
        self._before.close()
        self.transport.close()
        self.map.close()
        for fd in (self.irq_fd, self.broken_fd, *self.kicks):
            os.close(fd)


class Bench(DeviceBench):
    """The same around a device that keeps notes."""

    device: Notes

    def __init__(
        self,
        memory: GuestMemory,
        device: Notes | None = None,
        *,
        exclusively: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__(memory, device or Notes(), exclusively=exclusively)


def take(fd: int) -> int:
    """Return an eventfd's count, 0 when there is none, and leave none."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
