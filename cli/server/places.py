"""Templates that a server has, by their names, and the children that are forks in waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...vmm.snapshot import template as templates
from . import child
from .connection import Connection, Refused
from .limits import LINE_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...vmm.snapshot.template import Template
    from .child import Enter
    from .connection import Run

PLACES_MAX = 64
SPARES_MAX = 16


@dataclass(eq=False)
class Waiting:
    """A child that waits to become a fork."""

    pid: int
    pidfd: int
    channel: socket.socket
    is_taken: bool = False  # and about to be a fork


class Place:
    """A template of a server, or room for one; owns all of it until `close`.

    `tell` gets {"ready": true} when the first fork is prepared, or {"error": TEXT}.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None], *, spares: int = 1) -> None:
        """Have as many `spares` wait, up to SPARES_MAX; they are made one after the other."""
        self._tell: Callable[[dict[str, object]], None] | None = tell
        self._spares = spares
        self.template: Template | None = None
        self.giver: Connection | None = None  # who is to fill it
        self.waiting: list[Waiting] = []  # the oldest first
        # Another child is to wait: when the fork before runs its guest, for that goes first.
        self.is_due = False
        self._words: list[str] = []  # of the last fork
        self._rehearsal = child.Rehearsal(self._words)

    def give(self, giver: Connection) -> None:
        """Note who is to fill it; Refused when it is not empty."""
        if self.template is not None or self.giver is not None:
            raise Refused("there is a template already; make another")
        self.giver = giver

    def fill(self, fds: list[int]) -> None:
        """Take over the template; Refused, StateError."""
        if len(fds) < 2:
            raise Refused("descriptors of a state and a memory are to come with it")
        given, fds[:] = list(fds), []
        self.set(templates.take(*given))

    def set(self, template: Template) -> None:
        """Have a template that was made here."""
        self.template = template
        self.is_due = True

    def refill(self, enter: Enter) -> Waiting | None:
        """Have a child more wait, if that is due and too few do; return it.

        OSError.
        """
        is_due, self.is_due = self.is_due, False
        if not is_due or len(self.waiting) >= self._spares:
            return None
        started = self._start(enter)
        self.waiting.append(started)
        return started

    def _start(self, enter: Enter) -> Waiting:
        template, parent = self.template, os.getpid()
        assert template is not None
        # Here, and not in each child, that would have pages of its own of all that it takes.
        if not self._rehearsal.is_of(self._words):
            self._rehearsal = child.Rehearsal(self._words)
        rehearsal = self._rehearsal
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    child.live(
                        lambda: child.wait_to_become(template, theirs, rehearsal, enter), parent
                    )
                try:
                    return Waiting(pid, os.pidfd_open(pid), ours)
                except BaseException:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    raise
            except BaseException:
                ours.close()
                raise

    def take(
        self, enter: Enter, run: Run, fds: dict[int, int], asked_ns: int
    ) -> tuple[Waiting, bool]:
        """Return the child that becomes what `run` says; is it new? Refused, OSError."""
        if self.template is None:
            raise Refused("has nothing in it yet; migrate a machine there first")
        self._words = run.words
        for waiting in list(self.waiting):
            try:
                child.ask(waiting.channel, run, fds, asked_ns)
            except BrokenPipeError:
                continue  # its end is seen to in a moment
            self.waiting.remove(waiting)
            waiting.is_taken = True
            return waiting, False
        started = self._start(enter)
        try:
            child.ask(started.channel, run, fds, asked_ns)
        except BaseException:
            signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
            os.waitpid(started.pid, 0)
            os.close(started.pidfd)
            started.channel.close()
            raise
        started.is_taken = True
        return started, True

    def hear(self, waiting: Waiting) -> bool:
        """Hear that a child is prepared; False: it is a fork, whose guest runs, or has ended."""
        try:
            data = waiting.channel.recv(LINE_MAX)
        except OSError:
            data = b""  # it has ended, and not read what it was told
        # One that ended while it waited is not replaced: the next would, too.
        self.is_due = self.is_due or bool(data) or waiting.is_taken
        if not data:
            return False
        tell, self._tell = self._tell, None
        if tell is not None:
            error = json.loads(data).get("error")
            tell({"ready": True} if error is None else {"error": error})
        return True

    def close(self) -> None:
        """Let it go; forks that run go on."""
        for waiting in self.waiting:
            signal.pidfd_send_signal(waiting.pidfd, signal.SIGKILL)
        if self.template is not None:
            self.template.close()
            self.template = None
        self.is_due = False
