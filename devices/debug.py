"""Ports for people who run guests: debug exit, boot timer, and the guest's own panic.

Each calls back on the writing vCPU's thread.
"""

from __future__ import annotations

from .power import ONES, Stateless

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..state import Fields


class DebugExit(Stateless):
    """Port 0xf4 as with QEMU's isa-debug-exit, but the value itself is the exit status."""

    SIZE = 4

    __slots__ = ("_on_exit",)

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """End the guest; an exit status has eight bits."""
        self._on_exit(value & 0xFF)


class BootTimer(Stateless):
    """A port that the guest's init writes when it runs; the value tells stages apart."""

    SIZE = 1
    INIT = 1

    __slots__ = ("_on_stage",)

    def __init__(self, on_stage: Callable[[int], None]) -> None:
        self._on_stage = on_stage

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """Report the stage."""
        self._on_stage(value & 0xFF)


class BochsPowerOff:
    """The port where Bochs, and QEMU once, were switched off: by the word "Shutdown"."""

    SIZE = 1
    _WORD = b"Shutdown"

    __slots__ = ("_next", "_on_shutdown")

    def __init__(self, on_shutdown: Callable[[], None]) -> None:
        self._on_shutdown = on_shutdown
        self._next = 0

    def read(self, offset: int, size: int) -> int:
        """Nothing to read."""
        return ONES

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the word's next letter; another one begins it anew."""
        letter = value & 0xFF
        self._next = self._next + 1 if letter == self._WORD[self._next] else 0
        if self._next == 0 and letter == self._WORD[0]:
            self._next = 1
        if self._next == len(self._WORD):
            self._next = 0
            self._on_shutdown()

    def save(self) -> dict[str, object]:
        """Return how many letters were written."""
        return {"letters": self._next}

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned; StateError."""
        self._next = fields.integer("letters", 0, len(self._WORD) - 1)

    def resume(self) -> None:
        """Nothing was on its way."""


class PanicPort(Stateless):
    """The pvpanic device: a kernel that panics writes what happened, if it has the driver.

    Source: QEMU, docs/specs/pvpanic.rst.
    """

    SIZE = 1
    PANICKED, CRASH_LOADED = 1 << 0, 1 << 1  # the second: a crash kernel takes over

    __slots__ = ("_on_panic",)

    def __init__(self, on_panic: Callable[[bool], None]) -> None:
        """`on_panic` is told whether a crash kernel takes over."""
        self._on_panic = on_panic

    def read(self, offset: int, size: int) -> int:
        """Return the events that can be told."""
        return self.PANICKED | self.CRASH_LOADED

    def write(self, offset: int, size: int, value: int) -> None:
        """Report a panic."""
        if value & (self.PANICKED | self.CRASH_LOADED):
            self._on_panic(not value & self.PANICKED)
