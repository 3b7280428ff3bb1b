"""Guest memory: mapped once, told to KVM as one memslot per RAM region.

Private memory in huge pages by default: a guest's first touch of 2 MiB is one fault. Shared
memory is a memfd, for processes that are to see it too, in pages of 4 KiB. What is not private is
in `memdev`.
"""

from __future__ import annotations

import mmap
import os
import time

from ..errors import BackendError, ConfigError
from ..native import check, ffi, lib
from . import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from .memdev import Memdev, Pieces

    class Content(Protocol):
        """What is in memory from the start on."""

        def map(self, at: int) -> list[tuple[int, int]]:
            """Map it privately at an address of this process, over memory of zeroes; ConfigError.

            Return the parts that are mapped: beginning and end, in their order.
            """


MIB = 1 << 20
SIZE_MIN = 128 * MIB
SIZE_MAX = 512 << 30
_PAGE = 4096
_HUGE_PAGE = 2 << 20
_POPULATED_AT_ONCE = 256 * MIB
# asm-generic/mman.h and mman-common.h; the mmap module names the first from Python 3.12 on.
_MAP_NORESERVE, _MAP_FIXED = 0x4000, 0x10


class GuestMemory:
    """The RAM of one guest, addressed by guest-physical address.

    Control-plane use only: boot loaders and inspection. Owns mapping and memfd until `close`; a
    view handed out must be gone by then. Addresses outside RAM raise IndexError.
    """

    def __init__(
        self,
        size: int,
        *,
        shared: bool = False,
        dumped: bool = False,
        memdevs: Sequence[Memdev] = (),
        content: Content | None = None,
    ) -> None:
        """Map `size` bytes (128 MiB to 512 GiB, whole MiB); untouched pages cost nothing.

        `memdevs` are what it is made of, from address 0 on, when it is not all private memory.
        `shared`: other processes are to see all of it. Without either, `content` is mapped there in
        place of zeroes. Core dumps of this process have no guest memory in them unless it is to be
        `dumped`.
        """
        self.size = size
        self.regions = layout.ram_regions(size)
        # Of what has files that get what the guest writes: offset in all RAM, size, descriptor.
        self.files: list[tuple[int, int, int]] = []
        # Of content, where something is mapped: beginning and end, in all RAM.
        self.mapped: list[tuple[int, int]] = []
        self._pieces = self._open(memdevs, shared=shared)
        # Whether pages of the rest that nobody has touched are zeroes.
        self.is_anonymous = self._pieces is None
        self._is_dumped = dumped
        try:
            self._map = self._reserve()
        except OSError as error:
            self._close_pieces()
            raise ConfigError(f"-m: cannot map {size // MIB} MiB: {error.strerror}") from None
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._map)))
        self._skip = -base % self._alignment
        self.base = base + self._skip
        if self._pieces is not None:
            self._map_pieces(self._pieces)
        elif content is not None:
            self.mapped = self._map_content(content)
        if not dumped:
            self._map.madvise(mmap.MADV_DONTDUMP)
        lib.pv_crash_memory(ffi.cast("void *", self.base), size)
        self._view = memoryview(self._map)[self._skip : self._skip + size]
        self._native: Any = None

    def _open(self, memdevs: Sequence[Memdev], *, shared: bool) -> Pieces | None:
        if not memdevs and not shared:
            return None
        from .memdev import Memdev, Pieces  # noqa: PLC0415  (not every guest's start needs it)

        memdevs = memdevs or (Memdev("-machine mem-share", self.size),)
        return Pieces(memdevs, shared=shared)

    @property
    def _alignment(self) -> int:
        # KVM maps a huge page only where guest and host address are alike in their low bits.
        return max(_HUGE_PAGE, self._pieces.alignment if self._pieces is not None else 0)

    def _reserve(self) -> mmap.mmap:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapping = mmap.mmap(-1, self.size + self._alignment, flags)
        _ask_for_huge_pages(mapping)
        return mapping

    def _map_content(self, content: Content) -> list[tuple[int, int]]:
        try:
            return content.map(self.base)
        except BaseException:
            self._map.close()
            raise

    def _map_pieces(self, pieces: Pieces) -> None:
        try:
            pieces.map(self.base)
        except BaseException:
            self._map.close()
            pieces.close()
            raise
        # Of files in memory too, where the host's shmem_enabled leaves that to who maps them.
        _ask_for_huge_pages(self._map)
        self.files = pieces.files

    def _close_pieces(self) -> None:
        if self._pieces is not None:
            self._pieces.close()

    def _offset(self, address: int, length: int) -> int:
        offset = 0
        for start, size in self.regions:
            if start <= address and address + length <= start + size:
                return offset + address - start
            offset += size
        raise IndexError(f"{address:#x}+{length:#x} is not in guest memory")

    def view(self, address: int, length: int) -> memoryview:
        """Return the bytes at `address` themselves, not a copy."""
        offset = self._offset(address, length)
        return self._view[offset : offset + length]

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` to `address`."""
        self.view(address, len(data))[:] = data

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of the bytes at `address`."""
        return bytes(self.view(address, length))

    def flush_page(self, address: int) -> None:
        """Make KVM forget how it maps the page of `address`; what is in it stays. Any thread."""
        page = ffi.cast("void *", self.base + self._offset(address & -_PAGE, _PAGE))
        # To allow execution takes nothing from a thread that uses the page, and KVM is told of it.
        lib.mprotect(page, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        lib.mprotect(page, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE)

    def load(self, address: int, fd: int, offset: int, length: int) -> None:
        """Read `length` bytes of a file straight to `address`; EOFError when it is shorter."""
        # Released at once: views that a traceback keeps alive would stand in the way of `close`.
        with self.view(address, length) as target:
            _read(fd, offset, target)

    def load_flat(self, start: int, fd: int, length: int) -> None:
        """Do so for the `length` bytes that are `start` bytes into memory, and into the file."""
        with self._view[start : start + length] as target:
            _read(fd, start, target)

    def native(self) -> Any:
        """Return the struct pv_memory through which the data path sees this RAM; until `close`."""
        if self._native is None:
            out = ffi.new("struct pv_memory **")
            check(lib.pv_memory_new(out), "guest memory")
            self._native = ffi.gc(out[0], lib.pv_memory_free)
            offset = 0
            for start, size in self.regions:
                host = ffi.cast("void *", self.base + offset)
                check(lib.pv_memory_add(self._native, start, size, host), "guest memory")
                self._share(start, size, offset)
                offset += size
        return self._native

    def _share(self, address: int, size: int, offset: int) -> None:
        """Tell the data path of what is in files of a region that begins at `offset` of RAM."""
        for at, length, fd in self.files:
            first, end = max(at, offset), min(at + length, offset + size)
            if first < end:
                place = (address + first - offset, end - first, first - at, fd)
                file = ffi.new("struct pv_memory_file *", place)
                check(lib.pv_memory_share(self._native, file), "guest memory")

    def preallocate(
        self, memdevs: Sequence[Memdev], tell: Callable[[str], None], *, everything: bool
    ) -> None:
        """Have the host provide now what is to be there from the start, as `populate` says.

        That is `everything`, or what those of the `memdevs` have that say so.
        """
        if everything:
            self.populate(tell)
            return
        at = 0
        for memdev in memdevs:
            if memdev.prealloc:
                self.populate(tell, at, memdev.size)
            at += memdev.size

    def populate(self, tell: Callable[[str], None], at: int = 0, size: int = 0) -> None:
        """Have the host provide all of it now; `tell` gets a line each second that it takes.

        Or only `size` bytes from offset `at` in all RAM. ConfigError when there is not as much.
        """
        threads = len(os.sched_getaffinity(0))
        told = time.monotonic()
        size = size or self.size
        for done in range(0, size, _POPULATED_AT_ONCE):
            piece = min(_POPULATED_AT_ONCE, size - done)
            start = ffi.cast("void *", self.base + at + done)
            result = lib.pv_memory_populate(start, piece, threads)
            if result < 0:
                raise ConfigError(
                    f"-mem-prealloc: the host has no {size // MIB} MiB for the guest "
                    f"({os.strerror(-result)}); lower -m, or free some"
                )
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                tell(f"-mem-prealloc: {(done + piece) * 100 // size} % of the memory is there")

    def memslots(self) -> list[Any]:
        """Return what tells KVM of the RAM regions: memslots 0 and up (layout.RAM_MEMSLOT)."""
        found, offset = [], 0
        for slot, (start, size) in enumerate(self.regions, layout.RAM_MEMSLOT):
            region = (slot, 0, start, size, self.base + offset)
            found.append(ffi.new("struct kvm_userspace_memory_region *", region))
            offset += size
        return found

    def clear(self) -> None:
        """Let every byte be 0 again, and give the host its memory back; no device is at work."""
        if self.mapped:
            self._forget()
        at = 0
        for offset, size, _ in [*self.files, (self.size, 0, -1)]:
            if at < offset:
                self._map.madvise(mmap.MADV_DONTNEED, self._skip + at, offset - at)
            if size:
                self._map.madvise(mmap.MADV_REMOVE, self._skip + offset, size)
            at = offset + size

    def _forget(self) -> None:
        """Put memory that has no content in place of that which was mapped."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        start = ffi.cast("void *", self.base)
        if lib.mmap(start, self.size, protection, flags, -1, 0) != start:
            raise BackendError(f"guest memory: {os.strerror(ffi.errno)}")
        self.mapped = []
        if not self._is_dumped:
            self._map.madvise(mmap.MADV_DONTDUMP)

    def close(self) -> None:
        """Unmap and close; the VM must be gone, and whoever uses `native`."""
        if self._native is not None:
            ffi.release(self._native)
            self._native = None
        lib.pv_crash_memory(ffi.NULL, 0)
        self._view.release()
        self._map.close()
        self._close_pieces()


def _ask_for_huge_pages(mapping: mmap.mmap) -> None:
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return  # a kernel without transparent ones, or they are huge: right all the same


def _read(fd: int, offset: int, target: memoryview) -> None:
    done = 0
    while done < len(target):
        with target[done:] as rest:
            count = os.preadv(fd, [rest], offset + done)
        if count == 0:
            raise EOFError
        done += count
