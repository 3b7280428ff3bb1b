"""Where clients come from: sockets that the server listens on, or connections it was given."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ..devices.unix_socket import UnixListener
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..vmm.log import Log

UNIX, TCP, FD = "unix", "tcp", "fd"
_BACKLOG = 16


@dataclass(frozen=True)
class ListenerConfig:
    """One `-qmp` or `-mon`: `option` is how messages call it.

    `kind` UNIX has a `path`, TCP a `host` and `port` (0: any free one), FD an inherited `fd` that
    is a listening socket or a connected one. `throttled` limits each client to 100 requests a
    second; with `events_last` the events that a request caused follow its answer. `chardev` is the
    id of the -chardev that it is on, "" without one.
    """

    option: str
    kind: str
    path: str = ""
    host: str = ""
    port: int = 0
    fd: int = -1
    throttled: bool = True
    events_last: bool = False
    chardev: str = ""

    @property
    def filename(self) -> str:
        """Return where it is, in QEMU's words."""
        if self.kind == FD:
            return f"fd:{self.fd}"
        place = f"unix:{self.path}" if self.kind == UNIX else f"tcp:{self.host}:{self.port}"
        return f"{place},server=on"


class Listener:
    """An open listener; owns its descriptors until `close`.

    `connection` is the only client there will ever be where an inherited socket is connected;
    else `socket` is the one to accept clients from.
    """

    def __init__(self, config: ListenerConfig, log: Log) -> None:
        """Open it; ConfigError, and nothing is left behind."""
        self.config = config
        self.socket: socket.socket | None = None
        self.connection: socket.socket | None = None
        self._unix: UnixListener | None = None
        try:
            if config.kind == UNIX:
                self._unix = UnixListener(config.path, mode=0o600, backlog=_BACKLOG)
                self.socket = socket.socket(fileno=os.dup(self._unix.fd))
            elif config.kind == TCP:
                self.socket = _listen_tcp(config, log)
            else:
                self._take(config.fd)
        except OSError as error:
            self.close()
            reason = error.strerror or str(error)
            raise ConfigError(f"{config.option}: {reason}; {_mend(config, error)}") from None

    def _take(self, fd: int) -> None:
        given = socket.socket(fileno=fd)
        try:
            if given.type != socket.SOCK_STREAM:
                raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))
            listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if not listens:
                given.getpeername()  # raises ENOTCONN
            given.setblocking(False)
            given.set_inheritable(False)
        except BaseException:
            given.detach()
            raise
        if listens:
            self.socket = given
        else:
            self.connection = given

    def describe(self) -> str:
        """Return where clients connect to, "" where there is no such place."""
        if self.config.kind == UNIX:
            return os.path.abspath(self.config.path)
        if self.config.kind == TCP and self.socket is not None:
            host, port, *_ = self.socket.getsockname()
            return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"
        return ""

    def close(self) -> None:
        """Close it, and remove a socket from the file system. The connection may have a user."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        if self._unix is not None:
            self._unix.close()
            self._unix = None


def _listen_tcp(config: ListenerConfig, log: Log) -> socket.socket:
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    if not ip_address(str(address[0])).is_loopback:
        log.warning(f"{config.option}: whoever reaches this address can command the machine")
    server = socket.socket(family, kind, protocol)
    try:
        server.setblocking(False)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(_BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


def _mend(config: ListenerConfig, error: OSError) -> str:
    if config.kind == FD:
        return "hand over a stream socket that listens or is connected"
    if error.errno == errno.EADDRINUSE:
        other = "path" if config.kind == UNIX else "port"
        return f"name another {other}, or end the process that listens there"
    if config.kind == TCP:
        return "name an address of this host, as 127.0.0.1:4444"
    return "name a path in a folder that can be written"
