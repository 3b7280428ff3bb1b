"""A running machine as the server's host (see `host`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from ..devices import mac
from ..devices.chardev import NULL
from ..devices.disk import SECTOR
from ..devices.tap import Tap, TapConfig
from ..devices.virtio.block import BlockConfig
from ..devices.virtio.block import Image as OpenImage
from ..devices.virtio.device import Pluggable
from ..devices.virtio.net import Net
from ..errors import QmpError
from ..native import ffi, lib
from ..vmm import end, inspection
from ..vmm.hotplug import BLOCK, NET, ON_DEMAND, SLOTS, Inventory
from ..vmm.log import Log
from . import events
from .host import (
    DEVICE,
    VCPU,
    VM,
    Chardev,
    Counters,
    DiskRequest,
    GuestStatistics,
    Image,
    MemoryBackend,
    NicRequest,
    RxFilter,
    Saving,
    VcpuPlace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ..devices.chardev import Chardev as OpenChardev
    from ..devices.iothread import IoThread
    from ..devices.serial import Serial
    from ..devices.vhost_user.back_end import BackEnd
    from ..devices.virtio.balloon import Balloon
    from ..devices.virtio.device import Device as VirtioDevice
    from ..devices.virtio.device import DeviceConfig
    from ..devices.virtio.fault import Fault, FaultState
    from ..devices.virtio.served import Export
    from ..vmm.hotplug import Device, Resource
    from ..vmm.machine import Machine
    from ..vmm.snapshot.layers import Origin
    from ..vmm.snapshot.save import Saver, Target
    from ..vmm.steps import Steps
    from .listener import ListenerConfig

    DeviceMaker = Callable[[str, Mapping[str, str], Mapping[str, str]], DeviceConfig]

_RAM = "microvm.ram"  # QEMU's id of memory that no object has
# What the machine calls the kinds of its slots.
_KINDS = {BLOCK: "block", NET: "net"}
# Why a machine ended: whether the guest did it, and QEMU's word for that.
_ENDS = {
    end.GUEST_SHUTDOWN: (True, events.GUEST_SHUTDOWN),
    end.GUEST_RESET: (True, events.GUEST_RESET),
    end.DEBUG_EXIT: (True, events.GUEST_SHUTDOWN),
    end.TRIPLE_FAULT: (True, events.GUEST_PANIC),
    end.GUEST_PANIC: (True, events.GUEST_PANIC),
    end.WATCHDOG: (True, events.GUEST_SHUTDOWN),
    end.CRASH: (False, events.HOST_ERROR),
    end.HOST: (False, events.HOST_SIGNAL),
}


class MachineHost:
    """One machine; owns the backends that no device has, until `close`."""

    def __init__(
        self,
        of: Machine,
        serial: Serial | None = None,
        monitors: Sequence[ListenerConfig] = (),
        iothreads: tuple[IoThread, ...] = (),
        *,
        log: Log | None = None,
        restored: bool = False,
        maker: DeviceMaker | None = None,
    ) -> None:
        """Enter the disks and NICs that the machine has from its start; it is not ours.

        `serial` is its serial port; some of `monitors` are on a chardev. `restored` says that it
        comes from a snapshot. `maker` makes devices of other kinds, where slots come on demand.
        """
        self.name = of.config.name
        self.uuid = of.config.uuid
        self.memory = of.config.memory
        self.on_demand = of.demand is not None
        self._maker = maker
        self._others: dict[str, VirtioDevice] = {}  # plugged ones, neither disks nor NICs
        self._busy: set[str] = set()  # of them, who come or go
        self.inventory = Inventory(ON_DEMAND if self.on_demand else SLOTS)
        self._machine = of
        self._serial = serial
        self._monitors = monitors
        self._iothreads = iothreads
        self._is_quitting = False
        self._log = log
        self._saver: Saver | None = None
        self._saved = Saving("completed" if restored else "none")
        assert of.slots is not None
        for kind, name in _KINDS.items():
            for slot, device in enumerate(of.slots.pluggable(name)):
                resource = device.resource
                if resource is not None:
                    self.inventory.adopt(kind, device.backend, slot, resource)

    def tell(
        self,
        emit: Callable[[str, dict[str, object]], None],
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand the machine's events on, in QMP's words; `go_on`: a step waits no more."""
        if self._machine.demand is not None:
            self._machine.demand.port.on_answer = go_on

        def translate(name: str, data: dict[str, Any]) -> None:
            if name == events.SHUTDOWN:
                by_guest, reason = _ENDS[data["reason"]]
                if self._is_quitting and not by_guest:
                    reason = events.HOST_QUIT
                data = {"guest": by_guest, "reason": reason}
            elif name == events.RESET:
                by_guest = data["guest"]
                reason = events.GUEST_RESET if by_guest else events.HOST_RESET
                data = {"guest": by_guest, "reason": reason}
            emit(name, data)

        self._machine.listeners.append(translate)

    def close(self) -> None:
        """Close what is registered; the machine is closed."""
        self.inventory.close()

    def state(self) -> str:
        """Return the machine's state, whose words are the host's."""
        return self._machine.state

    def paused_because(self) -> str:
        """Return what the guest did."""
        return self._machine.reaction.because

    def stop(self) -> None:
        """Pause the vCPUs."""
        self._machine.pause()

    def cont(self) -> None:
        """Let them run on."""
        self._machine.resume()

    def quit(self) -> None:
        """End the machine; who runs it does the rest."""
        self._is_quitting = True
        self._machine.finish(end.End(end.HOST))

    def powerdown(self) -> None:
        """Press the power button."""
        self._machine.power_button()

    def reset(self) -> None:
        """Press the reset button."""
        self._machine.reset()

    def save(self, path: str, *, incremental: bool = False) -> None:
        """Begin to write a snapshot."""
        from ..vmm.snapshot.folder import Folder  # noqa: PLC0415  (few machines are saved)
        from ..vmm.snapshot.layers import origin  # noqa: PLC0415

        since = origin(self._machine) if incremental else None
        self._save(Folder(path, since.path if since else ""), since)

    def become_template(self, place: str) -> None:
        """Begin to hand it over."""
        from ..vmm.snapshot.template import Handover  # noqa: PLC0415

        self._save(Handover(place))

    def _save(self, target: Target, since: Origin | None = None) -> None:
        from ..vmm.snapshot.save import Saver  # noqa: PLC0415

        if self._saver is None:
            self._saver = Saver(self._machine, self._log or Log())
        self._saver.start(target, since)

    def saving(self) -> Saving:
        """Return how far it is."""
        if self._saver is None:
            return self._saved
        done, total, written = self._saver.progress()
        return Saving(self._saver.status, self._saver.error, done, total, written)

    def cancel_save(self) -> None:
        """End it."""
        if self._saver is not None:
            self._saver.cancel()

    def vcpu_threads(self) -> list[int]:
        """Return the thread ids, 0 before the start."""
        return list(self._machine.thread_ids)

    def vcpu_places(self) -> list[VcpuPlace]:
        """Return what CPUID and SRAT tell the guest."""
        topology, numa = self._machine.config.topology, self._machine.config.numa
        found = []
        for vcpu in range(topology.vcpus):
            socket, die, core, thread = topology.place(vcpu)
            node = numa.node_of(vcpu) if numa is not None else None
            found.append(VcpuPlace(socket, die if topology.dies > 1 else None, core, thread, node))
        return found

    def memory_backends(self) -> list[MemoryBackend]:
        """Return the objects, or what is there without any by QEMU's name."""
        config = self._machine.config
        memdevs = [memdev for memdev in config.memdevs if memdev.id]
        found = [
            MemoryBackend(
                id=memdev.id,
                size=memdev.size,
                shared=config.share or memdev.shared,
                prealloc=config.prealloc or memdev.prealloc,
                dumped=config.dump_guest_core,
                policy=memdev.policy,
                host_nodes=memdev.host_nodes,
            )
            for memdev in memdevs
        ]
        return found or [
            MemoryBackend(
                id=_RAM,
                size=self.memory,
                shared=config.share,
                prealloc=config.prealloc,
                dumped=config.dump_guest_core,
            )
        ]

    def iothreads(self) -> list[tuple[str, int]]:
        """Return those of the command line; the threads of single queues have no name."""
        return [(thread.id, thread.thread_id) for thread in self._iothreads]

    def _open_chardevs(self) -> list[tuple[OpenChardev, bool, bool]]:
        found = self._machine.chardevs()
        if self._serial is not None:
            chardev = self._serial.chardev
            found.insert(0, (chardev, chardev.config.kind != NULL, self._serial.is_taken()))
        return found

    def chardevs(self) -> list[Chardev]:
        """Return those of the serial port, of ports, and of monitors that are on a -chardev."""
        found = [
            Chardev(one.config.id, one.filename(is_taken=is_taken), is_open)
            for one, is_open, is_taken in self._open_chardevs()
        ]
        return found + [
            Chardev(monitor.chardev, monitor.filename, is_open=True)
            for monitor in self._monitors
            if monitor.chardev
        ]

    def _ringbuf(self, label: str) -> Any:
        for chardev, _, _ in self._open_chardevs():
            if chardev.config.id == label:
                if chardev.ringbuf is None:
                    raise QmpError(f"`device` {label}: not a ringbuf, but {chardev.config.kind}")
                return chardev.ringbuf
        raise QmpError(f"`device` {label}: there is none; query-chardev lists those there are")

    def read_ringbuf(self, label: str, size: int) -> bytes:
        """Take the oldest bytes out of a ring buffer."""
        ring = self._ringbuf(label)
        data = bytearray(size)
        return bytes(data[: lib.pv_ringbuf_read(ring, ffi.from_buffer(data), size)])

    def write_ringbuf(self, label: str, data: bytes) -> None:
        """Append bytes to a ring buffer."""
        lib.pv_ringbuf_write(self._ringbuf(label), data, len(data))

    def counters(self) -> list[Counters]:
        """Return the counters of the machine, its vCPUs, and all devices but empty slots."""
        ids = {device.name: name for name, device in self._devices().items()}
        found = []
        for whose, name, values in inspection.counters(self._machine):
            if whose == VM:
                found.append(Counters(VM, VM, values))
            elif whose == VCPU:
                found.append(Counters(VCPU, f"vcpu{name}", values))
            elif name in ids:
                found.append(Counters(DEVICE, ids[name], values))
        return found

    def rx_filter(self, device: Device) -> RxFilter:
        """Return what the driver of a NIC wants to receive."""
        nic = self._machine.slot(_KINDS[NET], device.slot)
        assert isinstance(nic, Net)
        mode = nic.rx_filter()
        vlans = [n for n in range(64 * len(mode.vlans)) if mode.vlans[n // 64] >> n % 64 & 1]
        return RxFilter(
            bytes(mode.mac),
            bool(mode.promiscuous),
            bool(mode.all_multicast),
            _addresses(mode.unicast),
            _addresses(mode.multicast),
            vlans if mode.filters_vlans else None,
        )

    def read_register(self, vcpu: int, name: str) -> int:
        """Return a general, control or segment register."""
        return inspection.registers(self._machine, vcpu)[name]

    def read_memory(self, address: int, length: int) -> bytes:
        """Return bytes of RAM."""
        assert self._machine.memory is not None
        return self._machine.memory.read(address, length)

    def read_registers(self) -> list[dict[str, int]]:
        """Return the registers of all vCPUs."""
        return inspection.all_registers(self._machine)

    def inspect_memory(self, address: int, length: int, vcpu: int | None) -> bytes:
        """Return guest memory while the machine stands."""
        return inspection.read_memory(self._machine, address, length, vcpu)

    def save_memory(self, path: str, address: int, length: int, vcpu: int | None) -> None:
        """Write guest memory to a file."""
        inspection.save_memory(self._machine, path, address, length, vcpu)

    def save_core(self, path: str) -> None:
        """Write all of it."""
        inspection.save_core(self._machine, path)

    def inject_nmi(self) -> None:
        """Raise an NMI everywhere."""
        self._machine.inject_nmi()

    def set_watchdog_action(self, action: str) -> None:
        """Have the machine do that."""
        self._machine.reaction.watchdog = action

    def _find_balloon(self) -> Balloon | None:
        from ..devices.virtio.balloon import Balloon  # noqa: PLC0415  (few machines have one)

        assert self._machine.slots is not None
        for transport in self._machine.slots.transports:
            if isinstance(transport.device, Balloon):
                return transport.device
        return None

    def _balloon(self) -> Balloon:
        balloon = self._find_balloon()
        if balloon is None:
            raise QmpError("No balloon device has been activated", "DeviceNotActive")
        return balloon

    def guest_memory(self) -> int:
        """Return what the balloon leaves."""
        return self.memory - self._balloon().ballooned

    def guest_statistics(self, name: str) -> GuestStatistics | None:
        """Return what the balloon's driver said last."""
        balloon = self._find_balloon()
        if balloon is None or balloon.id != name:
            return None
        found = balloon.statistics()
        return GuestStatistics(tuple(found.values), int(found.updated), balloon.interval)

    def poll_guest_statistics(self, interval: int) -> None:
        """Have it asked."""
        self._balloon().poll(interval)

    def set_guest_memory(self, size: int) -> None:
        """Have the rest put into the balloon."""
        self._balloon().set_target(max(0, self.memory - size))

    def open_disk(self, request: DiskRequest) -> Resource:
        """Open and lock an image."""
        return OpenImage(
            BlockConfig(
                request.id,
                request.path,
                readonly=request.readonly,
                direct=request.direct,
                engine=request.engine,
                iops=request.iops,
                unmap=request.unmap,
                detect_zeroes=request.detect_zeroes,
                raw=request.raw,
                overlay=request.overlay,
            )
        )

    def image(self, resource: Resource) -> Image:
        """Tell about an open image, or a disk of another process."""
        if not isinstance(resource, OpenImage):
            export = cast("Export", resource)
            name = export.config.back_end.where
            return Image(name, export.sectors * SECTOR, export.readonly, direct=False)
        config, disk = resource.config, resource.disk
        return Image(
            config.path,
            disk.sectors * SECTOR,
            config.readonly,
            disk.direct,
            config.iops,
            config.detect_zeroes,
            config.overlay,
            resource.overlay.written if resource.overlay else 0,
        )

    def open_nic(self, request: NicRequest) -> Resource:
        """Open a tap, by its name or by copies of the descriptors."""
        copies: list[int] = []
        try:
            fds = tuple(_copy(fd, copies) for fd in request.fds)
            vhost_fds = tuple(_copy(fd, copies) for fd in request.vhost_fds)
            return Tap(
                TapConfig(
                    request.ifname,
                    fds=fds,
                    queues=request.queues,
                    vhost=request.vhost,
                    vhost_fds=vhost_fds,
                )
            )
        except BaseException:
            for fd in copies:
                os.close(fd)
            raise

    def open_export(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
        """Connect to a back end that listens on `path`."""
        from ..devices.vhost_user.block import BlockConfig as ExportConfig  # noqa: PLC0415
        from ..devices.vhost_user.plugged import QUEUE_SIZE, Export  # noqa: PLC0415  (few have any)

        back_end = self._back_end(id, chardev, path)
        return Export(ExportConfig(id, back_end, queue_size=QUEUE_SIZE, config_wce=False))

    def open_uplink(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
        """Connect to a switch that listens on `path`."""
        from ..devices.vhost_user.net import NetConfig  # noqa: PLC0415
        from ..devices.vhost_user.plugged_nic import Uplink  # noqa: PLC0415  (few have any)

        # The address is the slot's.
        return Uplink(NetConfig(id, self._back_end(id, chardev, path), bytes(6)))

    def _back_end(self, id: str, chardev: str, path: str) -> BackEnd:  # noqa: A002
        """Return where one is; QmpError: it could not see guest memory."""
        from ..devices.vhost_user.socket import SocketBackEnd  # noqa: PLC0415  (few have any)

        if not all(one.shared for one in self.memory_backends()):
            raise QmpError(
                f"Device {id}: guest memory is this process's alone, and a back end has to see it; "
                "start the machine with -machine mem-share=on"
            )
        return SocketBackEnd(f"chardev {chardev}", path)

    def _iothread(self, device: Device) -> IoThread | None:
        return next((one for one in self._iothreads if one.id == device.iothread), None)

    def _check_engine(self, device: Device) -> None:
        """Raise QmpError where a disk's requests cannot go to the thread that it asks for."""
        image = device.backend.resource
        if not isinstance(image, OpenImage):
            return
        for other in self.inventory.devices(BLOCK):
            theirs = other.backend.resource
            if not isinstance(theirs, OpenImage):
                continue
            named = theirs.config.iothread.id if theirs.config.iothread else ""
            is_shared = device.iothread and device.iothread == (other.iothread or named)
            if is_shared and theirs.engine != image.engine:
                raise QmpError(
                    f"`iothread` {device.iothread} serves {other.id} by {theirs.engine}; give "
                    f"blockdev-add `aio` {theirs.engine} as well, or leave `iothread` out"
                )

    def attach(self, device: Device) -> Steps[None]:
        """Put the backend behind the slot, which may be made for it."""
        if device.id in self._others:
            raise QmpError(f"Device {device.id} is plugged already; send device_del first")
        options: dict[str, Any] = {"iothread": self._iothread(device)}
        backend = device.backend
        if backend.kind == NET:
            address = mac.parse("mac", device.mac) if device.mac else b""
            options |= {"id": device.id, "mac": address}
        else:
            self._check_engine(device)
            options |= {"serial": device.serial}
        if self._machine.demand is None:
            self._machine.attach(_KINDS[backend.kind], device.slot, backend.resource, **options)
            return
        from .demand import plug  # noqa: PLC0415  (few machines have slots so)

        yield from plug(self._machine, _KINDS[backend.kind], device, options)

    def detach(self, device: Device) -> Steps[None]:
        """Take it away again."""
        place = _KINDS[device.backend.kind], device.slot
        if self._machine.demand is None:
            self._machine.detach(*place)
        else:
            yield from self._machine.demand.detach(*place)

    def plug_other(self, id: str, driver: str, members: dict[str, str]) -> Steps[None]:  # noqa: A002
        """Plug a device that is neither disk nor NIC."""
        from .demand import check_other, plug_other  # noqa: PLC0415  (few machines have slots so)

        if self._maker is None or self._machine.demand is None:
            raise QmpError("Unsupported replaceable device type.")
        if id in self._others or id in self._ids():
            raise QmpError(f"Device {id} is plugged already; send device_del first")
        chardevs = self.inventory.chardevs()
        config = self._maker(driver, {"id": id, **members}, chardevs)
        check_other(self._machine, config)
        device = self._others[id] = config.make()
        self._busy.add(id)
        try:
            yield from plug_other(self._machine, device)
        except BaseException:
            del self._others[id]
            raise
        finally:
            self._busy.remove(id)

    def _ids(self) -> set[str]:
        """Return the ids of all devices of the command line and of disks and NICs."""
        config = self._machine.config
        given: tuple[Any, ...] = (*config.disks, *config.nics, *config.devices)
        plugged = (device.id for kind in _KINDS for device in self.inventory.devices(kind))
        return {one.id for one in given} | set(plugged)

    def unplug_other(self, id: str) -> Steps[bool | None]:  # noqa: A002
        """Unplug it; False: the guest has it still, None: there is none."""
        device = self._others.get(id)
        if device is None:
            return None
        if id in self._busy:
            raise QmpError(
                f"Device {id} is being plugged or unplugged; wait for the answer to that"
            )
        assert self._machine.demand is not None
        self._busy.add(id)
        try:
            is_gone = yield from self._machine.demand.unplug(device)
        finally:
            self._busy.remove(id)
        if is_gone:
            del self._others[id]
        return is_gone

    def resize(self, device: Device, size: int) -> None:
        """Give a disk and its image another size."""
        self._machine.change(
            _KINDS[device.backend.kind], device.slot, lambda disk: disk.resize(size)
        )

    def set_link(self, device: Device, *, up: bool) -> None:
        """Pull a NIC's plug, or put it back."""
        self._machine.change(_KINDS[device.backend.kind], device.slot, lambda nic: nic.set_link(up))

    def _devices(self) -> dict[str, VirtioDevice]:
        """Return what faults can be asked of, by id: what is plugged, and all that is for good."""
        assert self._machine.slots is not None
        found: dict[str, VirtioDevice] = {
            device.id: self._machine.slot(name, device.slot)
            for kind, name in _KINDS.items()
            for device in self.inventory.devices(kind)
        }
        for transport in self._machine.slots.transports:
            if not isinstance(transport.device, Pluggable):
                found[transport.device.name] = transport.device
        return found

    def _find(self, name: str) -> tuple[str, VirtioDevice]:
        devices = self._devices()
        plugged = self.inventory.find(name)
        name = plugged.id if plugged else name
        if name not in devices:
            raise QmpError(f"Device {name} not found; there are {', '.join(devices) or 'none'}")
        return name, devices[name]

    def add_fault(self, name: str, fault: Fault) -> int:
        """Let a device commit a fault."""
        return self._find(name)[1].faults().add(fault)

    def clear_faults(self, name: str | None, id: int | None) -> None:  # noqa: A002
        """Remove faults."""
        if name is not None:
            self._find(name)[1].faults().clear(id or 0)
            return
        for device in self._devices().values():
            device.faults().clear()

    def faults(self, name: str | None) -> list[tuple[str, FaultState]]:
        """Return the faults there are."""
        return [
            (name, state)
            for name, device in ([self._find(name)] if name else self._devices().items())
            for state in device.faults().states()
        ]

    def break_device(self, name: str) -> None:
        """Let a device need a reset."""
        self._find(name)[1].faults().break_device()


def _addresses(listed: Any) -> list[bytes] | None:
    return None if listed.all else [bytes(listed.list[n]) for n in range(listed.count)]


def _copy(fd: int, copies: list[int]) -> int:
    copies.append(os.dup(fd))
    return copies[-1]
