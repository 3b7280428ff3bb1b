"""Slots for virtio devices: where each stands in the guest, and how KVM spares it exits.

A slot is a register page (register_pages.py), an interrupt line, an ioeventfd for each queue's
notifications. The acknowledgement of "used buffers", one write for each interrupt, ends in an
ioeventfd that nobody reads. Source: Documentation/virt/kvm/api.rst, KVM_IOEVENTFD.
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
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..devices.nic import NicConfig
    from ..devices.virtio.block import BlockConfig
    from ..devices.virtio.device import Device
    from .bus import Bus
    from .config import MachineConfig
    from .log import Log
    from .vm import InterruptLine

SLOTS_MAX = len(layout.VIRTIO_GSIS)
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
    return (max(given[0], BLOCK_SLOTS), max(given[1], NET_SLOTS)) if config.hotplug else given


def count(config: MachineConfig) -> int:
    """Return how many slots `fill` fills."""
    return sum(_counts(config)) + len(config.devices)


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
    return f"vd{chr(ord('a') + addr)}" if device.KIND == BLOCK else f"eth{addr}"


def windows(count: int) -> list[VirtioMmio]:
    """Return where the first `count` slots stand, as the guest is told."""
    return [
        VirtioMmio(layout.VIRTIO_MMIO + index * layout.VIRTIO_MMIO_STEP, registers.PAGE_SIZE, gsi)
        for index, gsi in enumerate(layout.VIRTIO_GSIS[:count])
    ]


class Slots:
    """The slots of one machine; owns pages, transports and eventfds."""

    def __init__(
        self,
        vm_fd: int,
        count: int,
        *,
        bus: Bus,
        memory: Any,
        line: Callable[[int], InterruptLine],
        log: Log,
        read_exits: bool,
    ) -> None:
        """Have `count` slots, each for `put` to fill before the guest runs; ConfigError, KvmError.

        `memory` is the struct pv_memory. `line` makes the line of a GSI, and keeps it.
        `read_exits` does without the memslot: every read and acknowledgement goes to Python.
        """
        self.notices_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._owned = [self.notices_fd]
        self._bus = bus
        self._memory = memory
        self._line = line
        self._log = log
        self._transports: dict[int, Mmio] = {}  # by slots
        # Of each device its own, which has a limit: what it says is a driver's doing.
        self._warnings: dict[Device, Callable[[str], None]] = {}
        self._vm_fd = vm_fd
        self._watches: list[tuple[int, int, int]] = []  # a written address and value, an eventfd
        self._pages: RegisterPages | None = None
        self._read_exits = read_exits
        self._memslot_lock = _thread.allocate_lock()  # two devices may change at a time
        try:
            if count > SLOTS_MAX:
                raise ConfigError(f"{count} virtio devices: at most {SLOTS_MAX}; drop some")
            self._windows = windows(count)
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
        return [self._transports[slot] for slot in sorted(self._transports)]

    def transport(self, slot: int) -> Mmio:
        """Return that of the device in a slot."""
        return self._transports[slot]

    @property
    def _devices(self) -> list[Device]:
        return [transport.device for transport in self.transports]

    def put(self, slot: int, device: Device, addr: int) -> Mmio:
        """Put a device into an empty slot, and return its transport; PyvirtError.

        It is the one of its kind at `addr`, if one can be plugged there. It is borrowed until
        `close`.
        """
        assert self._pages is not None
        window = self._windows[slot]
        kicks = [self._eventfd() for _ in device.queue_sizes]
        warn = self._warnings[device] = self._log.limited()
        transport = self._transports[slot] = Mmio(
            device,
            self._pages.page(slot),
            memory=self._memory,
            irq_fd=self._line(window.gsi).fd,
            broken_fd=self.notices_fd,
            kicks=kicks,
            warn=warn,
            place=_place(device, addr),
            exclusively=None if self._read_exits else self._without_memslot,
        )
        self._bus.add(bus.MMIO, window.base, window.size, transport)
        notify = window.base + registers.QUEUE_NOTIFY
        watches = [(notify, queue, kick) for queue, kick in enumerate(kicks)]
        if not self._read_exits:
            ack = window.base + registers.INTERRUPT_ACK
            watches.append((ack, registers.INTERRUPT_USED, self._acknowledged))
        self._watches += watches
        for watch in watches:
            self._watch(*watch)
        return transport

    def put_all(self, devices: list[Device]) -> None:
        """Put each device into the slot of its place in the list, if it is not there yet."""
        counts: dict[str, int] = {}
        for slot, device in enumerate(devices):
            kind = device.KIND if isinstance(device, Pluggable) else ""
            addr = counts[kind] = counts.get(kind, -1) + 1
            if slot not in self._transports:
                self.put(slot, device, addr)

    def connect(self, vm_fd: int) -> None:
        """Let a VM's accesses find the slots; one that they belonged to before is closed."""
        self._vm_fd = vm_fd
        for address, value, fd in self._watches:
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

    def _watch(self, address: int, value: int, fd: int) -> None:
        """Let a 4-byte write of `value` at `address` end in the eventfd."""
        words = {
            "datamatch": value,
            "addr": address,
            "len": 4,
            "fd": fd,
            "flags": lib.KVM_IOEVENTFD_FLAG_DATAMATCH,
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
        self._transports.clear()
        while self._owned:
            os.close(self._owned.pop())
        self.notices_fd = -1
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        return kept
