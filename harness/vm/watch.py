"""Watches one run of a VM's monitor: reads its channels, and decides why it ended.

A thread of its own reads the console, the monitor's messages, its events and what the fork server
tells of it. The first cause wins; everybody who waits then wakes.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
import time
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ...qmp import events
from ..judge.verdict import Verdict
from .end import End

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from ..judge.splat import Splat
    from .config import Limits
    from .console import Console
    from .fork_server import Process

_READ_BYTES = 1 << 18
_MESSAGES_MAX = 1 << 20  # bytes of the monitor's messages that are kept
_LINE_MAX = 1 << 20
_EVENTS_MAX = 10_000
_DRAIN_S = 1.0  # for the channels, when the monitor is gone
# After the silence that ends a report, for the kernel's own words, when the agent's end came first.
_REPORT_S = 0.2
# From pvpanic's event to the kernel's own words, which a busy host's guest is slow to print.
_WORDS_S = 5.0
_TICK_S = 1.0
_TRIPLE_FAULT = "the guest triple-faulted"
GOOD_ENDS = {
    events.GUEST_RESET: "the guest rebooted",
    events.GUEST_SHUTDOWN: "the guest powered off",
    events.HOST_QUIT: "the monitor was told to quit",
}


class Watch:
    """One monitor's run; owns the console, and the thread, until `close`."""

    def __init__(
        self,
        process: Process,
        console: Console,
        limits: Limits,
        *,
        allows: Callable[[Splat], bool] = lambda _: False,
        echo: Callable[[bytes], None] | None = None,
        log: Callable[[str, bytes], None] = lambda _name, _data: None,
    ) -> None:
        """Take over the console.

        `allows` says of a report that it is no fault; `echo` gets the console's bytes as they
        come, `log` what comes on the channels "messages" and "events".
        """
        self.end: End | None = None
        self.ended = threading.Event()
        self.messages = ""
        self.events: list[dict[str, Any]] = []
        self.is_ready = False  # the agent has answered
        # What a verb has asked for, so that it is no fault: the reason is to start with this.
        self.expected = ""
        self.on_end: Callable[[], None] = lambda: None  # on this thread
        # When the agent was last heard (time.monotonic), and what makes it be heard if it lives.
        self.last_heard: Callable[[], float] = lambda: 0.0
        self.ping: Callable[[], None] = lambda: None
        self.changed = threading.Condition()  # events, and the end
        self._process = process
        self._console = console
        self._limits = limits
        self._allows = allows
        self._echo = echo
        self._log = log
        self._started = time.monotonic()
        self._waiting = 0
        self._waiting_since = 0.0
        self._last_ping = 0.0
        self._shutdown = ""  # SHUTDOWN's reason
        self._weak: tuple[float, End] | None = None  # what it is unless a better cause comes
        self._partial = b""
        self._channels = {
            process.streams["console"]: self._on_console,
            process.streams["messages"]: self._on_messages,
            process.streams["events"]: self._on_events,
        }
        console.on_splat = self._on_splat
        self._thread = threading.Thread(target=self._run, name="pyvirt-vm", daemon=True)

    def start(self) -> None:
        """Begin."""
        # The greeting needs no answer, the hello gets one, and events follow.
        self._send("qmp_capabilities")
        self._thread.start()

    def _send(self, command: str) -> None:
        try:
            line = json.dumps({"execute": command}).encode() + b"\n"
            self._process.streams["events"].send(line)
        except OSError:
            return  # it is gone, which is told elsewhere

    def close(self, timeout: float) -> None:
        """Wait until the monitor is gone, at most `timeout` seconds, then stop watching."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._process.close()
        if self._thread.ident is not None:
            self._thread.join()

    # For the verbs, on any thread.

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Return a context in which the guest must give signs of life."""
        with self.changed:
            if self._waiting == 0:
                self._waiting_since = time.monotonic()
            self._waiting += 1
        try:
            yield
        finally:
            with self.changed:
                self._waiting -= 1

    def agent_gone(self) -> None:
        """Tell that the agent's connection has ended; any thread."""
        self._consider(End(Verdict.FAILED, "the agent in the guest has ended"))

    def finish(self, end: End) -> None:
        """Set the cause, unless there is one; any thread."""
        with self.changed:
            if self.end is not None:
                return
            if self.expected and end.reason.startswith(self.expected):
                end = end._replace(expected=True)
            elif not self.is_ready and end.verdict not in (
                Verdict.TRIPLE_FAULT,
                Verdict.MONITOR_DIED,
                Verdict.BOOT_FAILED,
            ):
                end = end._replace(
                    verdict=Verdict.BOOT_FAILED, reason=f"before the agent answered: {end.reason}"
                )
            self.end = end
            self.changed.notify_all()
        if end.verdict not in (Verdict.PASSED, Verdict.MONITOR_DIED):
            self._send("stop")  # so that the guest can be looked at as it is
        self.ended.set()
        self.on_end()

    # The thread.

    def _run(self) -> None:
        try:
            while not self._process.is_gone:
                self._turn(self._patience(), [self._process])
            until = time.monotonic() + _DRAIN_S
            while self._channels and (left := until - time.monotonic()) > 0:
                self._turn(left, [])
        except (OSError, ValueError):
            self._process.is_gone = True  # closed under our hands: the VM is being put away
        finally:
            self._console.close()
            self.finish(self._judge())

    def _turn(self, timeout: float, more: list[Process]) -> None:
        ready = _readable([*self._channels, *more], timeout)
        for channel in [channel for channel in self._channels if channel.fileno() in ready]:
            try:
                data = channel.recv(_READ_BYTES)
            except OSError:
                data = b""
            if data:
                self._channels[channel](data)
            else:
                del self._channels[channel]
        if more and self._process.fileno() in ready:
            self._process.take()
        self._look_at_clock()

    def _patience(self) -> float:
        until = [time.monotonic() + _TICK_S]
        if self._weak is not None:
            until.append(self._weak[0])
        report = self._console.poll()
        if report is not None:
            until.append(time.monotonic() + report)
        return max(0.0, min(until) - time.monotonic())

    def _look_at_clock(self) -> None:
        self._console.poll()
        if self.end is not None:
            return
        now = time.monotonic()
        if self._weak is not None:
            if now >= self._weak[0]:
                self.finish(self._weak[1])
        elif not self.is_ready and now >= self._started + self._limits.boot:
            self.finish(
                End(
                    Verdict.BOOT_FAILED,
                    f"no agent answered in {self._limits.boot:g} s; does the initrd start one?",
                )
            )
        elif self.is_ready and self._waiting:
            self._look_for_life(now)

    def _look_for_life(self, now: float) -> None:
        last_sign = max(self._waiting_since, self._console.last_byte_at, self.last_heard())
        if now >= last_sign + self._limits.quiet:
            self.finish(
                End(Verdict.HUNG, f"no sign of life from the guest for {self._limits.quiet:g} s")
            )
        elif now >= self._last_ping + _TICK_S:
            self._last_ping = now
            self.ping()

    def _consider(self, end: End) -> None:
        """Finish for this cause in a moment, unless a better one comes until then."""
        if self._weak is None or end.verdict == Verdict.PANICKED:
            patience = _WORDS_S if end.verdict == Verdict.PANICKED else _REPORT_S
            self._weak = (time.monotonic() + self._console.quiet + patience, end)

    def _on_console(self, data: bytes) -> None:
        if self._echo is not None:
            self._echo(data)
        self._console.feed(data)

    def _on_messages(self, data: bytes) -> None:
        self._log("messages", data)
        if len(self.messages) < _MESSAGES_MAX:
            self.messages += data.decode(errors="replace")

    def _on_events(self, data: bytes) -> None:
        self._log("events", data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-_LINE_MAX:]
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and "event" in message:
                self._take_event(message)

    def _take_event(self, event: dict[str, Any]) -> None:
        name, data = event["event"], event.get("data", {})
        if name == events.SHUTDOWN:
            self._shutdown = data.get("reason", "")
        elif name == events.GUEST_PANICKED:
            self._consider(End(Verdict.PANICKED, "Kernel panic; the console tells nothing of it"))
        with self.changed:
            self.events.append(event)
            del self.events[:-_EVENTS_MAX]
            self.changed.notify_all()

    def _on_splat(self, splat: Splat) -> None:
        if splat.kind == Verdict.WARNED or self._allows(splat):
            return
        self.finish(End(splat.kind, splat.title, splat))

    def _judge(self) -> End:
        """Return why the monitor ended; its channels have been read."""
        process = self._process
        if self._weak is not None and self._weak[1].verdict == Verdict.PANICKED:
            return self._weak[1]
        if process.error:
            return End(Verdict.MONITOR_DIED, f"the monitor was not started: {process.error}")
        if process.status is None:
            return End(Verdict.MONITOR_DIED, "the fork server is gone", lost=True)
        if process.status < 0:
            return End(Verdict.MONITOR_DIED, f"the monitor was killed by signal {-process.status}")
        return self._judge_status(process.status)

    def _judge_status(self, status: int) -> End:
        says = next(self._own_messages(), "no message")
        if self._shutdown == events.GUEST_PANIC or says.endswith(_TRIPLE_FAULT):
            return End(Verdict.TRIPLE_FAULT, "the guest triple-faulted")
        if self._shutdown in GOOD_ENDS:
            return End(Verdict.PASSED, GOOD_ENDS[self._shutdown])
        if status == ConfigError.exit_status and not (self.is_ready or self._shutdown):
            return End(
                Verdict.BOOT_FAILED, f"the monitor refused its options: {says}", refused=True
            )
        kind = Verdict.MONITOR_DIED if self.is_ready else Verdict.BOOT_FAILED
        return End(kind, f"the monitor ended with status {status}: {says}")

    def _own_messages(self) -> Iterator[str]:
        for line in self.messages.splitlines():
            if line.startswith("pyvirt: "):
                yield line.removeprefix("pyvirt: ")


def _readable(channels: Sequence[socket.socket | Process], timeout: float) -> set[int]:
    """Return which descriptors have something within `timeout` seconds; select has too few."""
    poller = select.poll()
    for channel in channels:
        poller.register(channel.fileno(), select.POLLIN)
    return {fd for fd, _ in poller.poll(timeout * 1000)}


def open_log(folder: Path) -> Callable[[str, bytes], None]:
    """Return a `log` for Watch that writes files in `folder`, one for each channel."""
    names = {"messages": "monitor.log", "events": "events.jsonl"}

    def log(channel: str, data: bytes) -> None:
        # Few bytes, seldom; a full disk costs the rest of the file and no more.
        with contextlib.suppress(OSError), (folder / names[channel]).open("ab") as file:
            file.write(data)

    return log
