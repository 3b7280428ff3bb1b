"""The ports beside virtio devices: clock, watchdogs, power, plugs, kvm-unit-tests' device.

Instructions: an access of a device's register, of any size, or that it is saved and another goes on
in its place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pyvirt.devices.plug import Offer, PlugPort
from pyvirt.devices.power import I8042, AcpiPower, EventDevice
from pyvirt.devices.rtc import VM, Rtc, RtcConfig
from pyvirt.devices.testdev import SlowMemory
from pyvirt.devices.watchdog import AcpiWatchdog, Ib700
from pyvirt.errors import PyvirtError
from pyvirt.state import Fields

from .input import Input

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOTS = 4
_ALL = (1 << 64) - 1


class Platform:
    """One of each device; nothing of time goes by but what the clock's registers say."""

    def __init__(self) -> None:
        self.irq_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.page = b""
        self.offers: list[Offer] = []
        self.plug = self.make_plug()
        self.timed: list[Any] = [self.make_rtc(), Ib700(self.nothing), AcpiWatchdog(self.nothing)]
        self.others: list[Any] = [
            AcpiPower(self.nothing, self.nothing),
            I8042(self.nothing),
            EventDevice(self.irq_fd),
            SlowMemory(SlowMemory.REGISTER_SIZE),
        ]

    def nothing(self) -> None:
        pass

    def show(self, table: bytes) -> None:
        self.page = table

    def make_plug(self) -> PlugPort:
        return PlugPort(self.show, self.nothing, most=_SLOTS)

    def make_rtc(self) -> Rtc:
        return Rtc(RtcConfig(base=0, clock=VM), self.irq_fd)

    def devices(self) -> list[Any]:
        return [*self.timed, *self.others, self.plug]

    def plug_in(self, source: Input) -> None:
        """Do what a monitor does meanwhile."""
        choice = source.take(1)
        try:
            if choice % 4 == 0:
                self.offers.append(self.plug.offer(lambda number: bytes([number + 1])))
            elif choice % 4 == 1:
                self.offers.append(self.plug.dismiss(choice // 4 % 8))
            elif choice % 4 == 2 and self.offers:
                offer = self.offers.pop(choice // 4 % len(self.offers))
                was_taken = offer.is_taken
                assert self.plug.withdraw(offer) != was_taken
            elif choice == 3:
                self.plug.reset()
        except PyvirtError:
            pass
        waiting = [offer for offer in self.offers if not offer.is_taken]
        assert self.plug.is_waiting == bool(waiting)
        assert self.page == (waiting[0].table if waiting else b"")

    def move(self) -> None:
        """Save what has a state, and see that another device can have it."""
        pairs: list[tuple[Any, Callable[[], Any]]] = [
            (self.timed[0], self.make_rtc),
            (self.timed[1], lambda: Ib700(self.nothing)),
            (self.timed[2], lambda: AcpiWatchdog(self.nothing)),
            (self.others[2], lambda: EventDevice(self.irq_fd)),
        ]
        if not self.plug.is_waiting:
            pairs.append((self.plug, self.make_plug))
        for device, make in pairs:
            state, other = device.save(), make()
            fields = Fields(state)
            other.restore(fields)
            fields.done()
            assert other.save() == state
            if hasattr(other, "timer"):
                other.timer.close()

    def close(self) -> None:
        for device in self.timed:
            device.timer.close()
        os.close(self.irq_fd)


def access(platform: Platform, source: Input) -> None:
    choice = source.take(1)
    devices = platform.devices()
    device = devices[choice % len(devices)]
    size = 1 << choice // len(devices) % 3
    width = getattr(device, "SIZE", 4)
    offset = source.take(1) % width
    if offset + size > width:
        return
    if choice & 0x80:
        device.write(offset, size, source.take(size))
    else:
        assert 0 <= device.read(offset, size) <= _ALL


def fuzz(data: bytes) -> None:
    source = Input(data)
    platform = Platform()
    try:
        while source:
            what = source.take(1) % 8
            if what < 6:
                access(platform, source)
            elif what == 6:
                platform.plug_in(source)
            else:
                platform.move()
    finally:
        platform.close()
