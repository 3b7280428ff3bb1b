"""A machine without KVM for the QMP server: ids, slots, images and descriptors are real.

Images are opened and locked as for a guest; a tap is any open descriptor, or a name on a list.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvirt.devices.disk import SECTOR, Disk
from pyvirt.devices.virtio.fault import FaultState
from pyvirt.errors import BackendError, QmpError
from pyvirt.qmp import events
from pyvirt.qmp.host import (
    DEVICE,
    ENDED,
    PAUSED,
    RUNNING,
    VCPU,
    VM,
    Chardev,
    Counters,
    GuestStatistics,
    Image,
    MemoryBackend,
    RxFilter,
    Saving,
    VcpuPlace,
)
from pyvirt.qmp.listener import UNIX, ListenerConfig
from pyvirt.qmp.monitor import Monitor
from pyvirt.qmp.server import Server
from pyvirt.qmp.session import Session
from pyvirt.vmm.hotplug import BLOCK, NET, SLOTS, Inventory
from pyvirt.vmm.log import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvirt.devices.virtio.fault import Fault
    from pyvirt.qmp.host import DiskRequest, NicRequest
    from pyvirt.vmm.hotplug import Device, Resource
    from pyvirt.vmm.steps import Steps

TIMEOUT = 30.0  # seconds; nothing here takes long unless it hangs
STATUS = b'{"execute":"query-status"}'
RUNS = {"return": {"running": True, "singlestep": False, "status": "running"}}
GENERIC = "GenericError"


class File:
    """An open image."""

    def __init__(self, request: DiskRequest) -> None:
        self.request = request
        self.disk = Disk(
            request.path, readonly=request.readonly, direct=request.direct, raw=request.raw
        )

    def close(self) -> None:
        self.disk.close()


class Tap:
    """A NIC's other end."""

    def __init__(self, request: NicRequest, taken: set[str]) -> None:
        self.request = request
        self._taken = taken
        if request.ifname:
            if not request.ifname.startswith("tap"):
                raise BackendError(f"ifname {request.ifname}: no such tap; make it first")
            if request.ifname in taken:
                raise BackendError("Tap device already in use")
            taken.add(request.ifname)
        self.fds = [os.dup(fd) for fd in request.fds]

    def close(self) -> None:
        self._taken.discard(self.request.ifname)
        while self.fds:
            os.close(self.fds.pop())


class Export:
    """A connection to a back end."""

    def __init__(self, path: str, connected: list[str]) -> None:
        if not os.path.exists(path):
            raise BackendError(f"{path}: nobody listens")
        self.path = path
        self._connected = connected
        connected.append(path)

    def close(self) -> None:
        self._connected.remove(self.path)


class FakeHost:
    """What `qmp.host.Host` asks for; `slots` is what the guest would see."""

    def __init__(self, name: str = "guest", vcpus: int = 2) -> None:
        self.name = name
        self.uuid = ""
        self.memory = 256 << 20
        self.ballooned: int | None = None  # bytes; None: there is no balloon
        self.polling = 0
        self.inventory = Inventory()
        self.on_demand = False
        self.others: dict[str, tuple[str, dict[str, str]]] = {}
        self.is_bound = False  # a driver of the guest has the others
        self.slots: dict[tuple[str, int], Device] = {}
        self.taps: set[str] = set()
        self.exports: list[str] = []  # paths of the back ends that are connected
        self.calls: list[str] = []
        self.asked: list[tuple[str, FaultState]] = []  # faults
        self.ringbufs = {"log": b""}
        self.quitting = threading.Event()
        self.is_silent = False  # the guest, so that its steps wait
        self.refusal: Exception | None = None  # what attach, detach and save raise
        self.saved = Saving("none")
        self.emit: Callable[[str, dict[str, object]], None] = lambda _name, _data: None
        self.because = ""
        self._state = RUNNING
        self._vcpus = vcpus
        self.places: list[VcpuPlace] = []  # in place of cores of one socket

    def plug_other(self, id: str, driver: str, members: dict[str, str]) -> Steps[None]:  # noqa: A002
        yield from self.steps()
        if not self.on_demand:
            raise QmpError("Unsupported replaceable device type.")
        self.others[id] = (driver, members)

    def steps(self) -> Steps[None]:
        """Let a step wait as long as the guest does."""
        while self.is_silent:
            yield

    def unplug_other(self, id: str) -> Steps[bool | None]:  # noqa: A002
        if id not in self.others:
            return None
        yield from self.steps()
        if self.is_bound:
            return False
        del self.others[id]
        return True

    def state(self) -> str:
        return self._state

    def paused_because(self) -> str:
        return self.because

    def stop(self) -> None:
        if self._state == RUNNING:
            self.calls.append("stop")
            self._state = PAUSED
            self.emit(events.STOP, {})

    def cont(self) -> None:
        if self._state == PAUSED:
            self.calls.append("cont")
            self._state = RUNNING
            self.emit(events.RESUME, {})

    def quit(self) -> None:
        self.calls.append("quit")
        self._state = ENDED
        self.emit(events.SHUTDOWN, {"guest": False, "reason": events.HOST_QUIT})
        self.quitting.set()

    def powerdown(self) -> None:
        self.calls.append("powerdown")
        self.emit(events.POWERDOWN, {})

    def reset(self) -> None:
        self.calls.append("reset")
        self.emit(events.RESET, {"guest": False, "reason": events.HOST_RESET})

    def vcpu_threads(self) -> list[int]:
        return [1000 + vcpu for vcpu in range(self._vcpus)]

    def vcpu_places(self) -> list[VcpuPlace]:
        return self.places or [VcpuPlace(0, None, vcpu, 0) for vcpu in range(self._vcpus)]

    def memory_backends(self) -> list[MemoryBackend]:
        return [
            MemoryBackend(id="m0", size=128 << 20, shared=False, prealloc=True, dumped=False),
            MemoryBackend(id="m1", size=64 << 20, shared=True, prealloc=False, dumped=True,
                          policy="bind", host_nodes=(0, 2)),
        ]  # fmt: skip

    def iothreads(self) -> list[tuple[str, int]]:
        return [("io0", 1100)]

    def chardevs(self) -> list[Chardev]:
        return [Chardev("serial0", "stdio", is_open=True)]

    def read_ringbuf(self, label: str, size: int) -> bytes:
        data, self.ringbufs[label] = self.ringbufs[label][:size], self.ringbufs[label][size:]
        return data

    def write_ringbuf(self, label: str, data: bytes) -> None:
        if label not in self.ringbufs:
            raise QmpError(f"`device` {label}: not a ringbuf, but stdio")
        self.ringbufs[label] += data

    def counters(self) -> list[Counters]:
        vcpus = [Counters(VCPU, f"vcpu{vcpu}", {"exits": 7 + vcpu}) for vcpu in range(self._vcpus)]
        disks = [
            Counters(DEVICE, device.id, {"reads": 3, "bytes_read": 3 * 4096, "writes": 1})
            for device in self.inventory.devices(BLOCK)
        ]
        return [Counters(VM, VM, {"exits": 15}), *vcpus, *disks]

    def rx_filter(self, device: Device) -> RxFilter:
        if device.slot == 0:
            return RxFilter(b"\x52\x54\0\0\0\1", False, False, [], [b"\1\0\x5e\0\0\1"], [7])
        return RxFilter(b"\x52\x54\0\0\0\2", True, True, None, None, None)

    def read_register(self, vcpu: int, name: str) -> int:
        return {"rip": 0xFFFF_FFFF_81C0_13F0, "rax": vcpu}[name]

    def read_memory(self, address: int, length: int) -> bytes:
        if address + length > 1 << 28:
            raise IndexError(address)
        return (0xB900_0001 + address).to_bytes(length, "little")

    def read_registers(self) -> list[dict[str, int]]:
        return [{"rip": 0xFFFF_FFFF_81C0_13F0, "rax": vcpu} for vcpu in range(self._vcpus)]

    def inspect_memory(self, address: int, length: int, vcpu: int | None) -> bytes:
        if address + length > 1 << 28:
            raise IndexError(f"{address:#x} is not there")
        return bytes([0xFF if vcpu is None else vcpu]) * length

    def save_memory(self, path: str, address: int, length: int, vcpu: int | None) -> None:
        Path(path).write_bytes(self.inspect_memory(address, length, vcpu))

    def save_core(self, path: str) -> None:
        Path(path).write_bytes(b"core")

    def inject_nmi(self) -> None:
        self.calls.append("nmi")

    def save(self, path: str, *, incremental: bool = False) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.stop()
        self.calls.append(f"save {path}{' incremental' if incremental else ''}")
        self.saved = Saving("active", "", 4096, self.memory, 0)

    def become_template(self, place: str) -> None:
        self.save(f"to {place}")

    def saving(self) -> Saving:
        return self.saved

    def cancel_save(self) -> None:
        self.calls.append("cancel_save")

    def set_watchdog_action(self, action: str) -> None:
        self.calls.append(f"watchdog {action}")

    def guest_memory(self) -> int:
        if self.ballooned is None:
            raise QmpError("No balloon device has been activated", "DeviceNotActive")
        return self.memory - self.ballooned

    def guest_statistics(self, name: str) -> GuestStatistics | None:
        if self.ballooned is None or name != "balloon0":
            return None
        return GuestStatistics((*range(9), (1 << 64) - 1), 1314567890, self.polling)

    def poll_guest_statistics(self, interval: int) -> None:
        self.polling = interval

    def set_guest_memory(self, size: int) -> None:
        self.guest_memory()
        self.ballooned = max(0, self.memory - size)
        self.emit(events.BALLOON_CHANGED, {"actual": self.guest_memory()})

    def open_disk(self, request: DiskRequest) -> Resource:
        return File(request)

    def image(self, resource: Resource) -> Image:
        if isinstance(resource, Export):
            return Image(resource.path, 512, readonly=False, direct=False)
        assert isinstance(resource, File)
        disk, request = resource.disk, resource.request
        return Image(request.path, disk.sectors * SECTOR, request.readonly, disk.direct)

    def open_nic(self, request: NicRequest) -> Resource:
        return Tap(request, self.taps)

    def open_export(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
        return Export(path, self.exports)

    def open_uplink(self, id: str, chardev: str, path: str) -> Resource:  # noqa: A002
        return Export(path, self.exports)

    def attach(self, device: Device) -> Steps[None]:
        yield from self.steps()
        if self.refusal is not None:
            raise self.refusal
        place = device.backend.kind, device.slot
        assert place not in self.slots
        assert 0 <= device.slot < SLOTS[device.backend.kind]
        self.slots[place] = device

    def detach(self, device: Device) -> Steps[None]:
        yield from self.steps()
        if self.refusal is not None:
            raise self.refusal
        assert self.slots.pop((device.backend.kind, device.slot)) is device

    def resize(self, device: Device, size: int) -> None:
        self.calls.append(f"resize {device.id} {size}")

    def set_link(self, device: Device, *, up: bool) -> None:
        self.calls.append(f"set_link {device.id} {up}")

    def add_fault(self, name: str, fault: Fault) -> int:
        self.asked.append((name, FaultState(len(self.asked) + 1, fault, 0, 0)))
        return len(self.asked)

    def clear_faults(self, name: str | None, id: int | None) -> None:  # noqa: A002
        self.calls.append(f"clear {name} {id}")

    def faults(self, name: str | None) -> list[tuple[str, FaultState]]:
        return [(of, state) for of, state in self.asked if name in {None, of}]

    def break_device(self, name: str) -> None:
        self.calls.append(f"break {name}")

    def plugged(self) -> dict[str, dict[int, str]]:
        """Return the ids by slot, as a guest would list them."""
        found: dict[str, dict[int, str]] = {BLOCK: {}, NET: {}}
        for (kind, slot), device in self.slots.items():
            found[kind][slot] = device.id
        return found


def state(host: FakeHost) -> object:
    """Return everything that a refused command must leave alone."""
    inventory = host.inventory
    return (
        sorted(
            (b.id, b.kind, b.device.id if b.device else "")
            for k in SLOTS
            for b in inventory.backends(k)
        ),
        sorted((d.id, d.slot, d.backend.id) for k in SLOTS for d in inventory.devices(k)),
        host.plugged(),
        sorted(host.taps),
        host.state(),
        len(os.listdir("/proc/self/fd")),
    )


class Bench:
    """A monitor without sockets: requests go in as Python objects."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.events: list[tuple[str, dict[str, object]]] = []
        self.host.emit = lambda name, data: self.events.append((name, data))
        self.monitor = Monitor(self.host, self.host.emit, Log())
        self.session = Session(self.monitor, throttled=False)

    def ask(self, execute: str, **arguments: Any) -> Any:
        """Return the whole answer; `_` in names stands for `-`."""
        request: dict[str, Any] = {"execute": execute}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): v for name, v in arguments.items()}
        return self.monitor.execute(self.session, request).message

    def do(self, execute: str, **arguments: Any) -> Any:
        """Return what a command returns that is not refused."""
        answer = self.ask(execute, **arguments)
        assert list(answer) == ["return"], answer
        return answer["return"]

    def refused(self, execute: str, **arguments: Any) -> tuple[str, str]:
        """Return class and text with which a command is refused."""
        answer = self.ask(execute, **arguments)
        assert list(answer) == ["error"], answer
        return answer["error"]["class"], answer["error"]["desc"]

    def state(self) -> object:
        """Return everything that a refused command must leave alone, events included."""
        return state(self.host), list(self.events)

    def close(self) -> None:
        self.session.close()
        self.host.inventory.close()


def file(path: str) -> dict[str, str]:
    """Return a `file` of blockdev-add."""
    return {"driver": "file", "filename": path}


def add_disk(bench: Bench, image: str, name: str = "drive-0", **more: Any) -> None:
    """Add a backend that nothing uses yet."""
    bench.do("blockdev-add", **{"node_name": name, "file": file(image)} | more)


class Client:
    """A client on a socket that reads and writes as tests say."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(TIMEOUT)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """Return the next line with its end, b"" when the server has closed."""
        while b"\n" not in self._buffer:
            data = self.socket.recv(65536)
            if not data:
                assert not self._buffer
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def message(self) -> Any:
        """Return the next message."""
        line = self.line()
        assert line.endswith(b"\r\n"), line
        return json.loads(line)

    def messages(self) -> list[Any]:
        """Return all messages until the server closes."""
        found = []
        while line := self.line():
            assert line.endswith(b"\r\n"), line
            found.append(json.loads(line))
        return found

    def ask(self, execute: str, **members: Any) -> Any:
        """Send one request and return the next message."""
        self.send(json.dumps({"execute": execute, **members}).encode())
        return self.message()

    def close(self) -> None:
        self.socket.close()


class Running:
    """A server on a socket in a folder, and its machine."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = str(folder / "qmp.sock")
        self.host = FakeHost()
        config = ListenerConfig("-qmp", UNIX, path=self.path, **settings)
        self.server = Server(self.host, [config], Log())
        self.host.emit = self.server.emit
        self.server.start()
        self._clients: list[Client] = []

    def connect(self) -> Client:
        """Return a client that has not read the greeting yet."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connected.settimeout(TIMEOUT)
        connected.connect(self.path)
        client = Client(connected)
        self._clients.append(client)
        return client

    def greeted(self) -> Client:
        """Return a client that has been greeted and has said hello."""
        client = self.connect()
        assert "QMP" in client.message()
        assert client.ask("qmp_capabilities") == {"return": {}}
        return client

    def close(self) -> None:
        self.server.close()
        for client in self._clients:
            client.close()
        self.host.inventory.close()


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[Running]:
    """Run a server for a test; `settings` are those of its listener."""
    server = Running(folder, **settings)
    try:
        yield server
    finally:
        server.close()


def names(messages: list[Any]) -> list[str]:
    """Return the events' names, and of the others their first member's."""
    return [message.get("event", next(iter(message))) for message in messages]


def eventually(check: Any) -> None:
    """Wait until `check` holds."""
    deadline = time.monotonic() + TIMEOUT
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def buffered(server: Running) -> int:
    """Return the bytes that the server holds for the client that reads least."""
    return max(client._size for client in server.server._clients)


def emit_to(server: Running, client: Client, count: int) -> None:
    """Emit events of a kind that is not limited, as fast as the client reads them."""
    for _ in range(count):
        server.server.emit("POWERDOWN", {})
    assert names([client.message() for _ in range(count)]) == ["POWERDOWN"] * count
