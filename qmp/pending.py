"""Events on their way to the clients, from any thread to the server's; bounded, by two rules.

An event that a guest can cause (schema.Event.is_limited) is told at most once a second of each
device, as by QEMU: the first goes at once, of those that follow within INTERVAL_S the last, when
the interval is over. So a guest that causes one for ever costs its clients a line a second.

The others are answers to what clients do. Should QUEUE_MAX of them wait, because the server's
thread is held up, the oldest give way, and the log says how many.
"""

from __future__ import annotations

import _thread
import time
from collections import deque
from typing import TYPE_CHECKING

from . import events
from .framing import encode

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 1.0
QUEUE_MAX = 256
# Beyond so many devices that have spoken, those whose interval is over are forgotten.
_FORGET_ABOVE = 64


class _Held:
    """An event of a device that was told: the next, the last of several, waits until `until`."""

    __slots__ = ("event", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.event: dict[str, object] | None = None


class Pending:
    """What waits. `put` is for any thread and never waits for a client; `take` for one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._lock = _thread.allocate_lock()
        self._queue: deque[dict[str, object]] = deque()
        self._held: dict[tuple[str, str], _Held] = {}
        self._dropped = 0

    def put(self, name: str, data: dict[str, object]) -> bool:
        """Let an event wait; return whether whoever takes it must be woken."""
        event, kind = events.event(name, data), events.BY_NAME[name]
        with self._lock:
            if not kind.is_limited:
                if name == events.SHUTDOWN:
                    self._release()
                self._append(event)
                return True
            key = name, str(data.get(kind.of, ""))
            held, now = self._held.get(key), self._clock()
            if held is not None and (now < held.until or held.event is not None):
                is_first, held.event = held.event is None, event
                return is_first
            if len(self._held) >= _FORGET_ABOVE:
                self._forget(now)
            self._held[key] = _Held(now + INTERVAL_S)
            self._append(event)
            return True

    def _append(self, event: dict[str, object]) -> None:
        if len(self._queue) == QUEUE_MAX:
            self._queue.popleft()
            self._dropped += 1
        self._queue.append(event)

    def _release(self) -> None:
        """Let nothing be held back any more, as nothing comes behind the machine's end."""
        for held in self._held.values():
            if held.event is not None:
                self._append(held.event)
        self._held.clear()

    def _forget(self, now: float) -> None:
        over = [k for k, held in self._held.items() if held.until <= now and held.event is None]
        for key in over:
            del self._held[key]

    def take(self) -> list[bytes]:
        """Return the events that are due, as clients get them."""
        with self._lock:
            now = self._clock()
            for held in self._held.values():
                if held.event is not None and held.until <= now:
                    self._append(held.event)
                    held.event, held.until = None, now + INTERVAL_S
            due = list(self._queue)
            self._queue.clear()
        return [encode(event) for event in due]

    def patience(self) -> float | None:
        """Return in how many seconds there is something to take by itself; None: never."""
        with self._lock:
            untils = [held.until for held in self._held.values() if held.event is not None]
            return max(0.0, min(untils) - self._clock()) if untils else None

    def take_dropped(self) -> int:
        """Return how many events gave way since the last call."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        return dropped
