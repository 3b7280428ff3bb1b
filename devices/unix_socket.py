"""A Unix socket in the file system on which this process listens."""

from __future__ import annotations

import errno
import os
import socket
import stat


class UnixListener:
    """A listening socket; owns its descriptor `fd`, non-blocking, and its file until `close`."""

    __slots__ = ("_identity", "_path", "fd")

    def __init__(self, path: str, *, mode: int = 0o777, backlog: int = 1) -> None:
        """Make the file, with `mode` less the umask, and listen; OSError.

        A socket that a process left behind is replaced; EADDRINUSE where one listens, or where
        the file is something else.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.setblocking(False)
            # The file gets the mode of the socket at this moment; there is none without it.
            os.fchmod(server.fileno(), mode)
            try:
                server.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or _is_served(path):
                    raise
                os.unlink(path)  # left behind by a process that is gone
                server.bind(path)
            server.listen(backlog)
            status = os.stat(path)
            self._path = path
            self._identity = status.st_dev, status.st_ino
            self.fd = server.detach()

    def close(self) -> None:
        """Close the descriptor, and remove the file unless somebody has put another there."""
        os.close(self.fd)
        self.fd = -1
        try:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._path)
        except OSError:
            pass  # somebody has removed it, or its folder, for us


def _is_served(path: str) -> bool:
    """Return whether `path` is anything but a socket that no process listens on."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        return client.connect_ex(path) != errno.ECONNREFUSED
