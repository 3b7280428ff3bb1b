"""Threads that do what a vCPU's own may not, whose list in a sandbox is to run the guest.

An access that starts or stops a device, or ends or resets the guest, is carried out here while the
vCPU waits. Imported where there is a sandbox only.
"""

from __future__ import annotations

import _thread
import os

from ..native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class _Job:
    """What is to be done, and what came of it."""

    __slots__ = ("done", "error", "what")

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what
        self.error: BaseException | None = None
        self.done = _thread.allocate_lock()
        self.done.acquire()


class Helpers:
    """As many threads as are at work at once, and one that waits; they stay to the process's end.

    They are started by one another, not by who has a job, so they are under no list of a vCPU.
    """

    __slots__ = ("_fd", "_idle", "_jobs", "_lock")

    def __init__(self) -> None:
        """Start the first; RuntimeError."""
        self._jobs: list[_Job] = []
        self._idle = 0
        self._lock = _thread.allocate_lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._add()

    def perform(self, what: Callable[[], None]) -> None:
        """Have `what` done, and return or raise what it does; any thread."""
        job = _Job(what)
        self._jobs.append(job)
        os.eventfd_write(self._fd, 1)
        job.done.acquire()
        if job.error is not None:
            raise job.error

    def _add(self) -> None:
        self._idle += 1
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        lib.pv_crash_thread(b"helper")
        while True:
            os.eventfd_read(self._fd)
            self._look_for_another()
            self._do(self._jobs.pop(0))
            with self._lock:
                self._idle += 1

    def _look_for_another(self) -> None:
        """Have somebody wait for the next job, as this one may take its time."""
        with self._lock:
            self._idle -= 1
            if self._idle == 0:
                try:
                    self._add()
                except RuntimeError:  # there can be none, so the next job waits for this one
                    self._idle -= 1

    @staticmethod
    def _do(job: _Job) -> None:
        try:
            job.what()
        except BaseException as error:  # noqa: BLE001  (it is whose job this is that judges it)
            job.error = error
        job.done.release()
