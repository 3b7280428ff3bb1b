"""Templates that a server has, by their names, and their forks in waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

from ...vmm.snapshot import template as templates
from . import child
from .connection import Connection, Refused
from .spares import Spares, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...vmm.snapshot.template import Template
    from .child import Enter
    from .connection import Run

PLACES_MAX = 64
SPARES_MAX = 16


class Place(Spares):
    """A template of a server, or room for one; owns all of it until `close`.

    `tell` gets {"ready": true} when the first fork is prepared, or {"error": TEXT}.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None], *, spares: int = 1) -> None:
        """Have as many `spares` wait, up to SPARES_MAX."""
        super().__init__(spares)
        self._tell: Callable[[dict[str, object]], None] | None = tell
        self.template: Template | None = None
        self.giver: Connection | None = None  # who is to fill it
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

    def _life(self, enter: Enter) -> Callable[[socket.socket], NoReturn]:
        template = self.template
        assert template is not None
        # Here, and not in each child, that would have pages of its own of all that it takes.
        if not self._rehearsal.is_of(self._words):
            self._rehearsal = child.Rehearsal(self._words)
        rehearsal = self._rehearsal
        return lambda channel: child.wait_to_become(
            channel,
            template.fds,
            lambda: child.PreparedFork(channel, template.incoming(), rehearsal),
            enter,
        )

    def take(
        self, enter: Enter, run: Run, fds: dict[int, int], asked_ns: int
    ) -> tuple[Waiting, bool]:
        """Return the child that becomes what `run` says; is it new? Refused, OSError."""
        if self.template is None:
            raise Refused("has nothing in it yet; migrate a machine there first")
        self._words = run.words
        waiting = self.take_waiting(run, fds, -1, asked_ns)
        if waiting is not None:
            return waiting, False
        started = self._start(enter)
        try:
            child.ask(started.channel, run, fds, -1, asked_ns)
        except BaseException:
            signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
            os.waitpid(started.pid, 0)
            os.close(started.pidfd)
            started.channel.close()
            raise
        self.taken.add(started)
        return started, True

    def _heard(self, _waiting: Waiting, data: bytes) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            error = json.loads(data).get("error")
            tell({"ready": True} if error is None else {"error": error})

    def close(self) -> None:
        """Let it go; forks that run go on."""
        super().close()
        if self.template is not None:
            self.template.close()
            self.template = None
