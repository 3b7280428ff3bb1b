"""A network device behind its transport, with an honest driver and, for a tap, sockets."""

from __future__ import annotations

import select
import socket
import time
from types import TracebackType
from typing import Any

from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.net import Net, NetConfig

from .bench import RING_STEP, RINGS, Bench
from .mock_driver import Driver, Layout, Ram

HEADER = 12
SIZE = 64
DATA = 0x100_0000
BUFFERS = 0x200_0000
COMMANDS = 0xF0_0000
RAM = 0x400_0000
SECONDS = 10


def _buffer(pair: int, head: int) -> int:
    return BUFFERS + (pair * SIZE + head) * 0x1_0000


def frame(to: bytes, length: int) -> bytes:
    """Return an Ethernet frame of an experimental type."""
    start = to + bytes.fromhex("020000000002 88b5")
    return start + bytes(i & 0xFF for i in range(length - len(start)))


class SocketBackend:
    """In the place of a tap: sockets that keep packets apart; `peers` are the host's ends."""

    kind = "tap"

    def __init__(self, *, offloads: int = 0, pairs: int = 1) -> None:
        self.offloads = offloads
        self.vhost_fds: tuple[int, ...] = ()
        self.closed = 0
        ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(pairs)]
        self.peers = [host for host, _ in ends]
        self._own = [own for _, own in ends]
        for peer in self.peers:
            peer.settimeout(SECONDS)

    @property
    def fds(self) -> tuple[int, ...]:
        return tuple(own.fileno() for own in self._own)

    def close(self) -> None:
        self.closed += 1

    def __enter__(self) -> SocketBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in (*self.peers, *self._own):
            end.close()


class NicBench(Bench):
    """A driver that has the first 64 entries of every queue."""

    def __init__(self, config: NetConfig, backend: Any) -> None:
        self.nic = Net(config, backend)
        self.ram = Ram([(0, RAM)])
        super().__init__(self.ram, self.nic)  # type: ignore[arg-type]
        self.backend: Any = backend
        self.drivers: list[Driver] = []
        self._pending: list[tuple[int, int]] = []

    def start(self, features: int = 0) -> None:
        """Go from reset to DRIVER_OK with every queue."""
        self.drivers.clear()
        self._pending.clear()
        for index in range(len(self.nic.queue_sizes)):
            base = RINGS + index * RING_STEP
            self.ram.view(base, RING_STEP)[:] = bytes(RING_STEP)
            layout = Layout(base, base + 0x4000, base + 0x8000, SIZE)
            self.drivers.append(Driver(self.ram, layout))
        self.negotiate(features | r.VERSION_1)
        for index in range(len(self.drivers)):
            self.set_queue(index, SIZE)
        assert self.set_status(r.DRIVER_OK) & (r.DRIVER_OK | r.NEEDS_RESET) == r.DRIVER_OK

    def kick(self, index: int) -> None:
        """Notify a queue."""
        self.set(r.QUEUE_NOTIFY, index)

    def wait_used(self, index: int) -> list[tuple[int, int]]:
        """Return what was used of a queue; wait for something."""
        deadline = time.monotonic() + SECONDS
        while not (done := self.drivers[index].collect()):
            assert time.monotonic() < deadline
            select.select([self.irq_fd], [], [], 0.01)
        return done

    def send(self, data: bytes, header: bytes = bytes(HEADER), pair: int = 0) -> None:
        """Send a packet and wait until it is taken."""
        self.ram.view(DATA, HEADER + len(data))[:] = header + data
        index = 2 * pair + 1
        self.drivers[index].add([(DATA, HEADER), (DATA + HEADER, len(data))])
        self.drivers[index].publish()
        self.kick(index)
        assert len(self.wait_used(index)) == 1

    def offer_buffers(self, count: int, length: int = 2048, pair: int = 0) -> None:
        """Offer receive buffers, of 64 KiB at most."""
        driver = self.drivers[2 * pair]
        for _ in range(count):
            driver.add((), [(_buffer(pair, driver.free[-1]), length)])
        driver.publish()
        self.kick(2 * pair)

    def receive(self, pair: int = 0) -> tuple[bytes, bytes]:
        """Return header and frame of the next packet of a pair, in however many buffers."""
        parts: list[bytes] = []
        while not parts or len(parts) < int.from_bytes(parts[0][10:12], "little"):
            if not self._pending:
                self._pending = self.wait_used(2 * pair)
            head, length = self._pending.pop(0)
            parts.append(bytes(self.ram.view(_buffer(pair, head), length)))
        data = b"".join(parts)
        return data[:HEADER], data[HEADER:]

    def command(self, index: int, group: int, number: int, data: bytes) -> int:
        """Return the answer to a command on the control queue, which has this index."""
        self.ram.view(COMMANDS, 2 + len(data))[:] = bytes([group, number]) + data
        self.ram.view(COMMANDS + 0x1000, 1)[:] = b"\xff"
        self.drivers[index].add(
            [(COMMANDS, 2), (COMMANDS + 2, len(data))], [(COMMANDS + 0x1000, 1)]
        )
        self.drivers[index].publish()
        self.kick(index)
        assert len(self.wait_used(index)) == 1
        return self.ram.view(COMMANDS + 0x1000, 1)[0]

    def config(self, offset: int, length: int) -> bytes:
        """Read bytes of the configuration space."""
        return bytes(self.get(r.CONFIG + offset + i, 1) for i in range(length))

    def close(self) -> None:
        """Close the transport, then the device; the backend counts that, and stays."""
        super().close()
        self.nic.close()
