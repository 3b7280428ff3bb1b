"""The limit on requests: StratoVirt's leaky bucket."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RATE = 100  # requests a second; as many may come at once


class LeakyBucket:
    """Each request is a drop; the bucket holds `RATE` and leaks as many a second."""

    __slots__ = ("_clock", "_level", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._level = 0.0
        self._seen = clock()

    def take(self) -> bool:
        """Return whether one more request fits in at this moment."""
        now = self._clock()
        self._level = max(0.0, self._level - (now - self._seen) * RATE)
        self._seen = now
        if self._level > RATE - 1:
            return False
        self._level += 1
        return True
