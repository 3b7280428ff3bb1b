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

_PAGE = 4096
_STEP = 64 << 20  # between two looks at whether somebody has cancelled it
_PAGEMAP = "/proc/self/pagemap"
# asm-generic/mman.h and mman-common.h; the mmap module names the first from Python 3.12 on.
_MAP_NORESERVE, _MAP_FIXED = 0x4000, 0x10
_HUGE_PAGE = 2 << 20


def _line(identity: bytes) -> bytes:
    return b"pyvirt-memory %s\n" % identity.hex().encode()


class Writer:
    """Writes the file of a machine that stands; `done` bytes of `memory.size` are seen to."""

    __slots__ = ("_memory", "_tell", "done", "identity", "is_cancelled", "own", "written")

    def __init__(
        self,
        memory: GuestMemory,
        identity: bytes,
        tell: Callable[[str], None] = lambda _: None,
        *,
        own: bytearray | None = None,
    ) -> None:
        """`tell` gets a line each second that it takes.

        With `own`, a bit for each page, only those are written that were since memory was mapped;
        their bits are set.
        """
        self.own = own
        self._memory = memory
        self.identity = identity
        self._tell = tell
        self.done = self.written = 0
        self.is_cancelled = False

    def cancel(self) -> None:
        """Have `write` end soon, or not begin; any thread."""
        self.is_cancelled = True

    def check(self) -> None:
        """Raise OSError, ECANCELED, when it `is_cancelled`; any thread."""
        if self.is_cancelled:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def write(self, fd: int) -> None:
        """Fill an empty file; OSError, ECANCELED when it `is_cancelled`."""
        pagemap = -1
        if self._memory.is_anonymous:
            try:
                pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pagemap = -1  # then all of it is looked at, or refused
        try:
            self._write(fd, pagemap)
        finally:
            if pagemap >= 0:
                os.close(pagemap)

    def _write(self, fd: int, pagemap: int) -> None:
        memory = self._memory
        os.ftruncate(fd, memory.size)
        written, told = ffi.new("uint64_t *"), time.monotonic()
        for start, end, is_anonymous in self._extents():
            for at in range(start, end, _STEP):
                self.check()
                size = min(_STEP, end - at)
                host = ffi.cast("void *", memory.base + at)
                if self.own is not None:
                    own = ffi.from_buffer("uint8_t[]", self.own) + at // _PAGE // 8
                    result = lib.pv_memory_save_own(
                        host, size, fd, at, pagemap, is_anonymous, own, written
                    )
                else:
                    pages = pagemap if is_anonymous else -1
                    result = lib.pv_memory_save(host, size, fd, at, pages, written)
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                self.done, self.written = at + size, written[0]
                if time.monotonic() - told >= 1:
                    told = time.monotonic()
                    self._tell(
                        f"snapshot: {self.done * 100 // memory.size} % of the memory is seen to"
                    )
        os.pwrite(fd, _line(self.identity), memory.size)
        self.done = memory.size

    def _extents(self) -> Iterator[tuple[int, int, bool]]:
        """Yield the parts of memory that may have been written: holes of files would be filled.

        With each, whether it is memory without a file.
        """
        memory, at = self._memory, 0
        for start, end in memory.mapped:
            if at < start:
                yield at, start, True
            yield start, end, False
            at = end
        for start, size, fd in memory.files:
            if at < start:
                yield at, start, True
            for first, end in data_extents(fd, size):
                yield start + first, start + end, False
            at = start + size
        if at < memory.size:
            yield at, memory.size, True


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
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


def copy_sparse(source: int, target: int) -> None:
    """Copy a file to an empty one, holes as holes; one that becomes shorter is cut off. OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, end in data_extents(source, size):
        at = start
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            done = os.sendfile(target, source, at, end - at)
            if not done:
                return
            at += done


class MemoryFile:
    """The memory of a snapshot, open to be restored from; owns the descriptor until `close`."""

    __slots__ = ("_extents", "_size", "fd", "name")

    def __init__(self, fd: int, name: str, size: int, identity: bytes) -> None:
        """Take over the file; StateError unless it has `size` bytes of the snapshot `identity`.

        `name` is how messages call it.
        """
        self.fd = fd
        self.name = name
        self._size = size
        self._extents: list[tuple[int, int]] | None = None
        try:
            self._check(identity)
        except BaseException:
            self.close()
            raise

    def _check(self, identity: bytes) -> None:
        try:
            line = os.pread(self.fd, len(_line(identity)) + 1, self._size)
            there = os.fstat(self.fd).st_size
        except OSError as error:
            raise StateError(f"{self.name}: {error.strerror}; write the snapshot again") from None
        if there < self._size:
            raise StateError(
                f"{self.name}: has {there} bytes, and the guest's memory {self._size}; "
                "it was cut off"
            )
        if line != _line(identity):
            raise StateError(
                f"{self.name}: is of another snapshot than the state; keep them together"
            )

    def extents(self) -> list[tuple[int, int]]:
        """Return where there is something, in whole huge pages; what is between them is zeroes."""
        if self._extents is None:
            found: list[tuple[int, int]] = []
            for start, end in data_extents(self.fd, self._size):
                first = start - start % _HUGE_PAGE
                last = min(end + -end % _HUGE_PAGE, self._size)
                if found and first <= found[-1][1]:
                    first = found.pop()[0]
                found.append((first, last))
            self._extents = found
        return self._extents

    def map(self, at: int) -> list[tuple[int, int]]:
        """Map it at an address of this process, over memory that is all zeroes; ConfigError.

        Changes stay private, and what nobody touches is not read. Where it has nothing the memory
        stays, which takes huge pages. Return the parts that are mapped.
        """
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        for start, end in self.extents():
            where = ffi.cast("void *", at + start)
            if lib.mmap(where, end - start, protection, flags, self.fd, start) != where:
                raise ConfigError(
                    f"{self.name}: cannot be mapped: {os.strerror(ffi.errno)}; give mapped=off"
                )
        return self.extents()

    def read(self, memory: GuestMemory) -> None:
        """Read it into memory that is all zeroes; BackendError."""
        try:
            for start, end in data_extents(self.fd, self._size):
                memory.load_flat(start, self.fd, end - start)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it became shorter"
            raise BackendError(f"{self.name}: {reason}; write the snapshot again") from None

    def close(self) -> None:
        """Close it; a mapping stays. Nothing happens the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_memory(path: str, size: int, identity: bytes) -> MemoryFile:
    """Open the file of a snapshot; StateError."""
    try:
        fd = files.open_regular(path, os.O_RDONLY)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}; name a folder with a snapshot") from None
    return MemoryFile(fd, path, size, identity)
