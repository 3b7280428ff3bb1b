"""The virtio console device (virtio 1.2, 5.3): consoles and named ports.

native/port/port.h does the work. The guest finds a console as /dev/hvc0 and on, and each other port
by its number or name (/dev/vport0p1, /sys/class/virtio-ports); a process there and one on the host
talk through it.
"""

from __future__ import annotations

import struct

from ...errors import BackendError
from ...native import check, ffi, lib
from .device import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ...state import Fields
    from ..chardev import Chardev, ChardevConfig
    from .device import Activation, Queue

DEVICE_TYPE = 3
PORTS_MAX = 31
NAME_BYTES = 255
QUEUE_SIZE = 128
CONTROL_QUEUE_SIZE = 32

SIZE, MULTIPORT = 1 << 0, 1 << 1
# struct virtio_console_config, 5.3.4: cols, rows, max_nr_ports, emerg_wr.
_CONFIG = struct.Struct("<HHII")
# Of struct pv_port_state.
_PORT_FLAGS = ("open", "ready", "there")
_PORT_NUMBERS = {
    "columns": 0xFFFF,
    "rows": 0xFFFF,
    "owed": lib.PV_PORT_OWED - 1,
    "taken": (1 << 64) - 1,
}


class PortConfig:
    """One port, as it was asked for."""

    __slots__ = ("chardev", "is_console", "name", "number")

    def __init__(
        self, number: int, chardev: ChardevConfig, name: str = "", *, is_console: bool = False
    ) -> None:
        """Take them over: `number` is 1 to 30, or 0 of a console; `name` has up to 255 bytes."""
        self.number = number
        self.chardev = chardev
        self.name = name
        self.is_console = is_console


class ConsoleConfig:
    """One device with its ports, as it was asked for."""

    __slots__ = ("id", "ports", "ports_max")

    def __init__(self, id: str, ports: tuple[PortConfig, ...], ports_max: int) -> None:  # noqa: A002  (the field's word)
        """`ports_max` is 1 to 31, and more than the number of every port; no two are the same.

        1 stands for a console alone, number 0: its driver is offered no more, and finds its size
        in the configuration space, where drivers agree on what it looks like. (That of a control
        message has its members in another order for some of Linux's.)
        """
        self.id = id
        self.ports = ports
        self.ports_max = ports_max

    def make(self) -> Console:
        """Return the device; ConfigError."""
        return Console(self)


class Console(Device):
    """The ports of a guest; owns their chardevs and the C side. `stats` is for any thread."""

    __slots__ = ("_activation", "_chardevs", "_handle", "_numbers", "_ports_max", "_shown")

    def __init__(self, config: ConsoleConfig) -> None:
        """Open the chardevs; ConfigError, and none stays open."""
        is_single = config.ports_max == 1
        features = 0 if is_single else MULTIPORT
        if any(port.is_console for port in config.ports):
            features |= SIZE
        sizes: tuple[int, ...] = (QUEUE_SIZE, QUEUE_SIZE)
        if not is_single:
            others = sizes * (config.ports_max - 1)
            sizes = (*sizes, CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE, *others)
        super().__init__(
            f"virtio-serial {config.id}",
            device_type=DEVICE_TYPE,
            features=features,
            queue_sizes=sizes,
        )
        self._ports_max = config.ports_max
        self._numbers = [port.number for port in config.ports]
        self._activation: Activation | None = None
        self._chardevs: list[Chardev] = []
        try:
            for port in config.ports:
                self._chardevs.append(port.chardev.open())
            self._handle = self._make(config)
            self._shown = self.config()
        except BaseException:
            self._close_chardevs()
            raise

    def _make(self, config: ConsoleConfig) -> Any:
        names = [
            ffi.new("char[]", port.name.encode(errors="surrogateescape")) for port in config.ports
        ]
        ports = [
            {
                "number": port.number,
                "in_fd": chardev.in_fd,
                "out_fd": chardev.out_fd,
                "listen_fd": chardev.listen_fd,
                "quit_fd": chardev.config.quit_fd,
                "flags": _flags(port),
                "ringbuf": chardev.ringbuf or ffi.NULL,
                "name": name,
            }
            for port, chardev, name in zip(config.ports, self._chardevs, names, strict=True)
        ]
        handle = ffi.new("struct pv_ports **")
        configs = ffi.new("struct pv_port_config[]", ports)
        check(lib.pv_ports_new(configs, len(ports), handle), self.name)
        return ffi.gc(handle[0], lib.pv_ports_free)

    def config(self) -> bytes:
        """Return struct virtio_console_config."""
        columns, rows = ffi.new("uint16_t *"), ffi.new("uint16_t *")
        lib.pv_ports_size(self._handle, columns, rows)
        return _CONFIG.pack(columns[0], rows[0], self._ports_max, 0)

    def news(self) -> str:
        """Show the driver the size of the console's terminal, if that is new."""
        if self._shown != (shown := self.config()):
            self._shown = shown
            self.config_changed()
        return ""

    def chardevs(self) -> tuple[tuple[Chardev, bool, bool], ...]:
        """Return those of the ports."""
        states = [lib.pv_ports_open(self._handle, number) for number in self._numbers]
        return tuple(
            (chardev, bool(state & lib.PV_PORT_GUEST), bool(state & lib.PV_PORT_HOST_END))
            for chardev, state in zip(self._chardevs, states, strict=True)
        )

    def terminal_resized(self) -> None:
        """Let the thread see."""
        lib.pv_ports_look(self._handle)

    def activate(self, activation: Activation) -> None:
        """Start the thread, for the queues that are ready."""
        self._start(activation)
        self._activation = activation
        if self._is_single(activation):
            # Linux's driver looks at the size when it is told that there is something new.
            self.config_changed()

    def _is_single(self, activation: Activation) -> bool:
        return self._ports_max == 1 or not activation.features & MULTIPORT

    def _start(self, activation: Activation) -> None:
        queues = [_queue(queue) for queue in activation.queues]
        # Input and output of port 0, the two of control messages, then those of the other ports.
        pairs = [(queues[index], queues[index + 1]) for index in range(0, len(queues), 2)]
        control = pairs.pop(1) if self._ports_max > 1 else None
        if control is None or self._is_single(activation):
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
        """End the thread; the chardevs stay as they are."""
        self._check(lib.pv_ports_stop(self._handle, int(limit * 1e9)), limit)
        self._activation = None

    def _check(self, result: int, limit: float) -> None:
        if result < 0:
            raise BackendError(f"{self.name}: its thread has not ended within {limit:g} s")

    def drain(self, limit: float) -> None:
        """End the thread; buffers that no host's end took are in their queues."""
        self._check(lib.pv_ports_drain(self._handle, int(limit * 1e9)), limit)

    def resume(self) -> None:
        """Start another."""
        if self._activation is not None:
            self._start(self._activation)

    def save(self) -> dict[str, object]:
        """Return what each port is to the driver; `there` and the size, as it was told."""
        return {"ports": {str(number): self._save_port(number) for number in self._numbers}}

    def _save_port(self, number: int) -> dict[str, object]:
        state = ffi.new("struct pv_port_state *")
        lib.pv_ports_save(self._handle, number, state)
        flags = {name: bool(getattr(state, name)) for name in _PORT_FLAGS}
        return flags | {name: getattr(state, name) for name in _PORT_NUMBERS}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; the driver is told what is at the host's ends now."""
        ports = fields.section("ports")
        for number in self._numbers:
            state = ffi.new("struct pv_port_state *")
            port = ports.section(str(number))
            for name in _PORT_FLAGS:
                setattr(state, name, port.flag(name))
            for name, high in _PORT_NUMBERS.items():
                setattr(state, name, port.integer(name, 0, high))
            check(lib.pv_ports_restore(self._handle, number, state), self.name)

    def stats(self) -> Any:
        """Return a struct pv_ports_stats (native/port/port.h) of this moment."""
        stats = ffi.new("struct pv_ports_stats *")
        lib.pv_ports_stats(self._handle, stats)
        return stats

    def close(self) -> None:
        """Close the chardevs."""
        ffi.release(self._handle)
        self._close_chardevs()

    def _close_chardevs(self) -> None:
        while self._chardevs:
            self._chardevs.pop().close()


def _flags(port: PortConfig) -> int:
    flags: int = lib.PV_PORT_CONSOLE if port.is_console else 0
    if port.chardev.is_terminal:
        flags |= lib.PV_PORT_ESCAPE
    return flags


def _queue(queue: Queue | None) -> tuple[Any, int]:
    return (queue.handle, queue.kick_fd) if queue else (ffi.NULL, -1)
