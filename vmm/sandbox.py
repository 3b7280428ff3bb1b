"""What contains a machine's threads: the lists of native/sandbox/table.py.

Imported unless the sandbox is off. Which files a machine may open is landlock.py's affair.
"""

from __future__ import annotations

import _thread
import errno
import os

from ..errors import ConfigError
from ..native import check, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .machine import Machine

OPTION = "-sandbox-path"  # of landlock.py
_MODES = {"off": lib.PV_SANDBOX_OFF, "on": lib.PV_SANDBOX_ON, "log": lib.PV_SANDBOX_LOG}
# Shared objects of the standard library, which cannot be loaded any more in it, and which monitors
# have a use for: requests, devices and chardevs that are plugged.
_LOADED = ("_json", "resource", "termios")
# An environment's: the file in which tests have noted what entries of the lists are used for.
RECORD = "PYVIRT_SANDBOX_RECORD"


def arm(mode: str) -> None:
    """Have threads that are started from now on take their lists; ConfigError.

    After the report on crashes is there, which tells of a call that is on none.
    """
    if name := os.environ.get(RECORD):
        _record(name)
    if lib.pv_sandbox_arm(_MODES[mode]) < 0:
        raise ConfigError(
            f"-sandbox {mode}: this host's kernel has no seccomp filters; give -sandbox off, or "
            "have it built with CONFIG_SECCOMP_FILTER"
        )


def _record(name: str) -> None:
    """Have what the lists are used for noted, where the file can be reached from here."""
    try:
        fd = os.open(name, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        check(lib.pv_sandbox_record(fd), RECORD)
    finally:
        os.close(fd)


def load() -> None:
    """Load what could not be loaded any more, and monitors have a use for."""
    for name in _LOADED:
        __import__(name)


def out_of_reach(text: str) -> str:
    """Return what a message is to say of files that are out of reach, "" where that is not it."""
    reasons = (os.strerror(errno.EACCES), os.strerror(errno.EXDEV))
    if lib.pv_landlock_is_on() and any(reason in text for reason in reasons):
        return f" (only what {OPTION} names can be reached)"
    return ""


def enter(machine: Machine, *, is_monitored: bool) -> Helpers:
    """Let the calling thread, and those that it starts, do no more than a running machine needs.

    All that needs more is set up; no vCPU's thread is there yet. Return those who help these,
    which are to be started when the guest is. PyvirtError.
    """
    if is_monitored:
        load()
    check(lib.pv_sandbox_enter(lib.PV_SANDBOX_CONTROL), "-sandbox")
    helpers = Helpers()
    machine.delegate(helpers.perform)
    return helpers


class _Job:
    """What is to be done, and what came of it."""

    __slots__ = ("done", "error", "what")

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what
        self.error: BaseException | None = None
        self.done = _thread.allocate_lock()
        self.done.acquire()


class Helpers:
    """Threads that do what a vCPU's own may not, whose list is to run the guest.

    An access that starts or stops a device, or ends or resets the guest, is carried out here while
    the vCPU waits. There are as many as are at work at once, and one that waits; they stay to the
    process's end. They are started by one another, not by who has a job, and so are under no list
    of a vCPU.
    """

    __slots__ = ("_fd", "_idle", "_jobs", "_lock")

    def __init__(self) -> None:
        """None is there before `start`, and a job waits until then."""
        self._jobs: list[_Job] = []
        self._idle = 0
        self._lock = _thread.allocate_lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)

    def start(self) -> None:
        """Start the first; RuntimeError."""
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
            job = self._jobs.pop(0)
            self._do(job)
            # Before its asker goes on, whose next job needs no other thread than this.
            with self._lock:
                self._idle += 1
            job.done.release()

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
