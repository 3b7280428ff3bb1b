"""The test device of kvm-unit-tests: a register, a page to flush, interrupt lines, slow memory.

As QEMU's pc-testdev, whose ports and addresses it has (vmm/layout.py). Each part is called on the
accessing vCPU's thread, and several vCPUs may call at once.
"""

from __future__ import annotations

from .power import ONES, Stateless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import Fields


class SlowMemory:
    """Bytes that are read and written by exits alone: the register of four, or 64 KiB of memory."""

    REGISTER_SIZE = 4
    MEMORY_SIZE = 0x1_0000

    __slots__ = ("_bytes",)

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)

    def read(self, offset: int, size: int) -> int:
        """Return the bytes, the lowest first."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Keep the bytes."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._bytes[offset : offset + size] = data

    def save(self) -> dict[str, object]:
        """Return the bytes."""
        return {"bytes": self._bytes.hex()}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        self._bytes[:] = fields.data("bytes", len(self._bytes))

    def resume(self) -> None:
        """Nothing was on its way."""

    def reset(self) -> None:
        """Forget all."""
        self._bytes[:] = bytes(len(self._bytes))


class FlushPort(Stateless):
    """A port that takes an address in memory, whose page KVM then has to map anew."""

    SIZE = 4

    __slots__ = ("_flush",)

    def __init__(self, flush: Callable[[int], None]) -> None:
        self._flush = flush

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """Flush a page; only whole words count."""
        if size == self.SIZE:
            self._flush(value & 0xFFFF_FFFF)


class LinePorts(Stateless):
    """A port for each interrupt line: what is written is its level."""

    __slots__ = ("_set",)

    def __init__(self, set_line: Callable[[int, bool], None]) -> None:
        self._set = set_line

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """Raise or lower a line; only bytes count."""
        if size == 1:
            self._set(offset, value & 0xFF != 0)
