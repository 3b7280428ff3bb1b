"""A virtio console device behind its transport, with a driver and the host's ends of its ports."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.console import MULTIPORT, Console, ConsoleConfig, PortConfig

from .bench import RING_STEP, RINGS
from .mock_driver import Driver, Layout, Ram
from .queue_bench import DriverBench

SIZE = 32
SECONDS = 10
RAM = 0x400_0000
MESSAGES = 0xE0_0000  # where the driver's control messages are
DATA = 0x100_0000  # what it sends
BUFFERS = 0x200_0000  # its receive buffers, 64 KiB apart

CONTROL_IN, CONTROL_OUT = 2, 3
DEVICE_READY, PORT_ADD, PORT_READY, PORT_OPEN, PORT_NAME = 0, 1, 3, 6, 7
CONSOLE_PORT, RESIZE = 4, 5
_MESSAGE = struct.Struct("<IHH")

Message = tuple[int, int, int, bytes]
"""Port, event, value, and what follows."""


def queues(port: int) -> tuple[int, int]:
    """Return the indexes of a port's input and output."""
    first = 2 * port + 2 if port else 0
    return first, first + 1


IN, OUT = queues(1)
PIECES, LENGTH = 30, 60_000  # more than a socket takes


class PortBench(DriverBench):
    """A driver that keeps the rules unless told otherwise, and kicks when it is asked to.

    `host` has our end of each port on a connected socket; a port with a path has none, and those
    of `more` have none here.
    """

    def __init__(
        self,
        *names: str,
        paths: dict[str, str] | None = None,
        ports_max: int = 0,
        more: tuple[PortConfig, ...] = (),
    ) -> None:
        self.host: dict[int, socket.socket] = {}
        ports = list(more)
        for number, name in enumerate(names, 1):
            if paths and name in paths:
                chardev = ChardevConfig(name, path=paths[name])
            else:
                ours, theirs = socket.socketpair()
                ours.settimeout(SECONDS)
                self.host[number] = ours
                chardev = ChardevConfig(name, fd=theirs.detach())
            ports.append(PortConfig(number, chardev, name))
        most = max((port.number for port in ports), default=0) + 1
        config = ConsoleConfig("serial0", tuple(ports), ports_max or most)
        super().__init__(Console(config), Ram([(0, RAM)]))
        self._heard: list[Message] = []
        self._spans: dict[tuple[int, int], tuple[int, int]] = {}

    def start(self, features: int = MULTIPORT, *, event_idx: bool = True, buffers: int = 8) -> None:
        """Go from reset to DRIVER_OK, with `buffers` for control messages."""
        self.drivers.clear()
        self._heard.clear()
        self._spans.clear()
        self.negotiate(features | r.VERSION_1 | (r.EVENT_IDX if event_idx else 0))
        for index in range(len(self.device.queue_sizes)):
            base = RINGS + index * RING_STEP
            self.ram.view(base, RING_STEP)[:] = bytes(RING_STEP)
            layout = Layout(base, base + 0x4000, base + 0x8000, SIZE, event_idx)
            self.drivers[index] = Driver(self.ram, layout)
            self.set_queue(index, SIZE)
        assert self.set_status(r.DRIVER_OK) & (r.DRIVER_OK | r.NEEDS_RESET) == r.DRIVER_OK
        if self.device.features & MULTIPORT:
            self.offer(CONTROL_IN, buffers, 512)

    def introduce(self, *numbers: int) -> None:
        """Greet the device, and open its ports `numbers`, of which messages are consumed."""
        self.tell(0xFFFFFFFF, DEVICE_READY, 1)
        for number in sorted(self.host.keys() | set(numbers)):
            assert self.hear() == (number, PORT_ADD, 1, b"")
        for number in sorted(self.host.keys() | set(numbers)):
            self.tell(number, PORT_READY, 1)
            assert self.hear()[:3] == (number, PORT_NAME, 1)
            if number in self.host:
                assert self.hear() == (number, PORT_OPEN, 1, b"")
        for number in numbers:
            self.tell(number, PORT_OPEN, 1)

    def offer(self, index: int, count: int, length: int) -> None:
        """Offer `count` receive buffers of up to 64 KiB."""
        for _ in range(count):
            driver = self.drivers[index]
            address = BUFFERS + ((index * SIZE + driver.position) % 0x200) * 0x1_0000
            self._spans[index, driver.add(writable=[(address, length)])] = address, length
        self.publish(index)

    def add(self, index: int, data: bytes, address: int = DATA) -> None:
        """Offer `data` to be sent."""
        self.ram.view(address, len(data))[:] = data
        self.drivers[index].add([(address, len(data))])
        self.publish(index)

    def collect(self, index: int) -> list[bytes]:
        """Return what receive buffers hold that were used; wait for one."""
        pieces = []
        for head, length in self.used(index):
            address, size = self._spans.pop((index, head))
            assert length <= size
            pieces.append(bytes(self.ram.view(address, length)))
        return pieces

    def receive(self, port: int, count: int) -> bytes:
        """Return `count` bytes from a port; offer as many buffers as were used."""
        data = b""
        while len(data) < count:
            pieces = self.collect(queues(port)[0])
            data += b"".join(pieces)
            self.offer(queues(port)[0], len(pieces), 4096)
        assert len(data) == count
        return data

    def tell(self, port: int, event: int, value: int) -> None:
        """Send a control message, as Linux does: wait until it is taken."""
        self.add(CONTROL_OUT, _MESSAGE.pack(port, event, value), MESSAGES)
        assert len(self.used(CONTROL_OUT)) == 1

    def hear(self) -> Message:
        """Return the next control message of the device; its buffer is offered again."""
        if not self._heard:
            pieces = self.collect(CONTROL_IN)
            self.offer(CONTROL_IN, len(pieces), 512)
            self._heard += [(*_MESSAGE.unpack_from(piece), piece[8:]) for piece in pieces]
        return self._heard.pop(0)

    def close(self) -> None:
        """Close everything."""
        super().close()
        for end in self.host.values():
            end.close()


Make = Callable[..., PortBench]


@pytest.fixture
def make() -> Iterator[Make]:
    """Return a maker of devices; all are closed at the end."""
    benches: list[PortBench] = []

    def maker(*names: str, **options: object) -> PortBench:
        benches.append(PortBench(*names, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield maker
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make: Make) -> PortBench:
    """Return a device with one port, open on both sides."""
    bench = make("agent")
    bench.start()
    bench.introduce(1)
    return bench


def read_all(end: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = end.recv(count - len(data))
        assert piece
        data += piece
    return bytes(data)


def noise(count: int) -> bytes:
    """Return `count` bytes in which a piece that is missing or moved shows."""
    return (bytes(range(251)) * (count // 251 + 1))[:count]
