"""Descriptors that a client sends along (SCM_RIGHTS), and the names it gives them."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from ..errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Sequence

ARRIVED_MAX = 16
NAMED_MAX = 64


class Descriptors:
    """One client's; owns them all until `close`."""

    __slots__ = ("_arrived", "_named")

    def __init__(self) -> None:
        self._arrived: deque[int] = deque()
        self._named: dict[str, int] = {}

    def arrive(self, fds: Sequence[int]) -> None:
        """Keep what came with some bytes for the next `getfd`; too many push out the oldest."""
        for fd in fds:
            if len(self._arrived) == ARRIVED_MAX:
                os.close(self._arrived.popleft())
            self._arrived.append(fd)

    def name(self, name: str) -> None:
        """Give the oldest that has arrived a name, in place of who has it."""
        if name[0].isdigit():
            raise QmpError(f"`fdname` {name} begins with a digit; give a name that does not")
        if len(self._named) == NAMED_MAX and name not in self._named:
            raise QmpError(f"{NAMED_MAX} descriptors have names already; send closefd for some")
        if not self._arrived:
            raise QmpError("Invalid SCM message")
        old = self._named.pop(name, None)
        if old is not None:
            os.close(old)
        self._named[name] = self._arrived.popleft()

    def get(self, name: str) -> int:
        """Return the descriptor of a name; it stays ours."""
        fd = self._named.get(name)
        if fd is None:
            raise QmpError(f"File descriptor named '{name}' not found; send it with getfd first")
        return fd

    def drop(self, name: str) -> None:
        """Close the descriptor of a name."""
        fd = self.get(name)
        del self._named[name]
        os.close(fd)

    def close(self) -> None:
        """Close them all."""
        while self._arrived:
            os.close(self._arrived.pop())
        while self._named:
            os.close(self._named.popitem()[1])
