"""The bus: which device answers at which port or address.

Devices in C are entered in the C table and never seen here again; those in Python get each
access by one call. What nobody claims reads as all ones (native/vcpu/bus.h).
"""

from __future__ import annotations

from ..native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Device(Protocol):
        """What Python puts on the bus; called on the accessing vCPU's thread."""

        def read(self, offset: int, size: int) -> int:
            """Return the value of `size` bytes at `offset`.

            1, 2, 4 or 8, or any number up to 8 for a piece of an access that crosses a page.
            """

        def write(self, offset: int, size: int, value: int) -> None:
            """Take the value of `size` bytes at `offset`."""


PIO = 0
MMIO = 1


class Bus:
    """Port and memory-mapped I/O space of one machine; ranges are added before it starts."""

    def __init__(self) -> None:
        handle = ffi.new("struct pv_bus **")
        check(lib.pv_bus_new(handle), "bus")
        self.handle: Any = ffi.gc(handle[0], lib.pv_bus_free)
        self._devices: tuple[list[tuple[int, int, Device]], list[tuple[int, int, Device]]] = (
            [],
            [],
        )

    def add(self, space: int, base: int, size: int, device: Device) -> None:
        """Let a Python device serve `size` ports or bytes from `base`."""
        what = f"{('port', 'address')[space]} {base:#x}"
        check(lib.pv_bus_claim(self.handle, space, base, size), what)
        self._devices[space].append((base, size, device))

    def add_ports(self, base: int, size: int, read: str, write: str, opaque: Any) -> None:
        """Let the C functions named `read` and `write` serve `size` ports from `base`."""
        check(
            lib.pv_bus_add_ports(
                self.handle, base, size, ffi.addressof(lib, read), ffi.addressof(lib, write), opaque
            ),
            f"port {base:#x}",
        )

    def serve(self, access: Any) -> None:
        """Answer one access (struct pv_access) that the C side handed over."""
        for base, size, device in self._devices[access.space]:
            offset = access.address - base
            if 0 <= offset < size:
                if access.is_write:
                    device.write(offset, access.size, access.value)
                else:
                    mask = (1 << (8 * access.size)) - 1
                    access.value = device.read(offset, access.size) & mask
                return
        raise AssertionError("an access to a range that nobody claimed")
