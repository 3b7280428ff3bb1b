"""Guest memory: one memfd, mapped once, told to KVM as one memslot per RAM region."""

from __future__ import annotations

import mmap
import os

from ..errors import ConfigError
from ..native import ffi
from . import kvm, layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MIB = 1 << 20
SIZE_MIN = 128 * MIB
SIZE_MAX = 512 << 30


class GuestMemory:
    """The RAM of one guest, addressed by guest-physical address.

    Control-plane use only: boot loaders and inspection. Owns the memfd and the mapping until
    `close`; a view handed out must be gone by then. Addresses outside RAM raise IndexError.
    """

    def __init__(self, size: int) -> None:
        """Map `size` bytes (128 MiB to 512 GiB, whole MiB); untouched pages cost nothing."""
        self.size = size
        self.regions = layout.ram_regions(size)
        self.fd = os.memfd_create("pyvirt-ram", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(f"-m: cannot map {size // MIB} MiB: {error.strerror}") from None
        self._view = memoryview(self._map)

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

    def load(self, address: int, fd: int, offset: int, length: int) -> None:
        """Read `length` bytes of a file straight to `address`; EOFError when it is shorter."""
        target = self.view(address, length)
        done = 0
        while done < length:
            count = os.preadv(fd, [target[done:]], offset + done)
            if count == 0:
                raise EOFError
            done += count

    def register(self, vm_fd: int) -> None:
        """Tell KVM the RAM regions, as memslots 0 and up."""
        base: Any = ffi.cast("uintptr_t", ffi.from_buffer(self._map))
        offset = 0
        for slot, (start, size) in enumerate(self.regions):
            region = ffi.new(
                "struct kvm_userspace_memory_region *", (slot, 0, start, size, int(base) + offset)
            )
            kvm.SET_USER_MEMORY_REGION(vm_fd, region)
            offset += size

    def close(self) -> None:
        """Unmap and close; the VM must be gone."""
        self._view.release()
        self._map.close()
        os.close(self.fd)
