"""Turns at a machine: one change at a time."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Change:
    """A context in which nobody else changes the machine, which can be changed.

    `lock` alone is for who does not care whether it can.
    """

    __slots__ = ("_check", "lock")

    def __init__(self, check: Callable[[], None]) -> None:
        """`check` says by a PyvirtError why it cannot; it is called with the lock held."""
        self._check = check
        self.lock = _thread.allocate_lock()

    def __enter__(self) -> None:
        self.lock.acquire()
        try:
            self._check()
        except BaseException:
            self.lock.release()
            raise

    def __exit__(self, *error: object) -> None:
        self.lock.release()
