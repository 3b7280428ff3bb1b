"""The advisory lock on a disk image: many readers, or one writer, whichever monitor they are in.

Three habits are served, all by locks of the open file description (fcntl(2), F_OFD_SETLK):

- Bytes 0 to 99 are locked for reading or for writing, which meets monitors that lock whole files.
- QEMU (block/file-posix.c) locks byte 100 + n, for reading, for each permission n that it uses,
  and byte 200 + n for each that it grants nobody else; then it looks for others' locks on the
  bytes that contradict. It writes with the same locks as it reads, so these bytes must be looked
  at: taking them conflicts with nothing of QEMU's.
- StratoVirt locks 101, 102 and 202, for writing where it writes. The bytes taken here for QEMU
  meet those; a writer's lock of 102 is one for writing to meet its readers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ..files import NO_LOCKS

_FLOCK = struct.Struct("hhqqi4x")  # of fcntl(2)
_HELD = (errno.EAGAIN, errno.EACCES)

_PLAIN_BYTES = 100  # below QEMU's
_USED, _WITHHELD = 100, 200  # where its permissions begin
# QEMU's permissions, BLK_PERM_*.
_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_OF_WRITERS = (_WRITE, _WRITE_UNCHANGED, _RESIZE)


def lock_image(fd: int, *, readonly: bool) -> bool:
    """Lock the image until `fd` is closed; False when it is in use in a way that forbids it.

    A file system without locks, such as some network ones, is left to the user's own care.
    OSError when the lock fails otherwise.
    """
    try:
        _take(fd, readonly)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        if error.errno in _HELD:
            return False
        raise
    wanted = (_READ,) if readonly else (_READ, _WRITE, _RESIZE)
    contradicting = [_WITHHELD + n for n in wanted] + [_USED + n for n in _OF_WRITERS]
    return not any(_is_locked(fd, byte) for byte in contradicting)


def _take(fd: int, readonly: bool) -> None:
    own = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
    _set(fd, own, 0, _PLAIN_BYTES)
    used = (_READ,) if readonly else (_READ, _WRITE, _RESIZE)
    for byte in (*(_USED + n for n in used), *(_WITHHELD + n for n in _OF_WRITERS)):
        _set(fd, fcntl.F_RDLCK, byte, 1)
    if not readonly:
        _set(fd, fcntl.F_WRLCK, _USED + _WRITE_UNCHANGED, 1)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _is_locked(fd: int, byte: int) -> bool:
    """Return whether somebody else has a lock on a byte of QEMU's."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind: int
    start: int
    kind, _, start, _, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    # One that begins below is of somebody who locks whole files, and has been met there.
    return kind != fcntl.F_UNLCK and start >= _PLAIN_BYTES
