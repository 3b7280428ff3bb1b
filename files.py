"""Files that options name: regular ones, opened without waiting, locked, read up to a bound.

Errors are OSErrors whose `strerror` is fit for the user.
"""

from __future__ import annotations

import errno
import os
import stat

SOCKET_PATH_MAX = 107  # bytes of the path of a Unix socket: sockaddr_un without its terminator
_HELD = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_regular(path: str, flags: int, mode: int = 0o666) -> int:
    """Return the descriptor of a regular file, made where `flags` say so; OSError.

    To open a FIFO may wait for ever and to open a device may do something: neither is opened.
    """
    try:
        _check(path, os.stat(path).st_mode)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    # Who has put a FIFO there since is refused, not waited for.
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    try:
        _check(path, os.fstat(fd).st_mode)
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however little the file takes at once; OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _check(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)


def read(path: str, most: int) -> bytes:
    """Return what is in a regular file of at most `most` bytes; OSError."""
    with open(open_regular(path, os.O_RDONLY), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"Larger than {most >> 20} MiB", path)
    return data


def lock(fd: int) -> bool:
    """Lock a file for its descriptor alone, until that is closed; False when somebody has it.

    The lock is advisory (fcntl(2), F_OFD_SETLK). On a file system without locks all have it.
    """
    import fcntl  # noqa: PLC0415  (not for every start)
    import struct  # noqa: PLC0415

    try:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, whole)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        if error.errno in _HELD:
            return False
        raise
    return True


def open_locked(path: str, mode: int) -> int | None:
    """Return the descriptor of a regular file, made if need be, that is now ours alone.

    None when somebody else has it; OSError. It is given up by `remove_locked`.
    """
    while True:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT, mode)
        try:
            if not lock(fd):
                os.close(fd)
                return None
            # Its owner may have removed it before it could be locked.
            if is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def is_at(fd: int, path: str) -> bool:
    """Return whether an open file is the one that `path` leads to."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def remove_locked(fd: int, path: str) -> bool:
    """Remove the file that `open_locked` opened, and close it; False when it was not there."""
    try:
        found = is_at(fd, path)
        if found:
            os.unlink(path)
    finally:
        os.close(fd)
    return found
