"""What a machine has beside virtio devices and its serial port: ports for its end and its news."""

from __future__ import annotations

from ..devices.debug import BochsPowerOff, BootTimer, DebugExit, PanicPort
from ..devices.power import I8042, AcpiPower, EventDevice
from . import bus, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from ..state import Fields
    from .end import Reaction

    class Part(Protocol):
        """What has a state; see state.py."""

        def save(self) -> dict[str, object]:
            """Return it."""

        def restore(self, fields: Fields) -> None:
            """Take it; StateError."""

        def resume(self) -> None:
            """Go on after `restore`."""


def add(
    machine_bus: bus.Bus,
    reaction: Reaction,
    events: EventDevice,
    *,
    on_exit: Callable[[int], None],
    on_stage: Callable[[int], None],
) -> dict[str, Part]:
    """Put the devices on the bus; return those that have a state, by its name in a snapshot.

    `on_exit` is told of a value written to the port of isa-debug-exit, `on_stage` of one written to
    the boot timer; both on the vCPU's thread, as `reaction` is.
    """
    off = BochsPowerOff(reaction.on_shutdown)
    end, timer = DebugExit(on_exit), BootTimer(on_stage)
    for port, size, device in (
        (layout.SLEEP_CONTROL, AcpiPower.SIZE, AcpiPower(reaction.on_shutdown, reaction.on_reset)),
        (I8042.PORT, 1, I8042(reaction.on_reset)),
        (layout.GED_SELECTOR, EventDevice.SIZE, events),
        (layout.DEBUG_EXIT, DebugExit.SIZE, end),
        (layout.BOCHS_POWER_OFF, BochsPowerOff.SIZE, off),
        (layout.PANIC, PanicPort.SIZE, PanicPort(reaction.on_panic)),
        (layout.BOOT_TIMER, BootTimer.SIZE, timer),
    ):
        machine_bus.add(bus.PIO, port, size, device)
    machine_bus.add(bus.MMIO, layout.BOOT_TIMER_MMIO, BootTimer.SIZE, timer)
    machine_bus.add(bus.MMIO, layout.DEBUG_EXIT_MMIO, DebugExit.SIZE, end)
    return {"events": events, "bochs-power-off": off}
