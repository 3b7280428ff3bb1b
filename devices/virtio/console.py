"""The virtio console device (virtio 1.2, 5.3): named ports; native/port/port.h does the work.

The guest finds each port by its number or name (/dev/vport0p1, /sys/class/virtio-ports); a
process there and one on the host talk through it. None of them is a console in Linux's sense.
"""

from __future__ import annotations

import struct

from ...errors import BackendError
from ...native import check, ffi, lib
from .device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..chardev import Chardev, ChardevConfig
    from .device import Activation, Queue

DEVICE_TYPE = 3
PORTS_MAX = 31
NAME_BYTES = 255
QUEUE_SIZE = 128
CONTROL_QUEUE_SIZE = 32

MULTIPORT = 1 << 1
# struct virtio_console_config, 5.3.4: cols, rows, max_nr_ports, emerg_wr.
_CONFIG = struct.Struct("<HHII")


class PortConfig:
    """One port, as it was asked for."""

    __slots__ = ("chardev", "name", "number")

    def __init__(self, number: int, chardev: ChardevConfig, name: str = "") -> None:
        """Take them over: `number` is 1 to 30, for 0 is a console's; `name` has up to 255 bytes."""
        self.number = number
        self.chardev = chardev
        self.name = name


class ConsoleConfig:
    """One device with its ports, as it was asked for."""

    __slots__ = ("id", "ports", "ports_max")

    def __init__(self, id: str, ports: tuple[PortConfig, ...], ports_max: int) -> None:  # noqa: A002  (the field's word)
        """`ports_max` is 1 to 31, and more than the number of every port; no two are the same."""
        self.id = id
        self.ports = ports
        self.ports_max = ports_max

    def make(self) -> Console:
        """Return the device; ConfigError."""
        return Console(self)


class Console(Device):
    """The ports of a guest; owns their sockets and the C side. `stats` is for any thread."""

    __slots__ = ("_chardevs", "_handle", "_ports_max")

    def __init__(self, config: ConsoleConfig) -> None:
        """Open the sockets; ConfigError, and none stays open."""
        super().__init__(
            f"virtio-serial {config.id}",
            device_type=DEVICE_TYPE,
            features=MULTIPORT,
            queue_sizes=(
                *(QUEUE_SIZE, QUEUE_SIZE),
                *(CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE),
                *(QUEUE_SIZE, QUEUE_SIZE) * (config.ports_max - 1),
            ),
        )
        self._ports_max = config.ports_max
        self._chardevs: list[Chardev] = []
        try:
            for port in config.ports:
                self._chardevs.append(port.chardev.open())
            self._handle = self._make(config)
        except BaseException:
            self._close_chardevs()
            raise

    def _make(self, config: ConsoleConfig) -> Any:
        names = [
            ffi.new("char[]", port.name.encode(errors="surrogateescape")) for port in config.ports
        ]
        ports = [
            (port.number, chardev.in_fd, chardev.listen_fd, name)
            for port, chardev, name in zip(config.ports, self._chardevs, names, strict=True)
        ]
        handle = ffi.new("struct pv_ports **")
        configs = ffi.new("struct pv_port_config[]", ports)
        check(lib.pv_ports_new(configs, len(ports), handle), self.name)
        return ffi.gc(handle[0], lib.pv_ports_free)

    def config(self) -> bytes:
        """Return struct virtio_console_config."""
        return _CONFIG.pack(0, 0, self._ports_max, 0)

    def activate(self, activation: Activation) -> None:
        """Start the thread, for the queues that are ready."""
        queues = [_queue(queue) for queue in activation.queues]
        # Input and output of port 0, the two of control messages, then those of the other ports.
        pairs = [(queues[index], queues[index + 1]) for index in range(0, len(queues), 2)]
        control = pairs.pop(1)
        if not activation.features & MULTIPORT:
            pairs, control = pairs[:1], (_queue(None), _queue(None))
        words = {
            "pairs": ffi.new("struct pv_port_pair[]", pairs),
            "count": len(pairs),
            "control": control,
            "irq": activation.irq,
        }
        result = lib.pv_ports_start(self._handle, ffi.new("struct pv_ports_activation *", words))
        check(result, f"{self.name}: cannot start")

    def reset(self, limit: float) -> None:
        """End the thread; the sockets stay as they are."""
        if lib.pv_ports_stop(self._handle, int(limit * 1e9)) < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def stats(self) -> Any:
        """Return a struct pv_ports_stats (native/port/port.h) of this moment."""
        stats = ffi.new("struct pv_ports_stats *")
        lib.pv_ports_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close the sockets."""
        ffi.release(self._handle)
        self._close_chardevs()

    def _close_chardevs(self) -> None:
        while self._chardevs:
            self._chardevs.pop().close()


def _queue(queue: Queue | None) -> tuple[Any, int]:
    return (queue.handle, queue.kick_fd) if queue else (ffi.NULL, -1)
