"""Children of a server that wait to become machines, so that nobody waits for a fork."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from . import child
from .limits import LINE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from .child import Enter
    from .connection import Run

_SECOND = 2


@dataclass(eq=False)
class Waiting:
    """A child that waits to become a machine."""

    pid: int
    pidfd: int
    channel: socket.socket
    heard: int = 0  # messages


class Spares:
    """Children that wait to become machines, the oldest first; owns them until `close`."""

    def __init__(self, count: int) -> None:
        """Have as many wait; they are made one after the other."""
        self._count = count
        self.waiting: list[Waiting] = []
        self.taken: set[Waiting] = set()  # whose guests do not run yet
        # Another child is to wait: when the machine before runs its guest, for that goes first.
        self.is_due = False

    def _life(self, enter: Enter) -> Callable[[socket.socket], NoReturn]:
        """Return what a child is to do, with its end of the channel."""
        raise NotImplementedError

    def _heard(self, waiting: Waiting, data: bytes) -> None:
        """Take what a child says before it closes the channel."""

    def refill(self, enter: Enter) -> Waiting | None:
        """Have a child more wait, if that is due and too few do; return it.

        OSError.
        """
        is_due, self.is_due = self.is_due, False
        if not is_due or len(self.waiting) >= self._count:
            return None
        started = self._start(enter)
        self.waiting.append(started)
        return started

    def _start(self, enter: Enter) -> Waiting:
        life, parent = self._life(enter), os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    child.live(lambda: life(theirs), parent)
                try:
                    return Waiting(pid, os.pidfd_open(pid), ours)
                except BaseException:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise
            except BaseException:
                ours.close()
                raise

    def take_waiting(
        self, run: Run, fds: dict[int, int], control: int, asked_ns: int
    ) -> Waiting | None:
        """Return the child that becomes what `run` says, None when none waits; OSError."""
        for waiting in list(self.waiting):
            try:
                child.ask(waiting.channel, run, fds, control, asked_ns)
            except BrokenPipeError:
                continue  # its end is seen to in a moment
            self.waiting.remove(waiting)
            self.taken.add(waiting)
            return waiting
        return None

    def hear(self, waiting: Waiting) -> bool:
        """Hear that a child is prepared; False: its guest runs, or it has ended."""
        try:
            data = waiting.channel.recv(LINE_MAX)
        except OSError:
            data = b""  # it has ended, and not read what it was told
        # One that ended while it waited is not replaced: the next would, too.
        is_taken = waiting in self.taken
        self.is_due = self.is_due or bool(data) != is_taken
        if data:
            waiting.heard += 1
            self._heard(waiting, data)
        else:
            self.taken.discard(waiting)
        return bool(data)

    def close(self) -> None:
        """Let them go; machines that run go on."""
        for waiting in self.waiting:
            signal.pidfd_send_signal(waiting.pidfd, signal.SIGKILL)
        self.is_due = False


class Ahead(Spares):
    """Those of a server itself: what machines begin with is made by how the last one began."""

    def __init__(self, count: int = 0) -> None:
        """Have as many, which is due at once."""
        super().__init__(count)
        self.is_due = True
        self._wanted = b""

    def _life(self, enter: Enter) -> Callable[[socket.socket], NoReturn]:
        wanted = self._wanted
        return lambda channel: child.wait_to_become(
            channel, (), lambda: child.PreparedMachine(channel, wanted), enter
        )

    def missed(self) -> None:
        """Note that a machine is started without one."""
        self.is_due = self.is_due or not (self.waiting or self.taken)

    def _heard(self, waiting: Waiting, data: bytes) -> None:
        # The first is that it waits. What comes behind the second may be a guest's doing.
        if waiting.heard == _SECOND:
            self._wanted = data
