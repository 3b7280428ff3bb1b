"""A command in a guest, as the client sees it."""

from __future__ import annotations

import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition
from typing import NamedTuple

from . import protocol
from .protocol import AgentError, AgentTimeoutError, Exit, Frame, Kind

# How much of stdout, and of stderr, a process keeps, in bytes.
KEEP = 16 << 20
PID_TIMEOUT_S = 10.0

_STDOUT, _STDERR = 1, 2


class Result(NamedTuple):
    """How a command ended.

    `code` is its exit status, or 128 + N when signal N ended it (`signalled`); `duration` is in
    seconds, measured in the guest from fork to exit. Of output beyond what is kept, `dropped`
    bytes were left out, in the middle. `still_open`: other processes keep its output open, and
    what they write is lost.
    """

    code: int
    stdout: bytes
    stderr: bytes
    duration: float
    signalled: bool = False
    dropped: int = 0
    still_open: bool = False


class Process:
    """A command that runs in the guest. Made by Agent.spawn; for any thread.

    `first_input`, `receive` and `lose` are the Agent's to call.
    """

    def __init__(
        self,
        number: int,
        argv: Sequence[str],
        send: Callable[[bytes], None],
        *,
        stdin: bytes | None,
        open_stdin: bool,
        keep: int,
        on_output: Callable[[int, bytes], None] | None,
    ) -> None:
        self.id = number
        self.command = _short(argv)
        self._send = send
        self._on_output = on_output
        self._changed = Condition()
        self._output = {_STDOUT: _Kept(keep), _STDERR: _Kept(keep)}
        self._pid = 0
        self._exit: Exit | None = None
        self._lost = ""
        self._credit = protocol.WINDOW
        self._input = deque([memoryview(stdin)] if stdin else [])
        self._accepts = open_stdin
        self._end_due = stdin is not None and not open_stdin

    @property
    def pid(self) -> int:
        """Its number in the guest; 0 when it could not be started. Raises AgentError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pid or self._over, PID_TIMEOUT_S):
                raise AgentTimeoutError(f"agent: {self.command}: not started after a while")
            if not self._pid and self._lost:
                raise AgentError(self._lost)
            return self._pid

    @property
    def running(self) -> bool:
        """Whether its end is not known, nor is the agent gone."""
        return not self._over

    @property
    def stdout(self) -> bytes:
        """What it has written so far."""
        with self._changed:
            return self._output[_STDOUT].read()

    @property
    def stderr(self) -> bytes:
        """What it has written so far."""
        with self._changed:
            return self._output[_STDERR].read()

    def wait(self, timeout: float | None = None) -> Result:
        """Return how it ended. After AgentTimeoutError, in `timeout` seconds, it runs on.

        Raises AgentError at once when the agent goes, or has gone.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._over, timeout):
                raise AgentTimeoutError(f"agent: {self.command}: not ended within {timeout:g} s")
            if self._exit is None:
                raise AgentError(self._lost)
            out, err = self._output[_STDOUT], self._output[_STDERR]
            return Result(
                self._exit.status,
                out.read(),
                err.read(),
                self._exit.duration,
                self._exit.signalled,
                out.dropped + err.dropped,
                self._exit.still_open,
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to its process group; nothing happens when it has ended."""
        if not self._over:
            self._send(protocol.encode(protocol.kill(self.id, number)))

    def write(self, data: bytes) -> None:
        """Give it input, which goes out as it takes it; never blocks. See `drain`.

        Input that it does not take before its end is dropped. Raises AgentError when it
        was not spawned with `open_stdin`, or its stdin has been closed.
        """
        with self._changed:
            if not self._accepts:
                raise AgentError(f"agent: {self.command}: its stdin is not open")
            if data:
                self._input.append(memoryview(data))
            self._pump()

    def close_stdin(self) -> None:
        """End its input, after what was written before."""
        with self._changed:
            if self._accepts:
                self._accepts = False
                self._end_due = True
                self._pump()

    def drain(self, deadline: float) -> None:
        """Wait till all input is on its way or not wanted; `deadline` in time.monotonic().

        Raises AgentTimeoutError.
        """
        with self._changed:
            left = deadline - time.monotonic()
            if not self._changed.wait_for(lambda: not self._input or self._over, left):
                raise AgentTimeoutError(f"agent: {self.command}: it does not take its input")

    @property
    def _over(self) -> bool:
        return self._exit is not None or bool(self._lost)

    def first_input(self) -> bytes:
        """Return the frames that go out along with SPAWN."""
        return b"".join(self._input_frames())

    def _pump(self) -> None:
        frames = self._input_frames()
        if frames:
            self._send(b"".join(frames))

    def _input_frames(self) -> list[bytes]:
        """Return the input that the credit allows to be sent now."""
        frames = []
        while self._input and self._credit:
            part = self._input.popleft()
            size = min(len(part), self._credit, protocol.DATA_MAX)
            if size < len(part):
                self._input.appendleft(part[size:])
            self._credit -= size
            frames.append(protocol.encode(Frame(self.id, Kind.INPUT, bytes(part[:size]))))
        if self._end_due and not self._input:
            self._end_due = False
            frames.append(protocol.encode(Frame(self.id, Kind.INPUT_END)))
        return frames

    def receive(self, frame: Frame) -> None:
        """Take a frame that is for this process; on the reader thread. Raises AgentError."""
        if frame.kind in {Kind.STDOUT, Kind.STDERR}:
            self._receive_output(_STDOUT if frame.kind == Kind.STDOUT else _STDERR, frame.payload)
            return
        with self._changed:
            if frame.kind == Kind.STARTED:
                self._pid = protocol.number(frame)
            elif frame.kind == Kind.EXIT:
                self._exit = protocol.exit_of(frame)
                self._input.clear()
            elif frame.kind == Kind.CREDIT:
                self._credit += protocol.number(frame)
                if self._credit > protocol.WINDOW:
                    raise AgentError("agent: the guest gave more credit than there is")
                self._pump()
            else:
                raise AgentError(f"agent: the guest sent {frame.kind.name}")
            self._changed.notify_all()

    def _receive_output(self, stream: int, data: bytes) -> None:
        with self._changed:
            self._output[stream].add(data)
        if self._on_output is not None:
            self._on_output(stream, data)

    def lose(self, why: str) -> None:
        """Wake who waits: the agent will tell nothing more of it."""
        with self._changed:
            if not self._over:
                self._lost = why
                self._input.clear()
                self._changed.notify_all()


class _Kept:
    """The first and the last bytes of a stream, `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self._half = limit // 2
        self._first = bytearray()
        self._last = bytearray()
        self._total = 0

    @property
    def dropped(self) -> int:
        return max(0, self._total - len(self._first) - self._half)

    def add(self, data: bytes) -> None:
        room = self._half - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        self._total += len(data)
        # Seldom, for it moves what stays.
        if len(self._last) > 2 * self._half:
            del self._last[: len(self._last) - self._half]

    def read(self) -> bytes:
        return bytes(self._first + self._last[max(0, len(self._last) - self._half) :])


def _short(argv: Sequence[str]) -> str:
    """Return the command in one line that is not too long."""
    line = " ".join(shlex.join(argv).split())
    return line if len(line) <= 80 else f"{line[:77]}..."
