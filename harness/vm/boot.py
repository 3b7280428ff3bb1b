"""One boot of a VM: the monitor's process, and everybody who speaks with it or its guest."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from ...errors import PyvirtError
from ..agent.client import Agent
from ..agent.protocol import AgentError
from ..judge.classifier import QUIET_EMULATED_S, QUIET_S
from . import config
from .console import NOTHING, Console
from .fork_server import Process, Template
from .monitor import Monitor
from .place import is_emulated
from .snapshot import Snapshot
from .watch import Watch, open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ..judge.splat import Splat
    from .config import Limits

CLOSE_S = 5.0
_SILENCE_S = 0.1
_SILENCE_MAX_S = 2.0
_POLL_S = 0.02


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
        origin: Snapshot | None = None,
    ) -> None:
        """Start `pyvirt run WORDS` beside a fork server, from `origin` on if given; PyvirtError.

        `console` is the file for what the console shows; the other log files go beside it.
        """
        self.server = server
        self.taint = 0  # when the agent came up
        self._qmp: Monitor | None = None
        self._limit = limits.boot
        quiet = QUIET_EMULATED_S if is_emulated() else QUIET_S
        self.console = Console(console, quiet, origin.history if origin else NOTHING)
        self.begin = self.console.mark()  # what comes before that is `origin`'s
        template = origin.template if origin else None
        try:
            self.process = Process(
                server, [*words, *config.CHANNELS], config.STREAMS, template=template
            )
        except BaseException:
            self.console.close()
            raise
        log = open_log(console.parent)
        self.watch = Watch(self.process, self.console, limits, allows=allows, echo=echo, log=log)
        self.agent = Agent(
            self.process.streams["agent"],
            on_end=self.watch.agent_gone,
            takes_over=origin is not None,
        )
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

    def snapshot(self, disks: tuple[str, ...], limit: float) -> Snapshot:
        """Return where the guest stands, which is paused from then on; PyvirtError: it runs on.

        `disks` are the words of its disks, `limit` is in seconds. Commands that the agent has
        started end in guests that go on from there.
        """
        template = Template(self.server)
        try:
            with self.agent.silence(limit):
                self.qmp.execute("migrate", {"uri": template.uri}, timeout=limit)
            template.wait(limit)
            self._let_console_end()
            return Snapshot(self.server, template, self.console.history(), disks)
        except PyvirtError as error:
            template.close()
            raise PyvirtError(f"snapshot: {error}") from None
        except BaseException:
            template.close()
            raise

    def _let_console_end(self) -> None:
        """Wait for what a guest that stands has written."""
        until = time.monotonic() + _SILENCE_MAX_S
        while time.monotonic() < min(until, self.console.last_byte_at + _SILENCE_S):
            time.sleep(_POLL_S)

    @property
    def said(self) -> list[str]:
        """Return what was said to the monitor, and by it."""
        return [] if self._qmp is None else list(self._qmp.log)

    @property
    def pid(self) -> int | None:
        """Return the monitor's process id; None: it was not started."""
        until = time.monotonic() + CLOSE_S
        # Its streams are there before the fork server tells of it.
        while self.process.pid is None and not self.process.is_gone and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.process.pid

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
