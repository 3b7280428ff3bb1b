"""The register pages of all slots, side by side in one memslot that the guest can only read.

Its reads cost no exit, its writes reach the bus. Source: Documentation/virt/kvm/api.rst,
KVM_MEM_READONLY.
"""

from __future__ import annotations

import mmap

from ..devices.virtio import registers
from ..native import ffi, lib
from . import kvm, layout


class RegisterPages:
    """Owns the pages until `close`; any thread, one at a time."""

    __slots__ = ("_pages", "_vm_fd", "count")

    def __init__(self, count: int) -> None:
        """Make `count` pages, of zeroes."""
        self.count = count
        self._vm_fd = -1
        self._pages = mmap.mmap(
            -1, count * registers.PAGE_SIZE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
        )

    def page(self, index: int) -> memoryview:
        """Return one; it is to be released before `close`."""
        start = index * registers.PAGE_SIZE
        return memoryview(self._pages)[start : start + registers.PAGE_SIZE]

    def connect(self, vm_fd: int) -> None:
        """Show a VM the pages; KvmError. One that they belonged to before is closed."""
        if vm_fd != self._vm_fd:
            self._vm_fd = vm_fd
            self.show()

    def show(self) -> None:
        """Let the guest read them without an exit."""
        self._set(len(self._pages))

    def hide(self) -> None:
        """Let each access of the guest reach the bus."""
        self._set(0)

    def _set(self, size: int) -> None:
        with ffi.from_buffer(self._pages) as start:
            host = int(ffi.cast("uintptr_t", start))
        region = (layout.VIRTIO_MEMSLOT, lib.KVM_MEM_READONLY, layout.VIRTIO_MMIO, size, host)
        kvm.SET_USER_MEMORY_REGION(
            self._vm_fd, ffi.new("struct kvm_userspace_memory_region *", region)
        )

    def close(self) -> None:
        """Unmap them; the VM is gone, and views of them."""
        self._pages.close()
