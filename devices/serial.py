"""The guest's first serial port: a 16550A in C and what is at its other end on the host.

Python opens the descriptors and is gone from the path: registers, bytes, clients and the
terminal's escape keys are served by native/console/uart.c and native/console/console.c.
"""

from __future__ import annotations

import errno
import os

from ..errors import ConfigError
from ..native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .unix_socket import UnixListener

    class PortBus(Protocol):
        """Where the registers are entered."""

        def add_ports(self, base: int, size: int, read: str, write: str, opaque: Any) -> None:
            """Let two functions of the C side serve `size` ports."""


STDIO, NONE, PTY, FILE, SOCKET = "stdio", "none", "pty", "file", "socket"
_ACCEPTED = "stdio, none, pty, file,path=FILE[,append=on] or socket,path=PATH,server,nowait"
_SOCKET_PATH_MAX = 107  # bytes: sockaddr_un without its terminator
_PORTS = 8
# What brings the port to its first state, by register: 115200 baud (the divisor is 1, behind DLAB),
# 8 bits, no interrupts, FIFOs that are empty and off, no modem line.
_RESET = ((3, 0x83), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (2, 0), (4, 0))


class Backend:
    """The host's end of a serial port: STDIO, NONE, PTY, FILE or SOCKET, the last two at `path`.

    `append` leaves what is in a FILE already.
    """

    __slots__ = ("append", "kind", "path")

    def __init__(self, kind: str, path: str = "", *, append: bool = False) -> None:
        self.kind = kind
        self.path = path
        self.append = append

    @property
    def socket_path(self) -> str:
        """Return where clients connect, "" when there is no socket."""
        return self.path if self.kind == SOCKET else ""


def parse_backend(text: str) -> Backend:
    """Return what the value of `-serial` stands for; ConfigError. Touches no file.

    `server` and `nowait` are also taken as QEMU's `server=on` and `wait=off`. Two commas stand for
    one within a path.
    """
    kind, *words = [word.replace("\0", ",") for word in text.replace(",,", "\0").split(",")]
    kind = NONE if kind == "null" else kind
    if kind not in {STDIO, NONE, PTY, FILE, SOCKET}:
        raise ConfigError(f"-serial {text}: not a backend; give {_ACCEPTED}")
    path = ""
    flags: set[str] = set()
    for word in words:
        key, _, value = word.partition("=")
        if key == "path" and value and kind in {FILE, SOCKET} and not path:
            path = value
        elif kind == FILE and word in {"append=on", "append=off"} and not flags:
            flags.add(word)
        elif kind == SOCKET and word in {"server", "server=on", "nowait", "wait=off"}:
            flags.add("server" if key == "server" else "nowait")
        else:
            raise ConfigError(
                f"-serial {text}: {word or 'an empty word'} is not understood here; "
                f"give {_ACCEPTED} (a comma within a path is written twice)"
            )
    if kind in {FILE, SOCKET} and not path:
        raise ConfigError(f"-serial {text}: names no file; give path=FILE")
    if kind == SOCKET and len(flags) < 2:
        raise ConfigError(
            f"-serial {text}: pyvirt listens and does not wait for a client; "
            f"give socket,path={path},server,nowait"
        )
    if kind == SOCKET and len(os.fsencode(path)) > _SOCKET_PATH_MAX:
        raise ConfigError(
            f"-serial {text}: a socket's path has at most {_SOCKET_PATH_MAX} bytes; "
            "give a shorter one"
        )
    return Backend(kind, path, append="append=on" in flags)


class _Ends:
    """The descriptors of a backend, -1 for none; owns them all but the standard ones."""

    __slots__ = ("_listener", "_owned", "in_fd", "listen_fd", "out_fd", "pty_path")

    def __init__(self, backend: Backend) -> None:
        self.in_fd = self.out_fd = self.listen_fd = -1
        self.pty_path = ""
        self._owned: list[int] = []
        self._listener: UnixListener | None = None
        try:
            if backend.kind == STDIO:
                self.in_fd, self.out_fd = 0, 1
            elif backend.kind == FILE:
                self._open_file(backend.path, append=backend.append)
            elif backend.kind == PTY:
                self._open_pty()
            elif backend.kind == SOCKET:
                self._listen(backend.path)
        except OSError as error:
            self.close()
            where = f"{backend.kind} {backend.path}".rstrip()
            raise ConfigError(f"-serial {where}: {error.strerror}; {_mend(error)}") from None

    def _open_file(self, path: str, *, append: bool) -> None:
        # Non-blocking, so that a FIFO without a reader is an error and not a wait; at its end
        # always, so that who empties the file gets no hole.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
        self.out_fd = os.open(path, flags | (0 if append else os.O_TRUNC), 0o644)
        self._owned.append(self.out_fd)

    def _open_pty(self) -> None:
        # Imported here, as few guests have one: this module is on the start-up path.
        import tty  # noqa: PLC0415

        master, terminal = os.openpty()
        self._owned += [master, terminal]
        # Else the terminal would echo the guest's output back to it before anybody opens it.
        tty.setraw(terminal)
        self.pty_path = os.ttyname(terminal)
        # Only when nobody has it open can the console see that somebody opens it.
        os.close(self._owned.pop())
        os.set_blocking(master, False)
        self.in_fd = self.out_fd = master

    def _listen(self, path: str) -> None:
        # Imported here, as few guests have one: this module is on the start-up path.
        from .unix_socket import UnixListener  # noqa: PLC0415

        self._listener = UnixListener(path)
        self.listen_fd = self._listener.fd

    def close(self) -> None:
        """Close everything and remove the socket from the file system."""
        while self._owned:
            os.close(self._owned.pop())
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _mend(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "name another path, or end the process that listens there"
    if error.errno == errno.ENXIO:
        return "start its reader first"
    return "name a file in a folder that can be written"


class Serial:
    """A serial port; owns its C objects and the backend's descriptors until `close`.

    Used by one thread at a time, the guest's accesses apart.
    """

    __slots__ = ("_console", "_ends", "_irq_fd", "_quit_fd", "_uart", "uses_terminal")

    def __init__(self, backend: Backend, *, irq_fd: int, quit_fd: int = -1) -> None:
        """Open the backend; ConfigError when that fails, and nothing is left behind.

        `irq_fd` is an eventfd that is written at each rising edge of the interrupt line;
        `quit_fd` one that is written when the user presses Ctrl-A X; -1 for none. Both are
        borrowed: the port has its own copy of the first, `start` makes one of the other.
        """
        self.uses_terminal = backend.kind == STDIO and os.isatty(0)
        self._quit_fd = quit_fd
        self._ends = _Ends(backend)
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

    @property
    def pty_path(self) -> str:
        """Return the terminal that stands for the port, "" when the backend is no pty."""
        return self._ends.pty_path

    def attach(self, bus: PortBus, base: int) -> None:
        """Put the registers at port `base`, eight of them."""
        bus.add_ports(base, _PORTS, "pv_uart_read", "pv_uart_write", self._uart)

    def start(self) -> None:
        """Begin to move bytes, on a thread in C; BackendError. Not before a fork."""
        config = ffi.new(
            "struct pv_console_config *",
            {
                "in_fd": self._ends.in_fd,
                "out_fd": self._ends.out_fd,
                "listen_fd": self._ends.listen_fd,
                "quit_fd": self._quit_fd,
                "flags": lib.PV_CONSOLE_ESCAPE if self.uses_terminal else 0,
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
        self._ends.close()
        if self._irq_fd >= 0:
            os.close(self._irq_fd)
