"""Interrupt lines: an eventfd per GSI, wired to KVM's interrupt controllers (KVM_IRQFD).

A write of 1 to the descriptor, from any thread and any language, is one edge.
"""

from __future__ import annotations

import os

from ..native import ffi
from . import kvm


class InterruptLine:
    """One GSI's edge; owns its eventfd."""

    __slots__ = ("fd", "gsi")

    def __init__(self, vm_fd: int, gsi: int) -> None:
        self.gsi = gsi
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.connect(vm_fd)
        except BaseException:
            os.close(self.fd)
            raise

    def connect(self, vm_fd: int) -> None:
        """Wire the line to a VM; one that it was wired to before is closed."""
        kvm.IRQFD(vm_fd, ffi.new("struct kvm_irqfd *", {"fd": self.fd, "gsi": self.gsi}))

    def clear(self) -> None:
        """Forget the edges that no VM has taken."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the eventfd; KVM lets go of it by itself."""
        os.close(self.fd)
