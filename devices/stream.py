"""A guest's NIC on the host: a Unix stream socket that carries Ethernet frames.

Each frame follows its length, 32 bits in network order; there is no virtio net header, and so no
offload. It is what QEMU calls a stream netdev and passt speaks (passt(1)).
"""

from __future__ import annotations

import _socket
import os

from ..errors import ConfigError


class StreamConfig:
    """A socket that somebody listens on, as it was asked for."""

    __slots__ = ("path",)
    queues = 1

    def __init__(self, path: str) -> None:
        """`path` has 1 to 107 bytes."""
        self.path = path

    def open(self) -> Stream:
        """Return the connected socket; ConfigError."""
        # The lock that a Python socket has is of no use here: the descriptor is all that is kept.
        one = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            # A switch that accepts nobody is an error, and not a wait.
            one.setblocking(False)
            one.connect(os.fsencode(self.path))
        except OSError as error:
            one.close()
            raise ConfigError(
                f"-netdev stream,path={self.path}: {error.strerror}; "
                "name a socket that a switch such as passt listens on"
            ) from None
        return Stream(one.detach(), self.path)


class Stream:
    """A connected socket; owns it until `close`.

    `fds` is that one, non-blocking. `offloads`, `mtu` and `vhost_fds` say that there is none.
    """

    kind = "stream"
    offloads = 0
    mtu = 0
    vhost_fds: tuple[int, ...] = ()
    __slots__ = ("fds", "name")

    def __init__(self, fd: int, name: str) -> None:
        os.set_blocking(fd, False)
        self.fds: tuple[int, ...] = (fd,)
        self.name = name

    def close(self) -> None:
        """Close the socket; what uses it is gone."""
        for fd in self.fds:
            os.close(fd)
        self.fds = ()
