"""A Unix socket in the file system on which this process listens.

Two files: the socket, and beside it PATH.lock, which is locked as long as somebody listens. The
socket is bound under another name and gets its own when it listens, so that who sees it can
connect; and under the lock, so that of two processes that want one path one gets it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from .. import files

_LOCK, _NEW = ".lock", ".new"
# What the host's file system answers to a process in the nested lab is ENXIO.
_NO_SOCKETS = "this file system takes no sockets; in the nested lab, /dev/shm does"


class UnixListener:
    """A listening socket; owns its descriptor `fd`, non-blocking, and its files until `close`."""

    __slots__ = ("_identity", "_lock_fd", "_path", "fd")

    def __init__(self, path: str, *, mode: int = 0o777, backlog: int = 1) -> None:
        """Make the files, the socket with `mode` less the umask, and listen; OSError.

        A socket that a process left behind is replaced; EADDRINUSE where one listens, or where
        the file is something else.
        """
        # The process may go to another folder, and a relative path may be the only short one.
        self._path = os.path.abspath(path)
        lock_fd = files.open_locked(self._path + _LOCK, 0o600)
        if lock_fd is None:
            raise _in_use()
        try:
            self._listen(path, mode, backlog)
        except BaseException:
            files.remove_locked(lock_fd, self._path + _LOCK)
            raise
        self._lock_fd = lock_fd

    def _listen(self, path: str, mode: int, backlog: int) -> None:
        if _is_served(path):
            raise _in_use()
        new = _new_path(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.setblocking(False)
            # The file gets the mode of the socket at this moment; there is none without it.
            os.fchmod(server.fileno(), mode)
            # Whoever has made such a socket is gone: he had the lock.
            if os.path.lexists(new) and stat.S_ISSOCK(os.lstat(new).st_mode):
                os.unlink(new)
            try:
                _bind(server, new)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    raise OSError(errno.EOPNOTSUPP, _NO_SOCKETS) from None
                raise
            try:
                server.listen(backlog)
                status = os.stat(new)
                os.rename(new, path)
            except BaseException:
                os.unlink(new)
                raise
            self._identity = status.st_dev, status.st_ino
            self.fd = server.detach()

    def close(self) -> None:
        """Close the descriptor, and remove the files unless somebody has put others there."""
        os.close(self.fd)
        self.fd = -1
        try:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._path)
        except OSError:
            pass  # somebody has removed it, or its folder, for us
        try:  # noqa: SIM105  (contextlib costs the start-up path 2 ms)
            files.remove_locked(self._lock_fd, self._path + _LOCK)
        except OSError:
            pass


def _new_path(path: str) -> str:
    """Return where to bind first, in the same folder."""
    new = path + _NEW
    if len(os.fsencode(new)) <= files.SOCKET_PATH_MAX:
        return new
    import binascii  # noqa: PLC0415  (few paths are that long)

    folder, name = os.path.split(path)
    return os.path.join(folder, f"{binascii.crc32(os.fsencode(name)):08x}{_NEW}")


def _bind(server: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= files.SOCKET_PATH_MAX:
        server.bind(path)
        return
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    finally:
        os.close(folder)


def _in_use() -> OSError:
    return OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _is_served(path: str) -> bool:
    """Return whether `path` is anything but a socket that no process listens on."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        return client.connect_ex(path) != errno.ECONNREFUSED
