"""Guest memory: mapped once, told to KVM as one memslot per RAM region.

Private memory in huge pages by default: a guest's first touch of 2 MiB is one fault. Shared
memory is a memfd, for processes that are to see it too, in pages of 4 KiB. Other kinds are in
`backing`.
"""

from __future__ import annotations

import mmap
import os
import time

from ..errors import ConfigError
from ..native import check, ffi, lib
from . import kvm, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .backing import Backing

MIB = 1 << 20
SIZE_MIN = 128 * MIB
SIZE_MAX = 512 << 30
_PAGE = 4096
_HUGE_PAGE = 2 << 20
_POPULATED_AT_ONCE = 256 * MIB
_MAP_NORESERVE = 0x4000  # asm-generic/mman.h; the mmap module names it from Python 3.12 on


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
        backing: Backing | None = None,
    ) -> None:
        """Map `size` bytes (128 MiB to 512 GiB, whole MiB); untouched pages cost nothing.

        `fd` is the file that has what the guest writes, as it has when `shared`; -1 when there is
        none. Core dumps of this process have no guest memory in them unless it is to be `dumped`.
        """
        self.size = size
        self.regions = layout.ram_regions(size)
        self.fd = -1
        try:
            if shared and backing is None:
                from .backing import Backing  # noqa: PLC0415  (not every guest's start needs it)

                backing = Backing("-machine mem-share", shared=True)
            if backing is not None:
                self.fd, self._map = backing.open(size, shared=shared)
            else:
                self._map = self._map_private()
        except OSError as error:
            raise ConfigError(f"-m: cannot map {size // MIB} MiB: {error.strerror}") from None
        if not dumped:
            self._map.madvise(mmap.MADV_DONTDUMP)
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(self._map)))
        skip = 0 if backing is not None else -base % _HUGE_PAGE
        self._base = base + skip
        lib.pv_crash_memory(ffi.cast("void *", self._base), size)
        self._view = memoryview(self._map)[skip : skip + size]
        self._native: Any = None

    def _map_private(self) -> mmap.mmap:
        # KVM maps a huge page only where guest and host address are alike in their low bits.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        mapping = mmap.mmap(-1, self.size + _HUGE_PAGE, flags)
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            # A kernel without transparent huge pages: slower, and right all the same.
            return mapping
        return mapping

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
        page = ffi.cast("void *", self._base + self._offset(address & -_PAGE, _PAGE))
        # To allow execution takes nothing from a thread that uses the page, and KVM is told of it.
        lib.mprotect(page, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        lib.mprotect(page, _PAGE, mmap.PROT_READ | mmap.PROT_WRITE)

    def load(self, address: int, fd: int, offset: int, length: int) -> None:
        """Read `length` bytes of a file straight to `address`; EOFError when it is shorter."""
        done = 0
        # Released at once: views that a traceback keeps alive would stand in the way of `close`.
        with self.view(address, length) as target:
            while done < length:
                with target[done:] as rest:
                    count = os.preadv(fd, [rest], offset + done)
                if count == 0:
                    raise EOFError
                done += count

    def native(self) -> Any:
        """Return the struct pv_memory through which the data path sees this RAM; until `close`."""
        if self._native is None:
            out = ffi.new("struct pv_memory **")
            check(lib.pv_memory_new(out), "guest memory")
            self._native = ffi.gc(out[0], lib.pv_memory_free)
            offset = 0
            for start, size in self.regions:
                host = ffi.cast("void *", self._base + offset)
                check(lib.pv_memory_add(self._native, start, size, host), "guest memory")
                if self.fd >= 0:
                    lib.pv_memory_share(self._native, self.fd, offset)
                offset += size
        return self._native

    def populate(self, tell: Callable[[str], None]) -> None:
        """Have the host provide all of it now; `tell` gets a line each second that it takes.

        ConfigError when there is not as much.
        """
        threads = len(os.sched_getaffinity(0))
        told = time.monotonic()
        for done in range(0, self.size, _POPULATED_AT_ONCE):
            piece = min(_POPULATED_AT_ONCE, self.size - done)
            start = ffi.cast("void *", self._base + done)
            result = lib.pv_memory_populate(start, piece, threads)
            if result < 0:
                raise ConfigError(
                    f"-mem-prealloc: the host has no {self.size // MIB} MiB for the guest "
                    f"({os.strerror(-result)}); lower -m, or free some"
                )
            if time.monotonic() - told >= 1:
                told = time.monotonic()
                tell(f"-mem-prealloc: {(done + piece) * 100 // self.size} % of the memory is there")

    def register(self, vm_fd: int) -> None:
        """Tell KVM the RAM regions, as memslots 0 and up (layout.RAM_MEMSLOT)."""
        offset = 0
        for slot, (start, size) in enumerate(self.regions, layout.RAM_MEMSLOT):
            region = ffi.new(
                "struct kvm_userspace_memory_region *", (slot, 0, start, size, self._base + offset)
            )
            kvm.SET_USER_MEMORY_REGION(vm_fd, region)
            offset += size

    def clear(self) -> None:
        """Let every byte be 0 again, and give the host its memory back; no device is at work."""
        self._map.madvise(mmap.MADV_DONTNEED if self.fd < 0 else mmap.MADV_REMOVE)

    def close(self) -> None:
        """Unmap and close; the VM must be gone, and whoever uses `native`."""
        if self._native is not None:
            ffi.release(self._native)
            self._native = None
        lib.pv_crash_memory(ffi.NULL, 0)
        self._view.release()
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
