"""The client of the agent in a guest: runs commands there, moves files, tells when it has gone."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from signal import SIGKILL, SIGTERM
from types import MappingProxyType
from typing import BinaryIO, Literal

from . import protocol
from .process import KEEP, Process, Result
from .protocol import AgentError, AgentTimeoutError, Decoder, Frame, Hello, Kind

TRANSFER_S = 300.0
GET_MAX = 256 << 20
TAINT = "/proc/sys/kernel/tainted"

_RECEIVE = 1 << 18
_PUT_PIECE = 1 << 20
_STATUS_ABSENT = 2
_STDOUT = 1
_REASON_MAX = 4096  # bytes of what a builtin command says
_GONE = "agent: the connection to the guest has ended"
_FOR_PROCESSES = {Kind.STARTED, Kind.STDOUT, Kind.STDERR, Kind.CREDIT, Kind.EXIT}


class Agent:
    """Speaks to the agent in a guest over `connection`, a connected stream socket that it owns.

    Any thread may call; one thread of its own reads, and writes what a slow guest does not take
    at once, so that nothing here waits for a guest but what says so. However the connection
    ends, every waiter wakes at once with AgentError.

    `last_heard` is when the guest last sent anything, in time.monotonic(); `closed` is set at
    the end, and `why` says then what it was. `on_end` is called after that, on the reader
    thread. A guest that boots anew over the same connection loses its commands; `boots` counts.

    `takes_over` says that the guest went on from where it stood, with another client then, of
    which nothing was on its way to the agent: the agent forgets that one, and ends its commands.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_end: Callable[[], None] | None = None,
        takes_over: bool = False,
    ) -> None:
        self.last_heard = time.monotonic()
        self.closed = threading.Event()
        self.why = ""
        self.boots = 0
        self.on_end = on_end
        self._hello: Hello | None = None
        self._changed = threading.Condition()  # of all these
        self._processes: dict[int, Process] = {}
        self._pings: set[int] = set()
        self._last_id = 0
        connection.setblocking(False)
        self._connection = connection
        self._sending = threading.Lock()
        reset = protocol.reset() if takes_over else b""
        self._decoder = Decoder(reset)
        self._unsent = bytearray(reset)
        self._sends = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._read, name="agent", daemon=True)
        self._thread.start()

    def wait_ready(self, timeout: float, *, boot: int = 1) -> Hello:
        """Return what the agent said when the guest's boot number `boot` came to it.

        Raises AgentTimeoutError after `timeout` seconds, AgentError at once at the end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.boots >= boot or self.why, timeout)
            if self._hello is not None and self.boots >= boot:
                return self._hello
            if self.why:
                raise AgentError(self.why)
        raise AgentTimeoutError(
            f"agent: it did not answer within {timeout:g} s; the initramfs needs it as /init "
            "or started by its init, and the kernel needs CONFIG_VIRTIO_CONSOLE"
        )

    def spawn(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        open_stdin: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
        cwd: str = "/",
        keep: int = KEEP,
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> Process:
        """Start a program, looked for in PATH, in a session of its own.

        Its input is `stdin`; with `open_stdin` more may follow by `Process.write`, until
        `close_stdin`; with neither it is /dev/null. `env` comes on top of the agent's
        environment. Of each of its outputs `keep` bytes stay. `on_output` is called with 1
        (stdout) or 2 and what was read, on the reader thread: it must neither block nor raise.

        A program that is missing ends with status 127, one that cannot be executed with 126,
        a folder `cwd` that cannot be entered with 125, and a line on its stderr.
        Raises AgentError when the agent has gone, ValueError for a NUL in a string.
        """
        return self._start(
            argv,
            stdin=stdin,
            open_stdin=open_stdin,
            env=env,
            cwd=cwd,
            keep=keep,
            on_output=on_output,
        )

    def put(
        self,
        path: str,
        data: bytes | BinaryIO,
        mode: int = 0o644,
        *,
        timeout: float = TRANSFER_S,
    ) -> None:
        """Make the file `path` of `data`, and the folders that lead to it.

        It appears whole or not at all; where no file can be made, in /proc or /sys, the one there
        is written. Raises AgentError with the guest's reason, AgentTimeoutError.
        """
        deadline = time.monotonic() + timeout
        argv = ["put", path, f"{mode:o}"]
        if isinstance(data, bytes):
            self._finish(self._start(argv, builtin=True, stdin=data), deadline)
            return
        process = self._start(argv, builtin=True, open_stdin=True)
        try:
            while process.running and (piece := data.read(_PUT_PIECE)):
                process.write(piece)
                process.drain(deadline)
        except BaseException:
            self.drop(process, SIGTERM)
            raise
        process.close_stdin()
        self._finish(process, deadline)

    def get_into(self, path: str, file: BinaryIO, *, timeout: float = TRANSFER_S) -> None:
        """Write what is in the file `path` to `file`, as it comes. Raises as `put` does; OSError.

        `file` is written on the reader thread: it is to be one of this host's.
        """
        failures: list[OSError] = []

        def take(stream: int, data: bytes) -> None:
            try:
                if stream == _STDOUT and not failures:
                    file.write(data)
            except OSError as error:
                failures.append(error)
                process.kill()

        process = self._start(["get", path], builtin=True, keep=_REASON_MAX, on_output=take)
        try:
            self._finish(process, time.monotonic() + timeout)
        finally:
            if failures:
                raise failures[0]

    def get(self, path: str, *, timeout: float = TRANSFER_S, limit: int = GET_MAX) -> bytes:
        """Return what is in the file `path`, `limit` bytes at most. Raises as `put` does."""
        process = self._start(["get", path], builtin=True, keep=limit + 2)
        result = self._finish(process, time.monotonic() + timeout)
        if len(result.stdout) > limit or result.dropped:
            raise AgentError(f"agent: get {path}: it is larger than {limit} bytes")
        return result.stdout

    def exists(self, path: str, *, timeout: float = TRANSFER_S) -> bool:
        """Say whether there is a file, folder or device `path`. Raises as `put` does."""
        process = self._start(["exists", path], builtin=True)
        result = self._finish(process, time.monotonic() + timeout, {0, _STATUS_ABSENT})
        return result.code == 0

    def taint(self, *, timeout: float = TRANSFER_S) -> int:
        """Return the kernel's taint mask as it is now. Raises as `put` does."""
        text = self.get(TAINT, timeout=timeout, limit=64)
        try:
            return int(text)
        except ValueError:
            raise AgentError(f"agent: {TAINT} holds no number") from None

    def power(self, how: Literal["off", "reboot", "crash"]) -> Process:
        """Have the guest switch off, boot anew, or panic; does not wait for that.

        All its processes are killed and its root file system is made read-only before, but for
        a crash. The process that is returned ends only if it fails.
        """
        return self._start(["power", how], builtin=True)

    def ping(self, timeout: float) -> float:
        """Return how long the agent took to answer, in seconds. Raises AgentTimeoutError."""
        begin = time.monotonic()
        with self._changed:
            number = self._next_id()
            self._pings.add(number)
        self._send(protocol.encode(Frame(number, Kind.PING)))
        with self._changed:
            self._changed.wait_for(lambda: number not in self._pings or self.why, timeout)
            if self.why:
                raise AgentError(self.why)
            if number in self._pings:
                self._pings.remove(number)
                raise AgentTimeoutError(f"agent: no answer to a ping within {timeout:g} s")
        return time.monotonic() - begin

    @contextlib.contextmanager
    def silence(self, timeout: float) -> Iterator[None]:
        """Return a context in which nothing is on its way to the agent; who sends waits.

        Raises AgentError, AgentTimeoutError after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while True:
            before = self._sends
            self.ping(max(0.0, until - time.monotonic()))
            with self._sending:
                # Its answer says that all before it was read.
                if self._sends == before + 1:
                    yield
                    return

    def drop(self, process: Process, signal: int = SIGKILL) -> None:
        """Kill a process whose end nobody waits for; what it still says is ignored."""
        with self._changed:
            known = self._processes.pop(process.id, None)
        if known is not None and process.running and not self.why:
            self._send(protocol.encode(protocol.kill(process.id, signal)))
        process.lose(f"agent: {process.command}: it was dropped")

    def close(self) -> None:
        """End the connection, and so the commands that run; waits for the reader thread."""
        self._end("agent: the connection was closed on this side")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _start(
        self,
        argv: Sequence[str],
        *,
        builtin: bool = False,
        stdin: bytes | None = None,
        open_stdin: bool = False,
        env: Mapping[str, str] = MappingProxyType({}),
        cwd: str = "/",
        keep: int = KEEP,
        on_output: Callable[[int, bytes], None] | None = None,
    ) -> Process:
        has_input = stdin is not None or open_stdin
        with self._changed:
            if self.why:
                raise AgentError(self.why)
            process = Process(
                self._next_id(),
                argv,
                self._send,
                stdin=stdin,
                open_stdin=open_stdin,
                keep=keep,
                on_output=on_output,
            )
            wire = protocol.spawn(
                process.id, argv, cwd=cwd, env=env, stdin=has_input, builtin=builtin
            )
            self._processes[process.id] = process
        self._send(wire + process.first_input())
        return process

    def _finish(
        self, process: Process, deadline: float, codes: Container[int] = frozenset({0})
    ) -> Result:
        """Wait for a builtin command, which says on stderr why it ends with none of `codes`."""
        try:
            result = process.wait(max(0.0, deadline - time.monotonic()))
        except AgentTimeoutError:
            self.drop(process, SIGTERM)
            raise
        if result.code not in codes:
            why = " ".join(result.stderr.decode(errors="replace").split())
            raise AgentError(f"agent: {process.command}: {why or f'status {result.code}'}")
        return result

    def _next_id(self) -> int:
        self._last_id = self._last_id % 0xFFFFFFFF + 1
        return self._last_id

    def _send(self, data: bytes) -> None:
        """Send what goes at once, and leave the rest to the reader thread."""
        with self._sending:
            if self.why:
                raise AgentError(self.why)
            self._sends += 1
            sent = 0
            if not self._unsent:
                try:
                    sent = self._connection.send(data)
                except BlockingIOError:
                    pass
                except OSError as error:
                    self.why = f"{_GONE} ({error.strerror})"
                    raise AgentError(self.why) from None
            if sent < len(data):
                self._unsent += memoryview(data)[sent:]
                os.eventfd_write(self._wake, 1)

    def _end(self, why: str) -> None:
        """Have the reader thread end the connection."""
        with self._changed, self._sending:
            self.why = self.why or why
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    # The reader thread.

    def _read(self) -> None:
        why = "agent: a callback of this side raised an exception"
        try:
            why = self._converse()
        except AgentError as error:
            why = str(error)
        finally:
            self._over(why)

    def _converse(self) -> str:
        """Take what comes until the connection ends; return why. Raises AgentError."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while True:
            with self._sending:
                events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            poll.register(self._connection, events)
            ready = dict(poll.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
            ready.pop(self._wake, None)
            for happened in ready.values():
                if happened & select.POLLOUT:
                    self._flush()
                if happened & ~select.POLLOUT:
                    data = self._receive()
                    if not data:
                        return _GONE
                    self.last_heard = time.monotonic()
                    for frame in self._decoder.feed(data):
                        self._take(frame)

    def _receive(self) -> bytes:
        """Return what has come; nothing at the end."""
        try:
            return self._connection.recv(_RECEIVE)
        except OSError:
            return b""

    def _flush(self) -> None:
        with self._sending, contextlib.suppress(OSError):
            # What is wrong with the connection shows when it is read.
            sent = self._connection.send(memoryview(self._unsent)[:_RECEIVE])
            del self._unsent[:sent]

    def _take(self, frame: Frame) -> None:
        if frame.kind in _FOR_PROCESSES:
            process = self._processes.get(frame.id)
            if process is not None:
                process.receive(frame)
            if frame.kind == Kind.EXIT:
                with self._changed:
                    self._processes.pop(frame.id, None)
        elif frame.kind == Kind.HELLO:
            self._take_hello(protocol.hello(frame))
        elif frame.kind == Kind.PONG:
            with self._changed:
                self._pings.discard(frame.id)
                self._changed.notify_all()
        elif frame.kind == Kind.FAILED:
            raise AgentError(f"agent: the guest's agent gave up: {protocol.text(frame)}")
        else:
            raise AgentError(f"agent: the guest sent {frame.kind.name}")

    def _take_hello(self, hello: Hello) -> None:
        with self._changed:
            self._hello = hello
            self.boots += 1
            # What was spawned before the first one is still to run.
            lost = self._processes if self.boots > 1 else {}
            if lost:
                self._processes = {}
            self._changed.notify_all()
        for process in lost.values():
            process.lose(f"agent: {process.command}: the guest booted anew")

    def _over(self, why: str) -> None:
        """Wake everybody, for the connection has ended."""
        with self._changed, self._sending:
            self.why = self.why or why
            lost = list(self._processes.values())
            self._processes.clear()
            self._connection.close()
            os.close(self._wake)
            self._changed.notify_all()
        for process in lost:
            process.lose(self.why)
        self.closed.set()
        if self.on_end is not None:
            self.on_end()
