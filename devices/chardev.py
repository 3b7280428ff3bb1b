"""The host's end of a guest's port: a stream socket, connected or listened on."""

from __future__ import annotations

import errno
import os
import socket

from ..errors import ConfigError
from .unix_socket import UnixListener

_BACKLOG = 16


class ChardevConfig:
    """One socket, as it was asked for."""

    __slots__ = ("fd", "host", "id", "listens", "path", "port")

    def __init__(
        self,
        id: str,  # noqa: A002  (the field's word)
        *,
        path: str = "",
        host: str = "",
        port: int = 0,
        fd: int = -1,
        listens: bool = True,
    ) -> None:
        """Either `path`, of 1 to 107 bytes, or `host` and `port`, or an inherited `fd`.

        `listens`: clients connect to it, and it does not wait for one; else it is connected to
        what somebody else listens on.
        """
        self.id = id
        self.path = path
        self.host = host
        self.port = port
        self.fd = fd
        self.listens = listens

    def open(self) -> Chardev:
        """Return the open socket, to which a given file belongs from now on; ConfigError."""
        return Chardev(self)


class Chardev:
    """An open socket; owns it until `close`.

    `fd` is a connected one, else -1; `listen_fd` is one that clients connect to, non-blocking,
    else -1.
    """

    __slots__ = ("_unix", "fd", "listen_fd")

    def __init__(self, config: ChardevConfig) -> None:
        """Open what `config` says; ConfigError, and nothing is left behind."""
        self.fd = self.listen_fd = -1
        self._unix: UnixListener | None = None
        name = f"-chardev id={config.id}"
        if config.path:
            try:
                self._unix = UnixListener(config.path, mode=0o600, backlog=_BACKLOG)
            except OSError as error:
                raise ConfigError(
                    f"{name}: {config.path}: {error.strerror}; "
                    "name another path, in a folder that can be written"
                ) from None
            self.listen_fd = self._unix.fd
            return
        try:
            listens = _check(config.fd)
        except OSError as error:
            raise ConfigError(
                f"{name}: fd={config.fd}: {error.strerror}; "
                "hand over a stream socket that is connected or listens"
            ) from None
        if listens:
            os.set_blocking(config.fd, False)
            self.listen_fd = config.fd
        else:
            self.fd = config.fd

    def close(self) -> None:
        """Close the socket, and remove its file; what uses it is gone."""
        if self._unix is not None:
            self._unix.close()
        elif self.fd >= 0 or self.listen_fd >= 0:
            os.close(max(self.fd, self.listen_fd))
        self.fd = self.listen_fd = -1
        self._unix = None


def _check(fd: int) -> bool:
    """Return whether a stream socket listens, or else is connected; OSError when neither."""
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
