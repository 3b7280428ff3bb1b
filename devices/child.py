"""A helper process of the monitor's own: what it complains of, and its end."""

from __future__ import annotations

import os
import signal
import time

from ..errors import BackendError
from ..native import lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# One goes by itself when its socket is closed; what does not is killed.
_END_S = 2.0


def check_allowed(who: str) -> None:
    """Raise BackendError where the machine is in a sandbox by now, and starts no process."""
    if lib.pv_sandbox_is_entered():
        raise BackendError(
            f"{who} cannot be started any more: the machine runs in its sandbox; have it from the "
            "start, or give -sandbox off"
        )


class Complaints:
    """A pipe for what a process writes to its stderr; what nobody reads is lost when it is full."""

    __slots__ = ("_is_chatter", "_read_fd", "write_fd")

    def __init__(self, is_chatter: Callable[[str], bool]) -> None:
        """`is_chatter` knows the lines that are said in good health."""
        self._is_chatter = is_chatter
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self.write_fd, False)

    def lines(self) -> list[str]:
        """Return what was said since the last call."""
        try:
            data = os.read(self._read_fd, 4096)
        except BlockingIOError:
            data = b""
        lines = data.decode(errors="replace").splitlines()
        return [line for line in lines if line and not self._is_chatter(line)]

    def close(self) -> None:
        """Close both ends."""
        os.close(self._read_fd)
        os.close(self.write_fd)


def end(pid: int, *, at_once: bool = False) -> None:
    """Wait for the end of a child whose socket is closed, and see to it if it does not come."""
    deadline = time.monotonic() + (0 if at_once else _END_S)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)
