"""The bus: which device answers at which port or address.

Devices in C are entered in the C table and never seen here again; those in Python get each
access by one call. What nobody claims reads as all ones (native/vcpu/bus.h).
"""

from __future__ import annotations

from ..native import check, ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Device(Protocol):
        """What Python puts on the bus; called on the accessing vCPU's thread."""

        def read(self, offset: int, size: int) -> int:
            """Return the value of `size` bytes at `offset`.

            1, 2, 4 or 8, or any number up to 8 for a piece of an access that crosses a page.
            """

        def write(self, offset: int, size: int, value: int) -> None:
            """Take the value of `size` bytes at `offset`."""

    # Whether a vCPU's own thread may carry out a write there, whatever its sandbox.
    IsLight = Callable[[int], bool]


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
        self._light: dict[Device, IsLight] = {}
        # In a sandbox: carries out what vCPUs' threads may not, as Helpers.perform.
        self.perform: Callable[[Callable[[], None]], None] | None = None

    def add(
        self, space: int, base: int, size: int, device: Device, is_light: IsLight | None = None
    ) -> None:
        """Let a Python device serve `size` ports or bytes from `base`.

        Reads of one that `is_light` is given for, and writes for which it is true, do no more than
        look at memory, write to descriptors that are open, and change KVM's memory slots.
        """
        what = f"{('port', 'address')[space]} {base:#x}"
        check(lib.pv_bus_claim(self.handle, space, base, size), what)
        self._devices[space].append((base, size, device))
        if is_light is not None:
            self._light[device] = is_light

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
                if self.perform is None or self._may_serve(device, offset, access):
                    _answer(device, offset, access)
                else:
                    self._hand_over(device, offset, access)
                return
        raise AssertionError("an access to a range that nobody claimed")

    def _hand_over(self, device: Device, offset: int, access: Any) -> None:
        assert self.perform is not None
        self.perform(lambda: _answer(device, offset, access))

    def _may_serve(self, device: Device, offset: int, access: Any) -> bool:
        is_light = self._light.get(device)
        return is_light is not None and (not access.is_write or is_light(offset))


def _answer(device: Device, offset: int, access: Any) -> None:
    if access.is_write:
        device.write(offset, access.size, access.value)
    else:
        mask = (1 << (8 * access.size)) - 1
        access.value = device.read(offset, access.size) & mask
