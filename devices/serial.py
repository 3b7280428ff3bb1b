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

    from .chardev import Chardev, ChardevConfig

    class PortBus(Protocol):
        """Where the registers are entered."""

        def add_ports(self, base: int, size: int, read: str, write: str, opaque: Any) -> None:
            """Let two functions of the C side serve `size` ports."""


_PORTS = 8
# What brings the port to its first state, by register: 115200 baud (the divisor is 1, behind DLAB),
# 8 bits, no interrupts, FIFOs that are empty and off, no modem line.
_RESET = ((3, 0x83), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (2, 0), (4, 0))


class Serial:
    """A serial port; owns its C objects and what it has opened until `close`.

    Used by one thread at a time, the guest's accesses apart. `chardev` is what is at its other end.
    """

    __slots__ = ("_console", "_irq_fd", "_uart", "chardev")

    def __init__(self, config: ChardevConfig, *, irq_fd: int) -> None:
        """Open what is at the other end; ConfigError, and nothing is left behind.

        `irq_fd` is an eventfd that is written at each rising edge of the interrupt line, -1 for
        none; the port has its own copy.
        """
        self.chardev: Chardev = config.open()
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
