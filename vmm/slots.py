"""Slots for virtio devices: where each stands in the guest, and how KVM spares it exits.

A slot is a register page (register_pages.py), an interrupt line, an ioeventfd for each queue's
notifications. The acknowledgement of "used buffers", one write for each interrupt, ends in an
ioeventfd that nobody reads. Source: Documentation/virt/kvm/api.rst, KVM_IOEVENTFD.

On demand a slot is equipped for its device, and given back with it: only the pages are there from
the start, and addresses that no device has read as 0.
"""

from __future__ import annotations

import _thread
import errno
import os
import time

from ..devices.virtio import registers, turn
from ..devices.virtio.device import Pluggable
from ..devices.virtio.mmio import Mmio
from ..errors import BackendError, ConfigError
from ..native import ffi, lib
from . import bus, kvm, layout
from .boot.acpi import VirtioMmio
from .register_pages import RegisterPages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from ..devices.nic import NicConfig
    from ..devices.virtio.block import BlockConfig
    from ..devices.virtio.device import Device
    from .bus import Bus
    from .config import MachineConfig
    from .log import Log
    from .vm import InterruptLine

SLOTS_MAX, DEMAND_SLOTS_MAX = layout.SLOTS_MAX, layout.DEMAND_SLOTS_MAX
BLOCK, NET = "block", "net"  # kinds of devices that something is put behind
# At least, where disks and NICs can be plugged.
BLOCK_SLOTS, NET_SLOTS = 6, 2
# What a device has in seconds when others before it have used up what all have together.
_LEAST_S = 0.1


def _block(config: BlockConfig | None, addr: int, _machine: str) -> Pluggable:
    # Here, as this module is on the start-up path and not every guest has a disk or a NIC.
    from ..devices.virtio.block import Block  # noqa: PLC0415

    return Block(config, addr)


def _nic(config: NicConfig | None, addr: int, machine: str) -> Pluggable:
    from ..devices import nic  # noqa: PLC0415

    return nic.make(config, machine) if config else nic.empty(addr, machine)


_MAKERS: dict[str, Callable[[Any, int, str], Pluggable]] = {BLOCK: _block, NET: _nic}


def _counts(config: MachineConfig) -> tuple[int, int]:
    """Return how many slots for disks and for NICs there are."""
    given = len(config.disks), len(config.nics)
    has_empty = config.hotplug and not config.on_demand
    return (max(given[0], BLOCK_SLOTS), max(given[1], NET_SLOTS)) if has_empty else given


def count(config: MachineConfig, others: int = 0) -> int:
    """Return how many slots `fill` fills, with devices beside the configuration's; or all."""
    given = sum(_counts(config)) + len(config.devices) + others
    return max(given, DEMAND_SLOTS_MAX) if config.on_demand else given


def vacancies(config: MachineConfig) -> dict[int, tuple[str, int]]:
    """Return the slots that `fill` puts nothing behind: of which kind each is, and its `addr`."""
    blocks, nics = _counts(config)
    found = {addr: (BLOCK, addr) for addr in range(len(config.disks), blocks)}
    return found | {blocks + addr: (NET, addr) for addr in range(len(config.nics), nics)}


def vacant(kind: str, addr: int, machine: str) -> Pluggable:
    """Return a device of a kind that nothing is behind; `machine` is the machine's name."""
    return _MAKERS[kind](None, addr, machine)


def fill(config: MachineConfig, devices: list[Device], made: dict[int, Pluggable]) -> None:
    """Put the devices of the configuration before those in the list; ConfigError.

    Those that something is behind come first within their kind. What is `made` of them already,
    by slots, is taken out of there.
    """
    blocks, nics = _counts(config)
    kinds: tuple[tuple[str, tuple[Any, ...], int], ...] = (
        (BLOCK, config.disks, blocks),
        (NET, config.nics, nics),
    )
    place = 0
    for kind, given, slots in kinds:
        for addr in range(slots):
            what = given[addr] if addr < len(given) else None
            found = made.pop(place, None) or _MAKERS[kind](what, addr, config.name)
            devices.insert(place, found)
            place += 1
    for other in config.devices:
        devices.insert(place, other.make())
        place += 1


def _place(device: Device, addr: int) -> str:
    """Return what Linux calls a disk or a NIC, which stays the same as they come and go."""
    if not isinstance(device, Pluggable):
        return ""
    return disk_name(addr) if device.KIND == BLOCK else f"eth{addr}"


def disk_name(addr: int) -> str:
    """Return what Linux calls a disk: vda to vdz, vdaa and so on."""
    letters = ""
    addr += 1
    while addr:
        addr, letter = divmod(addr - 1, 26)
        letters = chr(ord("a") + letter) + letters
    return f"vd{letters}"


def _line(slot: int) -> int:
    return layout.VIRTIO_GSIS[slot % SLOTS_MAX]


def _window(slot: int) -> VirtioMmio:
    """Return where a slot stands, as the guest is told."""
    base = layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_STEP
    return VirtioMmio(base, registers.PAGE_SIZE, _line(slot))


def _is_light(offset: int) -> bool:
    """Say whether a write to a window leaves its device alone: not to Status or configuration."""
    within = offset % layout.VIRTIO_MMIO_STEP
    return within < registers.CONFIG and within != registers.STATUS


class _Seat:
    """What a slot has that a device is in."""

    __slots__ = ("kicks", "line", "transport", "watches")

    def __init__(self) -> None:
        self.line: InterruptLine | None = None
        self.kicks: list[int] = []  # eventfds, its own
        self.watches: list[tuple[int, int, int]] = []  # a written address and value, an eventfd
        self.transport: Mmio | None = None


class _Windows:
    """All windows on the bus, which cannot change while vCPUs run, and what is in them now."""

    __slots__ = ("_transports",)

    def __init__(self) -> None:
        self._transports: dict[int, Mmio] = {}

    def put(self, slot: int, transport: Mmio | None) -> None:
        """Let a device's transport answer in a window, or nothing."""
        if transport is not None:
            self._transports[slot] = transport
        else:
            self._transports.pop(slot, None)

    def read(self, offset: int, size: int) -> int:
        """Answer a read; where nothing is, with 0: there is no magic value."""
        slot, within = divmod(offset, layout.VIRTIO_MMIO_STEP)
        transport = self._transports.get(slot)
        return transport.read(within, size) if transport is not None else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Hand on a write."""
        slot, within = divmod(offset, layout.VIRTIO_MMIO_STEP)
        transport = self._transports.get(slot)
        if transport is not None:
            transport.write(within, size, value)


class Slots:
    """The slots of one machine; owns pages, transports and eventfds."""

    def __init__(
        self,
        vm_fd: int,
        count: int,
        *,
        machine_bus: Bus,
        memory: Any,
        line: Callable[[int, int], InterruptLine],
        drop_line: Callable[[InterruptLine], None],
        log: Log,
        read_exits: bool,
        on_demand: bool = False,
    ) -> None:
        """Have `count` slots, each for `put` to fill; ConfigError, KvmError.

        That is before the guest runs, or at any time `on_demand`. `memory` is the struct pv_memory.
        `line` makes the line of a VM and GSI, edge-triggered, and keeps it until `drop_line`.
        `read_exits` does without the memslot: every read and acknowledgement goes to Python.
        """
        self.notices_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._owned = [self.notices_fd]
        self._bus = machine_bus
        self._memory = memory
        self._line = line
        self._drop_line = drop_line
        self._log = log
        # Held while the transports are gone through on a thread that does not change them.
        self.lock = _thread.allocate_lock()
        self._seats: dict[int, _Seat] = {}  # by slots
        self._addrs: dict[tuple[str, int], Pluggable] = {}  # by kind and number within that
        self._windows: _Windows | None = None  # on demand
        self._most = DEMAND_SLOTS_MAX if on_demand else SLOTS_MAX
        self._left: dict[int, None] = {}  # slots of devices that have gone, the last behind
        self._transports: dict[int, Mmio] = {}  # by slots
        # Of each device its own, which has a limit: what it says is a driver's doing.
        self._warnings: dict[Device, Callable[[str], None]] = {}
        self._vm_fd = vm_fd
        self._pages: RegisterPages | None = None
        self._read_exits = read_exits
        self._memslot_lock = _thread.allocate_lock()  # two devices may change at a time
        try:
            if count > self._most:
                raise ConfigError(f"{count} virtio devices: at most {self._most}; drop some")
            if on_demand:
                self._windows = _Windows()
                size = self._most * layout.VIRTIO_MMIO_STEP
                machine_bus.add(bus.MMIO, layout.VIRTIO_MMIO, size, self._windows, _is_light)
            if count:
                self._pages = RegisterPages(count)
                self._acknowledged = self._eventfd() if not read_exits else -1
                self._show_pages()
        except BaseException:
            self.close()
            raise

    @property
    def transports(self) -> list[Mmio]:
        """Return those of the devices, in the slots' order."""
        found = self._transports
        return [found[slot] for slot in sorted(found)]

    def ordered(self) -> list[Mmio]:
        """Return them as `fill` orders devices: disks, NICs and others, each as they came."""
        if self._windows is None:
            return self.transports
        kinds = (BLOCK, NET)

        def rank(transport: Mmio) -> int:
            device = transport.device
            return kinds.index(device.KIND) if isinstance(device, Pluggable) else len(kinds)

        return sorted(self._transports.values(), key=rank)

    def places(self) -> tuple[int, ...]:
        """Return their slots, in that order."""
        slots = {transport: slot for slot, transport in self._transports.items()}
        return tuple(slots[transport] for transport in self.ordered())

    def transport(self, slot: int) -> Mmio:
        """Return that of the device in a slot."""
        return self._transports[slot]

    @property
    def _devices(self) -> list[Device]:
        return [transport.device for transport in self.transports]

    def put(self, slot: int, device: Device, addr: int) -> Mmio:
        """Put a device into an empty slot, and return its transport; PyvirtError, and it is empty.

        It is the one of its kind at `addr`, if one can be plugged there. It is borrowed until
        `close`, or `remove`.
        """
        seat = _Seat()
        self._warnings[device] = self._log.limited()
        done: list[tuple[int, int, int]] = []
        try:
            transport = self._equip(seat, slot, device, addr)
            for watch in seat.watches:
                self._watch(*watch)
                done.append(watch)
        except BaseException:
            seat.watches = done
            self._clear(slot, seat, device)
            raise
        self._seats[slot] = seat
        self._transports = {**self._transports, slot: transport}
        if isinstance(device, Pluggable):
            self._addrs[device.KIND, addr] = device
        if self._windows is not None:
            self._windows.put(slot, transport)
        else:
            window = _window(slot)
            self._bus.add(bus.MMIO, window.base, window.size, transport, _is_light)
        return transport

    def _equip(self, seat: _Seat, slot: int, device: Device, addr: int) -> Mmio:
        """Give a device all that a slot has, of which no VM knows yet but for the line."""
        assert self._pages is not None
        window = _window(slot)
        seat.line = self._line(self._vm_fd, window.gsi)
        seat.kicks += [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in device.queue_sizes]
        transport = seat.transport = Mmio(
            device,
            self._pages.page(slot),
            memory=self._memory,
            irq_fd=seat.line.fd,
            broken_fd=self.notices_fd,
            kicks=seat.kicks,
            warn=self._warnings[device],
            place=_place(device, addr),
            exclusively=None if self._read_exits else self._without_memslot,
        )
        notify = window.base + registers.QUEUE_NOTIFY
        seat.watches += [(notify, queue, kick) for queue, kick in enumerate(seat.kicks)]
        if not self._read_exits:
            ack = window.base + registers.INTERRUPT_ACK
            seat.watches.append((ack, registers.INTERRUPT_USED, self._acknowledged))
        return transport

    def put_all(self, devices: list[Device], places: Sequence[int] = ()) -> None:
        """Put each device into the slot of its place in the list, if it is not there yet.

        Or into those of `places`, if there are as many.
        """
        counts: dict[str, int] = {}
        for index, device in enumerate(devices):
            slot = places[index] if len(places) == len(devices) else index
            kind = device.KIND if isinstance(device, Pluggable) else ""
            addr = counts[kind] = counts.get(kind, -1) + 1
            if slot not in self._transports:
                self.put(slot, device, addr)

    def add(self, device: Device, addr: int = -1) -> VirtioMmio:
        """Put a device into any slot while vCPUs may run, as `put` does; return where that is.

        ConfigError: there is no free one.
        """
        free = [slot for slot in range(self._most) if slot not in self._seats]
        if not free or self._windows is None:
            raise ConfigError(
                f"all {self._most} slots are taken; unplug a device, or unbind the drivers of "
                "unplugged ones in the guest"
            )
        lines = [_line(slot) for slot in self._seats]
        left = list(self._left)
        # The line with the fewest others. A guest may keep what it made of a window that was
        # another's, or be about to let go of it: the one that was so last is the last.
        slot = min(
            free,
            key=lambda slot: (
                lines.count(_line(slot)),
                left.index(slot) if slot in self._left else -1,
            ),
        )
        self.put(slot, device, addr)
        return _window(slot)

    def slot_of(self, device: Device) -> int:
        """Return the slot that a device is in."""
        found = self._transports.items()
        return next(slot for slot, transport in found if transport.device is device)

    def remove(self, device: Device) -> None:
        """Take away a device and its slot; no vCPU runs, and no driver has it.

        The device stays as it is, the caller's.
        """
        assert self._windows is not None
        found = self._transports
        slot = self.slot_of(device)
        with self.lock:
            self._windows.put(slot, None)
            self._transports = {key: one for key, one in found.items() if key != slot}
            self._left.pop(slot, None)
            self._left[slot] = None
            self.forget(device)
            self._clear(slot, self._seats.pop(slot), device)

    def _clear(self, slot: int, seat: _Seat, device: Device) -> None:
        """Give back what a slot has."""
        for address, value, fd in seat.watches:
            self._watch(address, value, fd, lib.KVM_IOEVENTFD_FLAG_DEASSIGN)
        if seat.transport is not None:
            seat.transport.close()
        device.leave()
        assert self._pages is not None
        with self._pages.page(slot) as page:
            page[:] = bytes(len(page))
        while seat.kicks:
            os.close(seat.kicks.pop())
        if seat.line is not None:
            self._drop_line(seat.line)
        del self._warnings[device]

    def has_room(self) -> bool:
        """Tell whether there is a slot for another device."""
        return len(self._seats) < self._most

    def find(self, kind: str, addr: int) -> Pluggable | None:
        """Return the device of a kind that QMP calls by `addr`."""
        return self._addrs.get((kind, addr))

    def name(self, device: Pluggable, addr: int) -> None:
        """Let a device be found by `addr`, which is no other's of its kind."""
        self._addrs[device.KIND, addr] = device

    def forget(self, device: Device) -> None:
        """Let nothing find a device by its `addr` any more; its slot stays."""
        self._addrs = {name: one for name, one in self._addrs.items() if one is not device}

    def windows(self) -> list[VirtioMmio]:
        """Return where the slots stand that something is in."""
        return [_window(slot) for slot in sorted(self._seats)]

    def connect(self, vm_fd: int) -> None:
        """Let a VM's accesses find the slots; one that they belonged to before is closed."""
        self._vm_fd = vm_fd
        for seat in self._seats.values():
            for address, value, fd in seat.watches:
                self._watch(address, value, fd)
        self._show_pages()

    def _show_pages(self) -> None:
        if self._pages is not None and not self._read_exits:
            self._pages.connect(self._vm_fd)

    def drain(self) -> None:
        """Have every device complete what is in flight, before `reset`; no vCPU runs.

        BackendError when one does not in LIMIT_S, and all go on as before.
        """
        done: list[Mmio] = []
        until = time.monotonic() + turn.LIMIT_S
        try:
            for transport in self.transports:
                transport.drain(max(_LEAST_S, until - time.monotonic()))
                done.append(transport)
        except BaseException:
            for transport in done:
                transport.resume()
            raise

    def resume(self) -> None:
        """Let every device go on after `drain`, or begin after it was restored."""
        for transport in self.transports:
            transport.resume()

    def reset(self) -> None:
        """Reset every device; what is behind it stays, its faults go. No vCPU runs.

        BackendError: one is given up; the others are reset.
        """
        for transport in self.transports:
            transport.faults().clear()
            transport.reset()
        for transport in self.transports:
            if transport.is_given_up:
                raise BackendError(f"{transport.device.name}: is given up; start another machine")

    def pluggable(self, kind: str) -> list[Pluggable]:
        """Return the devices of a kind ("block", "net") that something can be put behind.

        The place in the list is what QMP calls `addr`.
        """
        devices = [device for device in self._devices if isinstance(device, Pluggable)]
        return [device for device in devices if kind == device.KIND]

    def _eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._owned.append(fd)
        return fd

    def _watch(self, address: int, value: int, fd: int, flags: int = 0) -> None:
        """Let a 4-byte write of `value` at `address` end in the eventfd, or no longer."""
        words = {
            "datamatch": value,
            "addr": address,
            "len": 4,
            "fd": fd,
            "flags": lib.KVM_IOEVENTFD_FLAG_DATAMATCH | flags,
        }
        kvm.IOEVENTFD(self._vm_fd, ffi.new("struct kvm_ioeventfd *", words))

    def _without_memslot(self, change: Callable[[], None]) -> None:
        # Meanwhile the reads exit, and those of the device that changes wait for its lock.
        assert self._pages is not None
        with self._memslot_lock:
            self._pages.hide()
            try:
                change()
            finally:
                self._pages.show()

    def report(self) -> bool:
        """Log what devices have to say; when `notices_fd` is readable, by any thread.

        False: there was nothing.
        """
        try:
            os.eventfd_read(self.notices_fd)
        except BlockingIOError:
            return False
        with self.lock:
            for transport in self.transports:
                transport.report()
        return True

    def take_events(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and data of each of QMP's events that devices have for it since the last.

        A failure of an image is logged, too.
        """
        for transport in self.transports:
            yield from transport.device.take_events()
        for device in self.pluggable("block"):
            failure = device.take_failure()
            if failure is not None:
                operation, error = failure
                self.warn(device, f"{operation}: {os.strerror(error)}")
                yield (
                    "BLOCK_IO_ERROR",
                    {
                        "device": device.backend,
                        "node-name": device.backend,
                        "operation": "read" if operation == "read" else "write",
                        "action": "report",
                        "nospace": error == errno.ENOSPC,
                        "reason": os.strerror(error),
                    },
                )
        for device in self.pluggable("net"):
            if device.take_filter_change() and device.backend:
                yield "NIC_RX_FILTER_CHANGED", {"name": device.backend, "path": device.backend}

    def warn(self, device: Device, text: str) -> None:
        """Log a line that a device's driver may have caused; any thread."""
        self._warnings[device](f"{device.name}: {text}")

    def close(self) -> list[Device]:
        """Bring requests in flight to their end; no vCPU runs any more.

        Return the devices whose requests the host has not completed within LIMIT_S for all of them.
        What they use (this, descriptors, guest memory) has to be there to the process's end.
        """
        for transport in self.transports:
            transport.halt()
        until = time.monotonic() + turn.LIMIT_S
        kept = [
            transport.device
            for transport in self.transports
            if not transport.close(max(_LEAST_S, until - time.monotonic()))
        ]
        if kept:
            return kept
        self._transports = {}
        for seat in self._seats.values():
            while seat.kicks:
                os.close(seat.kicks.pop())
        self._seats.clear()
        while self._owned:
            os.close(self._owned.pop())
        self.notices_fd = -1
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        return kept
