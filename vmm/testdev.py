"""The test device of kvm-unit-tests on a machine's bus (devices/testdev.py); on request only."""

from __future__ import annotations

from ..devices.testdev import FlushPort, LinePorts, SlowMemory
from ..native import ffi
from . import kvm, layout
from .bus import MMIO, PIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .bus import Bus
    from .memory import GuestMemory


def add(bus: Bus, memory: GuestMemory, vm_fd: Callable[[], int]) -> Callable[[], None]:
    """Put it there, before the machine starts; return what resets it.

    `vm_fd` returns the VM's descriptor, which is another after a reset.
    """

    def flush(address: int) -> None:
        try:
            memory.flush_page(address)
        except IndexError:
            return  # not in memory: nothing is mapped

    def set_line(line: int, level: bool) -> None:
        kvm.IRQ_LINE(vm_fd(), ffi.new("struct kvm_irq_level *", {"irq": line, "level": level}))

    register, slow = SlowMemory(SlowMemory.REGISTER_SIZE), SlowMemory(SlowMemory.MEMORY_SIZE)
    bus.add(PIO, layout.TESTDEV_REGISTER, SlowMemory.REGISTER_SIZE, register)
    bus.add(PIO, layout.TESTDEV_REGISTER_BYTES, SlowMemory.REGISTER_SIZE, register)
    bus.add(PIO, layout.TESTDEV_FLUSH, FlushPort.SIZE, FlushPort(flush))
    bus.add(PIO, layout.TESTDEV_LINES, layout.IOAPIC_PINS, LinePorts(set_line))
    bus.add(MMIO, layout.TESTDEV_MEMORY, SlowMemory.MEMORY_SIZE, slow)

    def reset() -> None:
        register.reset()
        slow.reset()

    return reset
