"""The file `memory`: a guest's RAM, and behind it a line that says which state it belongs to.

Pages of zeroes are holes. The regions of RAM lie one behind the other, as in the monitor's memory.
The line is `pyvirt-memory SNAPSHOT`, with the number that the state has as well; it begins where
the RAM ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import time

from ... import files
from ...errors import BackendError, ConfigError, StateError
from ...native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..memory import GuestMemory

_STEP = 64 << 20  # between two looks at whether somebody has cancelled it
_PAGEMAP = "/proc/self/pagemap"
_MAP_FIXED = 0x10  # asm-generic/mman-common.h; the mmap module does not name it


def _line(identity: bytes) -> bytes:
    return b"pyvirt-memory %s\n" % identity.hex().encode()


class Writer:
    """Writes the file of a machine that stands; `done` bytes of `memory.size` are seen to."""

    __slots__ = ("_identity", "_memory", "_tell", "done", "is_cancelled", "written")

    def __init__(
        self, memory: GuestMemory, identity: bytes, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """`tell` gets a line each second that it takes."""
        self._memory = memory
        self._identity = identity
        self._tell = tell
        self.done = self.written = 0
        self.is_cancelled = False

    def cancel(self) -> None:
        """Have `write` end soon, or not begin; any thread."""
        self.is_cancelled = True

    def write(self, fd: int) -> None:
        """Fill an empty file; OSError, ECANCELED when it `is_cancelled`."""
        pagemap = -1
        if self._memory.is_anonymous:
            try:
                pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pagemap = -1  # then all of it is looked at
        try:
            self._write(fd, pagemap)
        finally:
            if pagemap >= 0:
                os.close(pagemap)

    def _write(self, fd: int, pagemap: int) -> None:
        memory = self._memory
        os.ftruncate(fd, memory.size)
        written, told = ffi.new("uint64_t *"), time.monotonic()
        for start, end in self._extents():
            for at in range(start, end, _STEP):
                if self.is_cancelled:
                    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
                size = min(_STEP, end - at)
                host = ffi.cast("void *", memory.base + at)
                result = lib.pv_memory_save(host, size, fd, at, pagemap, written)
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                self.done, self.written = at + size, written[0]
                if time.monotonic() - told >= 1:
                    told = time.monotonic()
                    self._tell(
                        f"snapshot: {self.done * 100 // memory.size} % of the memory is seen to"
                    )
        os.pwrite(fd, _line(self._identity), memory.size)
        self.done = memory.size

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Yield the parts of memory that may have been written: holes of files would be filled."""
        at = 0
        for start, size, fd in self._memory.files:
            if at < start:
                yield at, start
            for first, end in _data(fd, size):
                yield start + first, start + end
            at = start + size
        if at < self._memory.size:
            yield at, self._memory.size


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file's first `size` bytes that are no holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield at, size  # a file system that cannot tell
            return
        if start < size:
            yield start, end
        at = end


class MemoryFile:
    """The memory of a snapshot, open to be restored from."""

    __slots__ = ("_fd", "_path", "_size")

    def __init__(self, path: str, size: int, identity: bytes) -> None:
        """Open the file; StateError unless it has `size` bytes of the snapshot `identity`."""
        self._path = path
        self._size = size
        try:
            self._fd = files.open_regular(path, os.O_RDONLY)
            line = os.pread(self._fd, len(_line(identity)) + 1, size)
            there = os.fstat(self._fd).st_size
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}; name a folder with a snapshot") from None
        if there < size:
            self.close()
            raise StateError(
                f"{path}: has {there} bytes, and the guest's memory {size}; it was cut off"
            )
        if line != _line(identity):
            self.close()
            raise StateError(f"{path}: is of another snapshot than the state; keep them together")

    def map(self, at: int) -> None:
        """Map it at an address of this process, over what is there; ConfigError.

        Changes stay private, and what nobody touches is not read.
        """
        flags, where = mmap.MAP_PRIVATE | _MAP_FIXED, ffi.cast("void *", at)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        if lib.mmap(where, self._size, protection, flags, self._fd, 0) != where:
            raise ConfigError(
                f"{self._path}: cannot be mapped: {os.strerror(ffi.errno)}; give mapped=off"
            )

    def read(self, memory: GuestMemory) -> None:
        """Read it into memory that is all zeroes; BackendError."""
        try:
            for start, end in _data(self._fd, self._size):
                memory.load_flat(start, self._fd, end - start)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it became shorter"
            raise BackendError(f"{self._path}: {reason}; write the snapshot again") from None

    def close(self) -> None:
        """Close it; a mapping stays."""
        os.close(self._fd)
