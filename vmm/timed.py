"""Adds the devices that have a time of their own: the real-time clock, and a watchdog.

Imported only when a machine has one.
"""

from __future__ import annotations

from ..devices.rtc import Rtc
from ..devices.watchdog import AcpiWatchdog, Ib700
from . import bus, layout
from .config import IB700

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from .config import MachineConfig

    class Timed(Protocol):
        """What stands while the machine is paused; it begins so."""

        def freeze(self) -> None:
            """Stand."""

        def thaw(self) -> None:
            """Go on."""

        def close(self) -> None:
            """End; it calls nobody back after that."""


class TimedDevices:
    """Those of one machine; owns their threads."""

    def __init__(
        self,
        config: MachineConfig,
        on: bus.Bus,
        irq_fd: Callable[[int], int],
        on_watchdog: Callable[[], None],
    ) -> None:
        """Put them on the bus. `irq_fd` returns an eventfd for an interrupt, borrowed.

        `on_watchdog` is called on a thread of the watchdog's. PyvirtError; nothing stays behind.
        """
        self._standing: list[Timed] = []  # while the machine is paused
        self._others: list[Timed] = []
        self._kind = config.watchdog
        self.watchdog: Ib700 | AcpiWatchdog | None = None
        self.rtc: Rtc | None = None
        try:
            self._add(config, on, irq_fd, on_watchdog)
        except BaseException:
            self.close()
            raise

    def _add(
        self,
        config: MachineConfig,
        on: bus.Bus,
        irq_fd: Callable[[int], int],
        on_watchdog: Callable[[], None],
    ) -> None:
        if config.watchdog == IB700:
            self.watchdog, place = Ib700(on_watchdog), layout.IB700
        elif config.watchdog:
            self.watchdog, place = AcpiWatchdog(on_watchdog), layout.ACPI_WATCHDOG
        if self.watchdog is not None:
            self._standing.append(self.watchdog.timer)
            on.add(bus.PIO, place, self.watchdog.SIZE, self.watchdog)
        if config.rtc is not None:
            self.rtc = Rtc(config.rtc, irq_fd(layout.RTC_IRQ))
            if self.rtc.clock is None:
                self._others.append(self.rtc.timer)
            else:
                self._standing += [self.rtc.clock, self.rtc.timer]
            on.add(bus.PIO, layout.RTC, Rtc.SIZE, self.rtc)

    def freeze(self) -> None:
        """Let those stand that stand while the machine is paused; any thread."""
        for one in self._standing:
            one.freeze()

    def thaw(self) -> None:
        """Let them go on."""
        for one in self._standing:
            one.thaw()

    def reset(self) -> None:
        """Reset them all."""
        for device in (self.watchdog, self.rtc):
            if device is not None:
                device.reset()

    def parts(self) -> dict[str, Ib700 | AcpiWatchdog | Rtc]:
        """Return those that have a state, by the names that they have in one."""
        found: dict[str, Ib700 | AcpiWatchdog | Rtc] = {}
        if self.watchdog is not None:
            found[self._kind] = self.watchdog
        if self.rtc is not None:
            found["rtc"] = self.rtc
        return found

    def close(self) -> None:
        """End their threads; a callback that is under way ends first."""
        for one in (*self._standing, *self._others):
            one.close()
        self._standing, self._others = [], []
