"""Who may change a device now, and how long anybody waits for that; docs/machine.md has the rules.

A device's turn may take as long as the host takes to complete requests, LIMIT_S at most. So those
whom no device may hold up (the main loop above all) never wait for one: what they have to do is
done by whoever has the turn, at its end.
"""

from __future__ import annotations

import _thread

from ...errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 5.0  # that anybody waits for a device, which is given up then


class Turn:
    """A lock around a device's state; `with` waits for it, without a limit: for vCPUs.

    They wait for one another's accesses, and for a change that itself has LIMIT_S.
    """

    __slots__ = ("_afterwards", "_is_due", "_lock", "_name")

    def __init__(self, name: str, afterwards: Callable[[], None] = lambda: None) -> None:
        """`name` is how messages call the device; `afterwards` is what `later` puts off."""
        self._name = name
        self._afterwards = afterwards
        self._is_due = False
        self._lock = _thread.allocate_lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        self._settle()

    def soon(self, limit: float | None = None) -> Soon:
        """Return this for a `with` that raises BackendError when it has no turn in `limit` s.

        None: LIMIT_S.
        """
        return Soon(self, LIMIT_S if limit is None else limit)

    def take(self, limit: float) -> None:
        """Wait for the turn, which ends as that of `with` does; BackendError after `limit` s."""
        if not self._lock.acquire(timeout=limit):
            raise BackendError(
                f"{self._name}: the host keeps it busy for more than {limit:g} s; "
                "see to what is behind it, then ask again"
            )

    def later(self) -> None:
        """Have `afterwards` called in a turn: now, or after that of who has it. Never waits."""
        self._is_due = True
        self._settle()

    def _settle(self) -> None:
        while self._is_due and self._lock.acquire(blocking=False):
            self._is_due = False
            try:
                self._afterwards()
            finally:
                self._lock.release()


class Soon:
    """A turn that is waited for with a limit."""

    __slots__ = ("_limit", "_turn")

    def __init__(self, turn: Turn, limit: float) -> None:
        self._turn = turn
        self._limit = limit

    def __enter__(self) -> None:
        self._turn.take(self._limit)

    def __exit__(self, *_: object) -> None:
        self._turn.__exit__()
