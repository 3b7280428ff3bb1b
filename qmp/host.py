"""The machine as the QMP server sees it.

The server calls these on its own thread, one at a time. PyvirtError from any of them becomes the
error of the command that called, and must leave the machine as it was. Events of the machine's
life (all but DEVICE_DELETED) are the machine's to emit, before the call that caused one returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from ..devices.virtio.fault import Fault, FaultState
    from ..vmm.hotplug import Device, Inventory, Resource
    from ..vmm.steps import Steps

RUNNING, PAUSED, ENDED = "running", "paused", "ended"
VM, VCPU, DEVICE = "vm", "vcpu", "device"  # whose counters


@dataclass(frozen=True)
class DiskRequest:
    """A disk image that is to be opened; `direct` None is direct I/O where it is possible.

    `engine` is io_uring, threads or auto, `iops` requests a second (0: no limit), `unmap`,
    `detect_zeroes`, `raw` and `overlay` are as in BlockConfig.
    """

    id: str
    path: str
    readonly: bool = False
    direct: bool | None = None
    engine: str = "auto"
    iops: int = 0
    unmap: bool = False
    detect_zeroes: str = "off"
    raw: bool = False
    overlay: str = ""


@dataclass(frozen=True)
class NicRequest:
    """A NIC's other end that is to be opened: a tap by its name, or by open descriptors.

    The descriptors are borrowed: who wants to keep one duplicates it. `vhost` asks for the
    kernel's data path, by /dev/vhost-net or by these descriptors of it.
    """

    id: str
    ifname: str = ""
    fds: tuple[int, ...] = ()
    vhost: bool = False
    vhost_fds: tuple[int, ...] = ()
    queues: int = 1


@dataclass(frozen=True)
class VcpuPlace:
    """Where a vCPU is: `die` None where no socket has two of them, `node` where there is one."""

    socket: int
    die: int | None
    core: int
    thread: int
    node: int | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryBackend:
    """A piece of guest memory; `host_nodes` of this host it comes from by `policy`."""

    id: str
    size: int  # bytes
    shared: bool
    prealloc: bool
    dumped: bool
    policy: str = "default"
    host_nodes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Counters:
    """Counters of a vCPU, a device or the machine."""

    target: str
    name: str
    values: dict[str, int]


@dataclass(frozen=True)
class Image:
    """What a client may know of an open disk image; the rest as in DiskRequest.

    `size` is in bytes, and so is `written`, what an overlay takes of the host.
    """

    path: str
    size: int
    readonly: bool
    direct: bool
    iops: int = 0
    detect_zeroes: str = "off"
    overlay: str = ""
    written: int = 0


@dataclass(frozen=True)
class Chardev:
    """A character device, as `query-chardev` shows it."""

    label: str
    filename: str
    is_open: bool


@dataclass(frozen=True)
class Saving:
    """How far a snapshot is: `none`, `active`, `completed`, `failed` (by an `error`), `canceled`.

    In bytes of guest memory, those seen to, all there are, and those written; 0 with `none`.
    """

    status: str
    error: str = ""
    done: int = 0
    total: int = 0
    written: int = 0


@dataclass(frozen=True)
class GuestStatistics:
    """What a balloon's driver says of its guest, asked every `interval` seconds, 0: not at all.

    `values` are in the order of the tags (virtio 1.2, 5.5.6.4), all ones where it has said nothing;
    `updated` is when, in seconds since 1970, 0: never.
    """

    values: Sequence[int]
    updated: int
    interval: int


@dataclass(frozen=True)
class RxFilter:
    """What a NIC's driver wants to receive, as `query-rx-filter` shows it.

    Of addresses None stands for any; VLANs without a filter are None as well.
    """

    mac: bytes
    promiscuous: bool
    all_multicast: bool
    unicast: Sequence[bytes] | None
    multicast: Sequence[bytes] | None
    vlans: Sequence[int] | None


if TYPE_CHECKING:

    class Host(Protocol):
        """One machine."""

        name: str
        uuid: str  # "" where none was given
        memory: int  # bytes of RAM
        inventory: Inventory
        on_demand: bool  # whether slots come with their devices

        def plug_other(self, id: str, driver: str, members: dict[str, str]) -> Steps[None]:  # noqa: A002
            """Plug a device that is neither disk nor NIC, where slots come on demand."""

        def unplug_other(self, id: str) -> Steps[bool | None]:  # noqa: A002
            """Unplug it; False: a driver of the guest has it, None: there is none of this id."""

        def state(self) -> str:
            """Return RUNNING, PAUSED or ENDED."""

        def paused_because(self) -> str:
            """Return what the guest did that it is paused: `shutdown`, `guest-panicked`, or ""."""

        def stop(self) -> None:
            """Pause the vCPUs; return when they stand. STOP, unless they stood already."""

        def cont(self) -> None:
            """Let the vCPUs run on. RESUME, unless they ran already."""

        def quit(self) -> None:
            """Ask for the machine's end and return. SHUTDOWN when it has ended."""

        def powerdown(self) -> None:
            """Press the guest's power button. POWERDOWN."""

        def reset(self) -> None:
            """Start the machine anew; return when that is done. RESET."""

        def save(self, path: str, *, incremental: bool = False) -> None:
            """Pause the machine and begin to write it to a folder. STOP, unless it stood already.

            `incremental`: of memory, what has changed since the snapshot that it was restored
            from. A guest that ran runs on where this is refused.
            """

        def become_template(self, place: str) -> None:
            """Do so with the process of `pyvirt template` at SOCKET or SOCKET,name=NAME."""

        def saving(self) -> Saving:
            """Return how far that has come."""

        def cancel_save(self) -> None:
            """Have it end soon; nothing happens when it has ended."""

        def vcpu_threads(self) -> Sequence[int]:
            """Return the thread id of each vCPU, by index."""

        def vcpu_places(self) -> Sequence[VcpuPlace]:
            """Return the place of each vCPU, by index."""

        def memory_backends(self) -> Sequence[MemoryBackend]:
            """Return what guest memory is made of, from address 0 on."""

        def iothreads(self) -> Sequence[tuple[str, int]]:
            """Return id and thread id (0: it does not run) of each I/O thread with a name."""

        def chardevs(self) -> Sequence[Chardev]:
            """Return the character devices."""

        def read_ringbuf(self, label: str, size: int) -> bytes:
            """Take the oldest bytes, `size` at most, out of a ring buffer."""

        def write_ringbuf(self, label: str, data: bytes) -> None:
            """Append bytes to a ring buffer, in place of its oldest."""

        def counters(self) -> Sequence[Counters]:
            """Return all counters as they stand."""

        def rx_filter(self, device: Device) -> RxFilter:
            """Return what the driver of a NIC wants to receive.

            NIC_RX_FILTER_CHANGED comes with the first change after that.
            """

        def read_register(self, vcpu: int, name: str) -> int:
            """Return a register of a vCPU that exists; KeyError when there is none of the name.

            The machine is paused meanwhile if it runs.
            """

        def read_memory(self, address: int, length: int) -> bytes:
            """Return bytes of guest memory, while the guest runs; IndexError outside it."""

        def read_registers(self) -> Sequence[dict[str, int]]:
            """Return the registers of each vCPU, by index; the machine stands meanwhile."""

        def inspect_memory(self, address: int, length: int, vcpu: int | None) -> bytes:
            """Return guest memory by guest-physical address, or as a vCPU sees it.

            The machine stands meanwhile. IndexError: it is not there.
            """

        def save_memory(self, path: str, address: int, length: int, vcpu: int | None) -> None:
            """Write the same to a file."""

        def save_core(self, path: str) -> None:
            """Write an ELF core."""

        def inject_nmi(self) -> None:
            """Raise a non-maskable interrupt in every vCPU."""

        def set_watchdog_action(self, action: str) -> None:
            """Say what is done about a guest that does not feed its watchdog."""

        def guest_memory(self) -> int:
            """Return the bytes of RAM that are not in the balloon; QmpError: there is none."""

        def guest_statistics(self, name: str) -> GuestStatistics | None:
            """Return what the balloon of that id knows; None: there is none."""

        def poll_guest_statistics(self, interval: int) -> None:
            """Have it ask every so many seconds; 0: not any more."""

        def set_guest_memory(self, size: int) -> None:
            """Ask the guest to make do with `size` bytes; QmpError: it has no balloon.

            BALLOON_CHANGED when it has put something into the balloon, or taken it out.
            """

        def open_disk(self, request: DiskRequest) -> Resource:
            """Open and lock an image."""

        def image(self, resource: Resource) -> Image:
            """Tell about an image that `open_disk`, or the start, has opened."""

        def open_nic(self, request: NicRequest) -> Resource:
            """Open a NIC's other end."""

        def open_export(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
            """Connect to a disk of another process, that of device `id`."""

        def open_uplink(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
            """Connect to a switch of another process, for NIC `id`."""

        def attach(self, device: Device) -> Steps[None]:
            """Give the slot the backend; the guest is told. The backend stays ours to close."""

        def detach(self, device: Device) -> Steps[None]:
            """Take the backend away: when this returns nothing uses it, and the guest is told."""

        def resize(self, device: Device, size: int) -> None:
            """Give a disk and its image another size, in bytes; the guest is told."""

        def set_link(self, device: Device, *, up: bool) -> None:
            """Pull a NIC's plug, or put it back; the guest is told."""

        def add_fault(self, name: str, fault: Fault) -> int:
            """Let a device commit a fault; return its number among those of the device.

            `name` is a plugged device's id, or its slot in the guest's words (vda, eth0), or the
            name of another virtio device.
            """

        def clear_faults(self, name: str | None, id: int | None) -> None:  # noqa: A002
            """Remove faults: of every device, of one, or one of its."""

        def faults(self, name: str | None) -> Sequence[tuple[str, FaultState]]:
            """Return the faults of every device, or of one, each after the device's name."""

        def break_device(self, name: str) -> None:
            """Let a device need a reset."""
