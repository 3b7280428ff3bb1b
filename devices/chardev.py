"""Character devices: what is at the host's end of a serial port, a console or another port.

Python opens the descriptors and is gone from the path: native/console and native/port move the
bytes. A socket may also be a monitor's, which opens it by itself.
"""

from __future__ import annotations

import errno
import os

from ..errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .unix_socket import UnixListener

STDIO, NULL, PTY, FILE, SOCKET, RINGBUF = "stdio", "null", "pty", "file", "socket", "ringbuf"
RINGBUF_SIZE = 65536  # bytes, where none is given
_BACKLOG = 16
# So long may another process take to accept a connection over TCP.
_CONNECT_S = 5.0


class ChardevConfig:
    """One character device, as it was asked for: `kind` is one of the six."""

    __slots__ = (
        "append",
        "fd",
        "host",
        "id",
        "input_path",
        "kind",
        "listens",
        "makes_console",
        "option",
        "path",
        "port",
        "quit_fd",
        "signals",
        "size",
    )

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        kind: str = SOCKET,
        *,
        path: str = "",
        host: str = "",
        port: int = 0,
        fd: int = -1,
        listens: bool = True,
        append: bool = False,
        input_path: str = "",
        size: int = RINGBUF_SIZE,
        signals: bool = False,
        option: str = "",
    ) -> None:
        """Take what belongs to the kind.

        A SOCKET has either `path`, of 1 to 107 bytes, or `host` and `port`, or an inherited `fd`.
        `listens`: clients connect to it, and it does not wait for one; else it is connected to
        what somebody else listens on. A FILE at `path` is emptied at first, but with `append`;
        the guest reads the one at `input_path`, if there is one. A PTY has a symbolic link at
        `path`, if that is given. A RINGBUF has `size` bytes, a power of two. STDIO with `signals`
        leaves Ctrl-C and the like their meaning on a terminal. `option` is how messages name it.
        """
        self.id = id
        self.kind = kind
        self.path = path
        self.host = host
        self.port = port
        self.fd = fd
        self.listens = listens
        self.append = append
        self.input_path = input_path
        self.size = size
        self.signals = signals
        self.option = option or f"-chardev id={id}"
        # It stands for a console as well, with no -device.
        self.makes_console = False
        # An eventfd, borrowed, that is written when the user of STDIO presses Ctrl-A X; -1: none.
        # Set by who runs the machine, before it is made.
        self.quit_fd = -1

    @property
    def is_terminal(self) -> bool:
        """Return whether a user's terminal is behind it."""
        return self.kind == STDIO and os.isatty(0)

    def open(self) -> Chardev:
        """Return it open, to which a given descriptor belongs from now on; ConfigError."""
        return Chardev(self)


class Chardev:
    """An open character device; owns what it has opened until `close`.

    `in_fd` is where the host's bytes come from, `out_fd` where the guest's go, both the same of
    a socket or a pty; `listen_fd` is a socket that clients connect to, non-blocking. -1 stands
    for none. `pty_path` is the terminal of a PTY, else "". `ringbuf` is a struct pv_ringbuf that
    takes the guest's bytes in place of `out_fd`, or None.
    """

    __slots__ = (
        "_link",
        "_owned",
        "_unix",
        "config",
        "in_fd",
        "listen_fd",
        "out_fd",
        "pty_path",
        "ringbuf",
    )

    def __init__(self, config: ChardevConfig) -> None:
        """Open what `config` says; ConfigError, and nothing is left behind."""
        self.config = config
        self.in_fd = self.out_fd = self.listen_fd = -1
        self.pty_path = ""
        self.ringbuf: Any = None
        self._owned: list[int] = []
        self._link = ""
        self._unix: UnixListener | None = None
        try:
            getattr(self, f"_open_{config.kind}")(config)
        except BaseException:
            self.close()
            raise

    def filename(self, *, is_taken: bool) -> str:
        """Return what it is, in QEMU's words; `is_taken`: somebody has the other end open."""
        config = self.config
        if config.kind == PTY:
            return f"pty:{self.pty_path}"
        if config.kind != SOCKET:
            return config.kind
        host = f"[{config.host}]" if ":" in config.host else config.host
        where = f"unix:{config.path}" if config.path else f"tcp:{host}:{config.port}"
        if config.fd >= 0:
            where = f"fd:{config.fd}"
        ends = ",server=on" if self.listen_fd >= 0 else ""
        return f"{'' if is_taken else 'disconnected:'}{where}{ends}"

    def _open_stdio(self, _config: ChardevConfig) -> None:
        self.in_fd, self.out_fd = 0, 1

    def _open_null(self, _config: ChardevConfig) -> None:
        pass

    def _open_ringbuf(self, config: ChardevConfig) -> None:
        from ..native import check, ffi, lib

        ring = ffi.new("struct pv_ringbuf **")
        check(lib.pv_ringbuf_new(config.size, ring), config.option)
        self.ringbuf = ffi.gc(ring[0], lib.pv_ringbuf_free)
        # Something to poll, which always takes more.
        self.out_fd = self._own(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))

    def _open_file(self, config: ChardevConfig) -> None:
        # Non-blocking, so that a FIFO without a reader is an error and not a wait; at its end
        # always, so that who empties the file gets no hole.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK
        try:
            path = config.input_path
            if path:
                self.in_fd = self._own(os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
            path = config.path
            self.out_fd = self._own(
                os.open(path, flags | (0 if config.append else os.O_TRUNC), 0o644)
            )
        except OSError as error:
            mend = "name a file in a folder that can be written"
            if path == config.input_path:
                mend = "name a file that can be read"
            elif error.errno == errno.ENXIO:
                mend = "start its reader first"
            raise _error(config, path, error, mend) from None

    def _open_pty(self, config: ChardevConfig) -> None:
        # Imported here, as few guests have one: this module is on the start-up path.
        import tty

        try:
            master, terminal = os.openpty()
        except OSError as error:
            raise _error(config, "no pty", error, "end some programs that have one") from None
        try:
            self.in_fd = self.out_fd = self._own(master)
            # Else the terminal would echo the guest's output to it before anybody opens it.
            tty.setraw(terminal)
            self.pty_path = os.ttyname(terminal)
        finally:
            # Only when nobody has it open can the device see that somebody opens it.
            os.close(terminal)
        os.set_blocking(master, False)
        if config.path:
            try:
                os.symlink(self.pty_path, config.path)
            except OSError as error:
                raise _error(config, config.path, error, "name a path that is free") from None
            self._link = os.path.abspath(config.path)

    def _open_socket(self, config: ChardevConfig) -> None:
        if config.fd >= 0:
            self._adopt(config)
        elif config.path and config.listens:
            # Imported here, as few guests have one: this module is on the start-up path.
            from .unix_socket import UnixListener

            try:
                self._unix = UnixListener(config.path, mode=0o600, backlog=_BACKLOG)
            except OSError as error:
                mend = "name another path, in a folder that can be written"
                if error.errno == errno.EADDRINUSE:
                    mend = "name another path, or end the process that listens there"
                raise _error(config, config.path, error, mend) from None
            self.listen_fd = self._unix.fd
        elif config.path:
            self._connect_unix(config)
        else:
            self._open_tcp(config)

    def _adopt(self, config: ChardevConfig) -> None:
        try:
            listens = _check(config.fd)
        except OSError as error:
            mend = "hand over a stream socket that is connected or listens"
            raise _error(config, f"fd={config.fd}", error, mend) from None
        self._own(config.fd)
        if listens:
            os.set_blocking(config.fd, False)
            self.listen_fd = config.fd
        else:
            self.in_fd = self.out_fd = config.fd

    def _connect_unix(self, config: ChardevConfig) -> None:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            try:
                # One that accepts nobody is an error, and not a wait.
                one.setblocking(False)
                one.connect(config.path)
            except OSError as error:
                mend = "start what listens there, or add ,server,nowait to listen"
                raise _error(config, config.path, error, mend) from None
            self.in_fd = self.out_fd = self._own(one.detach())

    def _open_tcp(self, config: ChardevConfig) -> None:
        import socket

        place = f"{config.host}:{config.port}"
        address = (config.host, config.port)
        try:
            if not config.listens:
                with socket.create_connection(address, _CONNECT_S) as one:
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.in_fd = self.out_fd = self._own(one.detach())
                return
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            with socket.create_server(address, family=family, backlog=_BACKLOG) as server:
                server.setblocking(False)
                self.listen_fd = self._own(server.detach())
        except OSError as error:
            mend = "name an address of this host and a port that is free"
            if not config.listens:
                mend = "start what listens there, or add ,server,nowait to listen"
            raise _error(config, place, error, mend) from None

    def _own(self, fd: int) -> int:
        self._owned.append(fd)
        return fd

    def close(self) -> None:
        """Close it, and remove what it has put into the file system; what uses it is gone."""
        if self._link:
            try:
                if os.readlink(self._link) == self.pty_path:
                    os.unlink(self._link)
            except OSError:
                pass  # somebody has removed it, or its folder, for us
            self._link = ""
        while self._owned:
            os.close(self._owned.pop())
        if self._unix is not None:
            self._unix.close()
            self._unix = None
        self.in_fd = self.out_fd = self.listen_fd = -1
        self.ringbuf = None


def _error(config: ChardevConfig, what: str, error: OSError, mend: str) -> ConfigError:
    # Of a name that cannot be resolved, the number is none of these.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or error
    return ConfigError(f"{config.option}: {what}: {reason}; {mend}")


def _check(fd: int) -> bool:
    """Return whether a stream socket listens, or else is connected; OSError when neither."""
    import socket

    given = socket.socket(fileno=fd)
    try:
        if given.type != socket.SOCK_STREAM:
            raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
        listens = bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if not listens:
            given.getpeername()  # raises ENOTCONN
        os.set_inheritable(fd, False)
    finally:
        given.detach()
    return listens
