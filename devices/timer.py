"""Time as a guest's devices need it: a timer that calls back, and a clock.

Both stand while the machine is paused (`freeze` and `thaw`), and begin so.
"""

from __future__ import annotations

import _thread
import os
import select
import time

from ..errors import PyvirtError
from ..native import check, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NS_PER_MS = 1_000_000


class Timer:
    """Calls back once when a time is over, on a thread of its own, without a lock held.

    Any thread, the callback's as well, may call all but `close`. To start it anew with a later
    end, as a guest does that feeds its watchdog, wakes nobody: the thread sleeps to the end that
    it knows of, and looks then whether there is another.
    """

    __slots__ = ("_call", "_ends", "_fd", "_is_closed", "_is_frozen", "_left", "_lock", "_thread",
                 "_wakes")  # fmt: skip

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        """`name` is for reports of crashes. PyvirtError: there can be no thread."""
        self._call = call
        self._ends: int | None = None  # CLOCK_MONOTONIC in ns; None: not started, or frozen
        self._left: int | None = None  # ns that a frozen one has left; None: not started
        self._wakes: int | None = None  # the end that the thread sleeps to
        self._is_frozen = True
        self._is_closed = False
        self._lock = _thread.allocate_lock()
        self._thread = _thread.allocate_lock()  # held by the thread for its life
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread.acquire()
        try:
            _thread.start_new_thread(self._run, (name,))
        except RuntimeError as error:
            os.close(self._fd)
            raise PyvirtError(f"{name}: {error}; raise ulimit -u") from None

    def start(self, ns: int) -> None:
        """Let it end in so many nanoseconds, at once if there are none, instead of any before."""
        with self._lock:
            if self._is_frozen:
                self._left = ns
            else:
                self._set_end(time.monotonic_ns() + ns)

    def stop(self) -> None:
        """Let it not end; a callback that is under way goes on."""
        with self._lock:
            self._ends = self._left = None

    def left(self) -> int | None:
        """Return the nanoseconds to its end, None when it is not started."""
        with self._lock:
            if self._ends is None:
                return self._left
            return max(0, self._ends - time.monotonic_ns())

    def freeze(self) -> None:
        """Keep what is left."""
        with self._lock:
            if not self._is_frozen:
                self._is_frozen = True
                if self._ends is not None:
                    self._left = max(0, self._ends - time.monotonic_ns())
                self._ends = None

    def thaw(self) -> None:
        """Let what is left go by."""
        with self._lock:
            self._is_frozen = False
            left, self._left = self._left, None
            if left is not None:
                self._set_end(time.monotonic_ns() + left)

    def close(self) -> None:
        """Stop it, wait for a callback that is under way, and end the thread."""
        with self._lock:
            self._is_closed = True
            os.eventfd_write(self._fd, 1)
        with self._thread:
            os.close(self._fd)

    def _set_end(self, end: int) -> None:
        self._ends = end
        if self._wakes is None or end < self._wakes:
            os.eventfd_write(self._fd, 1)

    def _run(self, name: str) -> None:
        lib.pv_crash_thread(name.encode())
        check(lib.pv_sandbox_enter_control(), f"{name}: sandbox")
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        try:
            while (wait := self._next()) is not None:
                if wait == 0:
                    self._call()
                elif poll.poll(wait):
                    os.eventfd_read(self._fd)
        finally:
            self._thread.release()

    def _next(self) -> int | None:
        """Return how many ms to wait, -1 for any time; 0: it has ended; None: it is closed."""
        with self._lock:
            self._wakes = self._ends
            if self._is_closed:
                return None
            if self._ends is None:
                return -1
            left = self._ends - time.monotonic_ns()
            if left <= 0:
                self._ends = None
                return 0
            return -(-left // _NS_PER_MS)


class Clock:
    """Nanoseconds for which the machine has run; any thread."""

    __slots__ = ("_before", "_lock", "_since")

    def __init__(self) -> None:
        self._before = 0
        self._since: int | None = None
        self._lock = _thread.allocate_lock()

    def now(self) -> int:
        """Return them."""
        with self._lock:
            return self._now()

    def set(self, ns: int) -> None:
        """Go on from another count."""
        with self._lock:
            self._before += ns - self._now()

    def freeze(self) -> None:
        """Stand."""
        with self._lock:
            self._before, self._since = self._now(), None

    def thaw(self) -> None:
        """Run."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic_ns()

    def close(self) -> None:
        """Give nothing back: there is no more to it."""

    def _now(self) -> int:
        return self._before + (time.monotonic_ns() - self._since if self._since is not None else 0)
