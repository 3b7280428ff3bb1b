"""Slots on demand: a device gets its slot when it comes, and the guest is told by ACPI.

A device is put into a slot of its own, with the features that it has, then offered to the guest
(devices/plug.py). A guest that does not take it in time does not get it: all is as it was. One that
is paused is told when it runs on.

What is unplugged is asked back of the guest first, whose driver lets go of it. Where it does not
(devices/plug.py has no answer, the guest is paused) a disk or NIC stays as one that is empty, until
the driver lets go, or another of its kind needs the slot; what is neither stays as it is.
"""

from __future__ import annotations

import _thread
import time

from ..devices.plug import PlugPort
from ..devices.virtio.registers import DRIVER
from ..errors import BackendError, PyvirtError
from . import layout
from .boot import acpi
from .execution import ENDED, PAUSED, RUNNING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from ..devices.plug import Offer
    from ..devices.power import EventDevice
    from ..devices.virtio.device import Device, Pluggable
    from ..devices.virtio.mmio import Mmio
    from .change import Change
    from .memory import GuestMemory
    from .slots import Slots
    from .steps import Steps

    class Machine(Protocol):
        """What is asked of the machine (machine.py)."""

        changing: Change
        memory: GuestMemory | None
        slots: Slots | None

        @property
        def state(self) -> str:
            """Return RUNNING, PAUSED or ENDED."""

        def slot(self, kind: str, addr: int) -> Pluggable:
            """Return what is plugged there; ConfigError."""

        def rest(self, look: Callable[[], Any]) -> Any:
            """Return what `look` does while no vCPU runs."""

        def wait_left(self) -> None:
            """Wait until no vCPU runs any more; it has ended."""


LIMIT_S = 5.0  # for the guest to take a device, or to let go of one
# For one that was paused, when nobody waits.
_LEFT_S = 20.0
# An event that comes before the guest's driver is lost.
_REMIND_S = 0.2


def _is_bound(transport: Mmio) -> bool:
    # After a driver has gone Linux has the device acknowledged, as before one came.
    return transport.status & DRIVER != 0


class Demand:
    """The slots of one machine that come with their devices; any thread, one caller at a time."""

    __slots__ = ("_empty", "_is_deaf", "_is_reminding", "_machine", "_offers", "_warn", "port")

    def __init__(self, machine: Machine, events: EventDevice, warn: Callable[[str], None]) -> None:
        """Begin with none; `warn` is the log's.

        The machine has its memory, and `slots` when one is asked for.
        """
        self._machine = machine
        self._warn = warn
        self._offers: dict[Device, Offer] = {}  # that nobody waits for
        self._empty: list[Pluggable] = []  # their drivers have them still
        self._is_deaf = False  # to what is to go
        self._is_reminding = _thread.allocate_lock()
        self.port = PlugPort(self._show, events.tell_plug, most=acpi.PLUGS_MAX)

    def _show(self, table: bytes) -> None:
        if self._machine.memory is not None:
            room = layout.PLUG_TABLE_SIZE
            self._machine.memory.write(layout.PLUG_TABLE, table.ljust(room, b"\0"))

    @property
    def _slots(self) -> Slots:
        if self._machine.slots is None:
            raise PyvirtError("the machine has ended; start another")
        return self._machine.slots

    def plug(
        self,
        device: Device,
        kind: str = "",
        addr: int = -1,
        prepare: Callable[[], None] = lambda: None,
    ) -> Steps[None]:
        """Give a device a slot, and the guest the device, which is the machine's then.

        A disk or NIC has an `addr` that is no other's of its `kind`. `prepare` is called when it
        has its slot and the guest is not told yet. PyvirtError, or what that raises: the guest has
        not got the device, and it is the caller's still.
        """
        with self._machine.changing:
            self._sweep()
            window = self._slots.add(device, addr)
            try:
                prepare()
                offer = self.port.offer(lambda number: acpi.plugged(number, window))
            except BaseException:
                self._remove(device)
                raise
        try:
            if (yield from self._wait(offer)):
                if not offer.is_taken:
                    self._leave(device, offer)
                return
            raise PyvirtError(self._silence())
        except BaseException:
            with self._machine.changing.lock:
                if not self.port.withdraw(offer):
                    return
                self._remove(device)
            raise

    def _silence(self) -> str:
        if self._machine.state == ENDED:
            return "the machine has ended; start another"
        if self.port.is_known:
            return (
                f"the guest has not taken the device within {LIMIT_S:g} s, and does not get it; "
                "see its kernel's log"
            )
        return (
            f"the guest's ACPI has not answered within {LIMIT_S:g} s, and the guest does not get "
            "the device; if it is starting, ask again, else give it a kernel with CONFIG_ACPI, or "
            "use -machine slots=prepared"
        )

    def _wait(self, offer: Offer) -> Steps[bool]:
        """Return True when the guest has taken it, or is paused; False: it will not."""
        now = time.monotonic()
        until, reminded = now + LIMIT_S, now
        while not offer.is_taken:
            if self._machine.state == PAUSED:
                return True
            if self._machine.state == ENDED or now > until:
                return False
            if now > reminded + _REMIND_S:
                self.port.remind()
                reminded = now
            yield
            now = time.monotonic()
        return True

    def _leave(self, device: Device, offer: Offer) -> None:
        """Have a guest that is paused be told when it runs on."""
        self._offers = {one: left for one, left in self._offers.items() if not left.is_taken}
        self._offers[device] = offer
        if self._is_reminding.acquire(blocking=False):
            _thread.start_new_thread(self._remind, ())

    def _remind(self) -> None:
        ran = 0.0
        while self.port.is_waiting and self._machine.state != ENDED and ran < _LEFT_S:
            if self._machine.state == RUNNING:
                self.port.remind()
                ran += _REMIND_S
            time.sleep(_REMIND_S)
        if ran >= _LEFT_S:
            self._warn(
                "the guest has not taken what was plugged while it was paused; it has that when "
                "it is reset"
            )
        self._is_reminding.release()

    def refill(self, kind: str, addr: int, attach: Callable[[Pluggable], None]) -> bool:
        """Let `attach` put something behind an empty device that a driver has; False: none is.

        It is for who has no slot for another device.
        """
        with self._machine.changing:
            self._sweep()
            device = next((one for one in self._empty if kind == one.KIND), None)
            if device is None or self._slots.has_room():
                return False
            attach(device)
            self._empty.remove(device)
            self._slots.name(device, addr)
            return True

    def detach(self, kind: str, addr: int) -> Steps[Any]:
        """Take a disk or NIC from the guest; return what was behind it, which nothing uses now.

        Its slot goes too if no driver of the guest has it. BackendError, and nothing has changed.
        """
        with self._machine.changing:
            device = self._machine.slot(kind, addr)
        yield from self._ask_back(device)
        with self._machine.changing:
            device.faults().clear()
            resource = device.detach()
            self._slots.forget(device)
            self._take_back(device)
            self._empty.append(device)
            self._sweep()
            return resource

    def unplug(self, device: Device) -> Steps[bool]:
        """Take any device from the guest, and close it; False: a driver of the guest has it.

        BackendError: the host is at work on it.
        """
        yield from self._ask_back(device)
        with self._machine.changing:
            transport = self._transport(device)
            if _is_bound(transport) and not self._take_back(device):
                return False
            if transport.is_given_up:
                raise BackendError(
                    f"{device.name}: the host still has requests from before its reset; see to "
                    "what is behind it, then ask again"
                )
            self._take_back(device)
            device.faults().clear()
            self._remove(device)
            device.close()
            return True

    def _ask_back(self, device: Device) -> Steps[None]:
        """Have the guest let go of a device, if it can; whether it has its transport shows."""
        with self._machine.changing:
            is_known = device in self._offers and not self._offers[device].is_taken
            if is_known or self._is_deaf or self._machine.state == PAUSED:
                return
            offer = self.port.dismiss(self._slots.slot_of(device))
        try:
            yield from self._wait(offer)
        finally:
            if self.port.withdraw(offer) and self._machine.state == RUNNING:
                self._is_deaf = not self.port.has_let_go

    def reset(self) -> None:
        """Begin anew, with another guest."""
        self._is_deaf = False
        self.port.reset()

    def check_saved(self) -> None:
        """Raise PyvirtError where there is what a machine that is restored cannot have."""
        with self._machine.changing:
            self._sweep()
            for device in self._empty:
                raise PyvirtError(
                    f"{device.name}: a driver of the guest still has it, and nothing is behind it; "
                    "unbind that there first (/sys/bus/platform/drivers/virtio-mmio/unbind)"
                )

    def _take_back(self, device: Device) -> bool:
        """Withdraw the offer of a device that the guest has not taken, and return whether it was.

        Its window stays empty for a guest that is about to take it.
        """
        offer = self._offers.pop(device, None)
        return offer is not None and self.port.withdraw(offer)

    def _transport(self, device: Device) -> Mmio:
        return next(one for one in self._slots.transports if one.device is device)

    def _sweep(self) -> None:
        """Let the slots of empty devices go whose drivers have let go of them."""
        for device in list(self._empty):
            transport = self._transport(device)
            if not _is_bound(transport) and not transport.is_given_up:
                self._empty.remove(device)
                self._remove(device)
                device.close()

    def _remove(self, device: Device) -> None:
        """Take a device away with its slot; it is the caller's. In the middle of a change."""
        if self._machine.state == ENDED:
            self._machine.wait_left()
            self._slots.remove(device)
        else:
            self._machine.rest(lambda: self._slots.remove(device))
