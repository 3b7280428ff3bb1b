"""The guest's first serial port: a 16550A in C and what is at its other end on the host.

Python opens the descriptors and is gone from the path: registers, bytes, clients and the
terminal's escape keys are served by native/console/uart.c and native/console/console.c.
"""

from __future__ import annotations

import os

from ..native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from ..state import Fields
    from .chardev import Chardev, ChardevConfig

    class PortBus(Protocol):
        """Where the registers are entered."""

        def add_ports(self, base: int, size: int, read: str, write: str, opaque: Any) -> None:
            """Let two functions of the C side serve `size` ports."""


_PORTS = 8
# What brings the port to its first state, by register: 115200 baud (the divisor is 1, behind DLAB),
# 8 bits, no interrupts, FIFOs that are empty and off, no modem line.
_RESET = ((3, 0x83), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (2, 0), (4, 0))

# Of struct pv_uart_state: numbers, flags, and what the FIFO has for each byte.
_NUMBERS = {
    **dict.fromkeys(("ier", "fcr", "lcr", "mcr", "scr", "errors", "deltas"), 0xFF),
    "polls": 0xFFFF_FFFF,
}
_FLAGS = ("thri", "timeout", "line")
_FIFO = ("bytes", "byte_errors", "of_host")


class Serial:
    """A serial port; owns its C objects and what it has opened until `close`.

    Used by one thread at a time, the guest's accesses apart. `chardev` is what is at its other end.
    """

    __slots__ = ("_console", "_irq_fd", "_is_started", "_uart", "chardev")

    def __init__(self, config: ChardevConfig, *, irq_fd: int) -> None:
        """Open what is at the other end; ConfigError, and nothing is left behind.

        `irq_fd` is an eventfd that is written at each rising edge of the interrupt line, -1 for
        none; the port has its own copy.
        """
        self.chardev: Chardev = config.open()
        self._is_started = False
        # The console's thread may raise an interrupt until the very end.
        self._irq_fd = os.dup(irq_fd) if irq_fd >= 0 else -1
        console = ffi.new("struct pv_console **")
        check(lib.pv_console_new(console), "-serial")
        self._console: Any = ffi.gc(console[0], lib.pv_console_free)
        uart = ffi.new("struct pv_uart **")
        check(lib.pv_uart_new(self._irq_fd, self._console, uart), "-serial")

        def free(handle: Any, _outlives: Any = self._console) -> None:
            lib.pv_uart_free(handle)

        self._uart: Any = ffi.gc(uart[0], free)

    @property
    def handle(self) -> Any:
        """Return the struct pv_uart, valid until `close`."""
        return self._uart

    def attach(self, bus: PortBus, base: int) -> None:
        """Put the registers at port `base`, eight of them."""
        bus.add_ports(base, _PORTS, "pv_uart_read", "pv_uart_write", self._uart)

    def start(self) -> None:
        """Begin to move bytes, on a thread in C; BackendError. Not before a fork."""
        chardev = self.chardev
        config = ffi.new(
            "struct pv_console_config *",
            {
                "in_fd": chardev.in_fd,
                "out_fd": chardev.out_fd,
                "listen_fd": chardev.listen_fd,
                "quit_fd": chardev.config.quit_fd,
                "flags": lib.PV_CONSOLE_ESCAPE if chardev.config.is_terminal else 0,
                "ringbuf": chardev.ringbuf or ffi.NULL,
            },
        )
        check(lib.pv_console_start(self._console, config), "-serial")
        self._is_started = True

    def save(self) -> dict[str, object]:
        """Return registers, the FIFO, and the bytes that wait on their way in and out.

        No vCPU runs; it need not be drained.
        """
        state = ffi.new("struct pv_uart_state *")
        lib.pv_uart_save(self._uart, state)
        data = ffi.new("uint8_t[]", lib.PV_CONSOLE_RING)
        output = bytes(ffi.buffer(data, lib.pv_console_save_output(self._console, data)))
        waiting = bytes(ffi.buffer(data, lib.pv_console_save_input(self._console, data)))
        return {
            **{name: getattr(state, name) for name in _NUMBERS},
            **{name: bool(getattr(state, name)) for name in _FLAGS},
            **{name: bytes(getattr(state, name))[: state.count].hex() for name in _FIFO},
            "divisor": bytes(state.divisor).hex(),
            "input": waiting.hex(),
            "output": output.hex(),
        }

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned, as yet unused; StateError. `resume` is to follow."""
        state = ffi.new("struct pv_uart_state *")
        for name, high in _NUMBERS.items():
            setattr(state, name, fields.integer(name, 0, high))
        for name in _FLAGS:
            setattr(state, name, fields.flag(name))
        state.divisor = fields.data("divisor", 2)
        state.count = len(fields.data("bytes", most=lib.PV_UART_FIFO))
        for name in _FIFO:
            ffi.buffer(getattr(state, name))[: state.count] = fields.data(name, state.count)
        output = fields.data("output", most=lib.PV_CONSOLE_RING)
        waiting = fields.data("input", most=lib.PV_CONSOLE_RING)
        self._let_wait(output, waiting)
        if lib.pv_uart_restore(self._uart, state) < 0:
            raise fields.wrong("bytes", "is no FIFO of this port and its input")

    def _let_wait(self, output: bytes, waiting: bytes) -> None:
        """Put bytes into the console, whose thread stands meanwhile."""
        if self._is_started:
            lib.pv_console_stop(self._console)
        words = (output, len(output), waiting, len(waiting))
        check(lib.pv_console_restore(self._console, *words), "-serial")
        if self._is_started:
            self.start()

    def resume(self) -> None:
        """Raise the interrupt again that the guest may not have seen."""
        lib.pv_uart_resume(self._uart)

    def reset(self) -> None:
        """Let the registers be as at power-on; what the guest has written still goes out."""
        for offset, value in _RESET:
            lib.pv_uart_write(self._uart, offset, value)

    def flush(self, timeout_ms: int) -> bool:
        """Wait until the guest's output is written; False: not all of it in that time."""
        return int(lib.pv_console_flush(self._console, timeout_ms)) == 0

    def first_output_ns(self) -> int:
        """Return CLOCK_MONOTONIC at the guest's first byte, 0 before it; any thread."""
        return int(lib.pv_console_first_output_ns(self._console))

    def is_taken(self) -> bool:
        """Return whether somebody has the other end open; any thread."""
        return bool(lib.pv_console_is_taken(self._console))

    def stats(self) -> Any:
        """Return a struct pv_console_stats (console/console.h) of this moment; any thread."""
        stats = ffi.new("struct pv_console_stats *")
        lib.pv_console_stats(self._console, stats)
        return stats

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and give everything back; output not flushed is lost. No vCPU may run any more."""
        if self._uart is None:
            return
        lib.pv_console_stop(self._console)
        ffi.release(self._uart)
        ffi.release(self._console)
        self._uart = self._console = None
        self.chardev.close()
        if self._irq_fd >= 0:
            os.close(self._irq_fd)
