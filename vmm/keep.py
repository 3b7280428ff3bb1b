"""What has to stay to the end of the process, because the host is at work on it still.

Off the start-up path; imported where a device did not come to its end.
"""

from __future__ import annotations

import _thread


def keep(*things: object) -> None:
    """Keep things alive for good, even while the interpreter takes itself apart."""
    lock = _thread.allocate_lock()
    lock.acquire()
    # What the frame of a thread refers to is never let go of.
    _thread.start_new_thread(_hold, (lock, things))


def _hold(lock: _thread.LockType, _things: object) -> None:
    lock.acquire()
