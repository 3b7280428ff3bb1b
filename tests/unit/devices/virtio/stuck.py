"""Storage that hangs: a page of the guest's memory that the host's I/O waits for (userfaultfd)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from pyvirt.native import ffi
from pyvirt.vmm.memory import GuestMemory

PAGE = 4096
PATIENCE = 30.0
_SYS_USERFAULTFD = 323
_API, _REGISTER, _ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
_API_VERSION, _MISSING = 0xAA, 1
_MADV_DONTNEED = 4
_libc = ctypes.CDLL(None, use_errno=True)


class Stuck:
    """A page; who touches it waits, until `release`."""

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        self._start = start

    def wait_for_somebody(self) -> None:
        """Return when somebody waits."""
        assert select.select([self._fd], [], [], PATIENCE)[0]

    def release(self) -> None:
        """Let them go on."""
        fcntl.ioctl(self._fd, _ZEROPAGE, struct.pack("<4Q", self._start, PAGE, 0, 0))


@contextmanager
def stuck(memory: GuestMemory, address: int) -> Iterator[Stuck]:
    """Have the page at `address` be one, for a while."""
    with memory.view(address, PAGE) as view:
        start = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
    fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        fcntl.ioctl(fd, _API, struct.pack("<3Q", _API_VERSION, 0, 0))
        assert _libc.madvise(ctypes.c_void_p(start), PAGE, _MADV_DONTNEED) == 0
        fcntl.ioctl(fd, _REGISTER, struct.pack("<4Q", start, PAGE, _MISSING, 0))
        yield Stuck(fd, start)
    finally:
        os.close(fd)
