"""One boot of a VM: the monitor's process, and everybody who speaks with it or its guest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ..agent.client import Agent
from ..agent.protocol import AgentError
from ..judge.classifier import QUIET_EMULATED_S, QUIET_S
from . import config
from .console import Console
from .fork_server import Process
from .monitor import Monitor
from .place import is_emulated
from .watch import Watch, open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..judge.splat import Splat
    from .config import Limits

CLOSE_S = 5.0


class Boot:
    """Owns process, threads and connections until `close`."""

    def __init__(
        self,
        server: str,
        words: Sequence[str],
        console: Path,
        limits: Limits,
        *,
        allows: Callable[[Splat], bool],
        echo: Callable[[bytes], None] | None,
    ) -> None:
        """Start `pyvirt run WORDS` beside a fork server; PyvirtError.

        `console` is the file for what the console shows; the other log files go beside it.
        """
        self.server = server
        self.taint = 0  # when the agent came up
        self._qmp: Monitor | None = None
        self._limit = limits.boot
        self.console = Console(console, QUIET_EMULATED_S if is_emulated() else QUIET_S)
        try:
            self.process = Process(server, [*words, *config.CHANNELS], config.STREAMS)
        except BaseException:
            self.console.close()
            raise
        log = open_log(console.parent)
        self.watch = Watch(self.process, self.console, limits, allows=allows, echo=echo, log=log)
        self.agent = Agent(self.process.streams["agent"], on_end=self.watch.agent_gone)
        self.watch.last_heard = lambda: self.agent.last_heard
        self.watch.ping = self._poke
        self.watch.on_end = self.agent.close
        self.watch.start()

    def _poke(self) -> None:
        with contextlib.suppress(AgentError):
            self.agent.ping(0)

    def wait_ready(self) -> None:
        """Wait for the agent; AgentError when there is none, and why the watch tells."""
        try:
            # The watch keeps the time.
            self.taint = self.agent.wait_ready(self._limit + CLOSE_S).taint
        except AgentError:
            self.watch.ended.wait(CLOSE_S)
            raise
        self.watch.is_ready = True

    @property
    def qmp(self) -> Monitor:
        """Return the monitor's client; BackendError."""
        if self._qmp is None:
            self._qmp = Monitor(self.process.streams["qmp"])
        return self._qmp

    @property
    def said(self) -> list[str]:
        """Return what was said to the monitor, and by it."""
        return [] if self._qmp is None else list(self._qmp.log)

    @property
    def has_monitor(self) -> bool:
        """Whether there is a monitor that can be asked, be it of a guest that stands."""
        return self.process.pid is not None and not self.process.is_gone

    def close(self) -> None:
        """End the VM, whatever it does."""
        self.watch.expected = self.watch.expected or "the monitor was killed"
        self.process.kill()
        self.watch.close(CLOSE_S)
        self.agent.close()
        if self._qmp is not None:
            self._qmp.close()
