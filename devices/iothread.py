"""A thread that devices share (`-object iothread`); native/iothread/iothread.h has the rules."""

from __future__ import annotations

from ..native import check, ffi, lib


class IoThread:
    """It runs while a device that names it is active; `handle` is the struct pv_iothread.

    Lives as long as somebody refers to it, as every device that uses it does.
    """

    __slots__ = ("handle", "id")

    def __init__(self, id: str) -> None:  # noqa: A002  (the field's word)
        self.id = id
        out = ffi.new("struct pv_iothread **")
        check(lib.pv_iothread_new(lib.PV_SANDBOX_IOTHREAD, id.encode(), out), f"iothread {id}")
        self.handle = ffi.gc(out[0], lib.pv_iothread_free)

    @property
    def thread_id(self) -> int:
        """Return its thread id, 0 while it does not run."""
        return int(lib.pv_iothread_tid(self.handle))
