"""The thread that looks after a device's back end, in turns with who else changes the device."""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import time

from ...errors import BackendError, unexpected
from ...native import check, lib
from ..virtio import turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE_S = 0.01  # after a turn in which there was more to do than it may


class Attendant:
    """Owns the thread from `start` to `close`."""

    __slots__ = (
        "_attend",
        "_ended",
        "_fail",
        "_is_closing",
        "_name",
        "_sources",
        "_turn",
        "_wake",
    )

    def __init__(
        self,
        name: str,
        turn: turn.Turn,
        *,
        sources: Callable[[], tuple[list[int], float | None]],
        attend: Callable[[], bool],
        fail: Callable[[str], None],
    ) -> None:
        """Take what the thread calls; it does not run yet.

        `sources` returns the descriptors to wait for, and how long, in ms, None without a limit;
        what is closed meanwhile does no harm. `attend`, in a turn, does what is to do and returns
        whether there may be more at once. `fail` is told why it cannot go on.
        """
        self._name = name
        self._turn = turn
        self._sources = sources
        self._attend = attend
        self._fail = fail
        self._is_closing = False
        self._ended = _thread.allocate_lock()
        self._wake = -1

    def start(self) -> None:
        """Let it run; OSError, RuntimeError."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except BaseException:
            self._ended.release()
            raise

    def stir(self) -> None:
        """Have it look at what has changed; any thread."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> bool:
        """End it; return whether it has ended within LIMIT_S, or else uses the device still."""
        if self._wake < 0:
            return True
        self._is_closing = True
        self.stir()
        if not self._ended.acquire(timeout=turn.LIMIT_S):
            return False
        os.close(self._wake)
        self._wake = -1
        return True

    def _run(self) -> None:
        lib.pv_crash_thread(self._name.encode(errors="replace"))
        is_busy = False
        try:
            check(lib.pv_sandbox_enter_control(), "sandbox")
            while not self._is_closing:
                self._wait(is_busy)
                try:
                    with self._turn.soon():
                        is_busy = not self._is_closing and self._attend()
                except BackendError:
                    continue  # whoever has the turn waits for the back end
                if is_busy:
                    time.sleep(_PAUSE_S)
        except BaseException as error:  # noqa: BLE001  (one device's fault is not to cost the machine)
            self._fail(unexpected(error))
        finally:
            self._ended.release()

    def _wait(self, is_busy: bool) -> None:
        """Wait until there is something to do."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        fds, limit = self._sources()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        poll.poll(0 if is_busy else limit)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
