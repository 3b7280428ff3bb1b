"""The host's end of the lab: one command, its streams, its signals, its sockets."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ...errors import BackendError
from . import protocol, terminal
from .endpoint import Endpoint
from .machines import Machines
from .protocol import Channel, Decoder, Frame, Kind, ProtocolError
from .signals import Signals

_TX_HIGH = 262144  # with more than that still to be sent, nothing more is read
_BOOT = 120.0  # seconds until the agent must have said HELLO
_SILENCE = 60.0  # seconds without a sign of life, of which there is one a second
# Seconds between interrupts to the lab. The emulator can lose one that comes with an exit of a
# guest (its SVM code changes the CPU's pending interrupts without the lock); the next one makes it
# look again. Without a next one, such as after a timer's, the lab would hang.
_KNOCK = 0.05
_GRACE = 10.0  # seconds that a command has for ending after SIGTERM and the like
_LINGER = 1.0  # seconds for writing out what has arrived on sockets when it has ended
_STDIO = (protocol.STDIN, protocol.STDOUT, protocol.STDERR)
_COMMAND_NOT_FOUND, _COMMAND_NOT_RUN = 127, 126  # as a shell has it


class LinkClosedError(BackendError):
    """The other side went away, or did not come up, before the command had ended."""


class LabHangsError(BackendError):
    """The lab has stopped: the emulator's virtualization can lose an interrupt for good."""


class Command(NamedTuple):
    """What to run; `argv` is not empty, `cwd` is a path in the lab."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]


class Client:
    """Runs one command through the agent behind `link`, any connected stream socket.

    `fds` stand for the command's descriptors 0, 1 and 2 and stay the caller's, as do `link`
    and `forward`: pairs of a listening socket and the path of the socket in the lab that its
    connections are for; `machines` adds some while the command runs. `timeout` is in seconds
    from now; the lab's own seconds may be so many times as long as `slow` says. To be used by
    one thread.
    """

    def __init__(
        self,
        link: socket.socket,
        command: Command,
        signals: Signals,
        *,
        fds: Sequence[int] = (0, 1, 2),
        forward: Sequence[tuple[socket.socket, str]] = (),
        machines: Machines | None = None,
        timeout: float | None = None,
        slow: float = 1,
    ) -> None:
        self._link = link
        self._command = command
        self._signals = signals
        self._fds = fds
        self._given = forward
        self._machines = machines
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._silence = _SILENCE * slow
        self._boot = _BOOT * slow
        self._boot_end: float | None = time.monotonic() + self._boot
        self._silence_end: float | None = None
        self._grace_end: float | None = None
        self._next_knock: float | None = None
        self._linger_end = 0.0
        self._decoder = Decoder()
        self._tx = bytearray()
        self._endpoints: dict[int, Endpoint] = {}
        self._resources = contextlib.ExitStack()
        self._terminals = [n for n, fd in enumerate(fds) if os.isatty(fd)]
        self._started = False
        self._signalled = 0
        self._status: int | None = None

    def run(self) -> int:
        """Serve until the command has ended; return its exit status.

        That is 128+N after signal N, 127 for a command that is not there, 126 for one that
        cannot be run. Raises LinkClosedError; BackendError after `timeout`; ProtocolError.
        """
        self._link.setblocking(False)
        with self._resources:
            while self._status is None:
                self._turn()
            self._linger_end = time.monotonic() + _LINGER
            while any(self._unwritten()):
                self._turn()
            return self._status

    def _unwritten(self) -> Iterable[Endpoint]:
        """Return the endpoints that still have to write before the end."""
        lingering = time.monotonic() < self._linger_end
        return (
            endpoint
            for number, endpoint in self._endpoints.items()
            if endpoint.writes and (lingering or number not in protocol.SOCKETS)
        )

    def _turn(self) -> None:
        self._knock()
        self._settle()
        if self._machines is not None:
            self._machines.look()
        reading = self._status is None and len(self._tx) < _TX_HIGH
        ready = self._wait(reading)
        for number in self._signals.take():
            self._signal(number)
        self._move(reading, ready)
        for listener, path in self._forward:
            if listener.fileno() in ready:
                self._accept(listener, path)
        if self._link.fileno() in ready:
            self._talk(ready[self._link.fileno()])

    def _knock(self) -> None:
        now = time.monotonic()
        if self._next_knock is not None and now >= self._next_knock:
            self._next_knock = now + _KNOCK
            if not self._tx:
                self._send(Frame(protocol.CONTROL, Kind.ALIVE))

    def _settle(self) -> None:
        """Send what the channels owe; forget those that are over."""
        for number, endpoint in list(self._endpoints.items()):
            for frame in endpoint.due():
                self._send(frame)
            if endpoint.channel.over:
                endpoint.close()
                del self._endpoints[number]

    def _move(self, reading: bool, ready: Mapping[int, int]) -> None:
        """Read and write where poll() says that it does not block."""
        for endpoint in self._endpoints.values():
            if reading and endpoint.reads and ready.get(endpoint.source, 0) & ~select.POLLOUT:
                frame = endpoint.read()
                if frame:
                    self._send(frame)
            if endpoint.writes and ready.get(endpoint.sink, 0) & ~select.POLLIN:
                endpoint.write()

    def _wait(self, reading: bool) -> dict[int, int]:
        wanted: dict[int, int] = {}
        if self._status is None:
            wanted[self._link.fileno()] = select.POLLIN | (select.POLLOUT if self._tx else 0)
        if self._signals.fd >= 0:
            wanted[self._signals.fd] = select.POLLIN
        for endpoint in self._endpoints.values():
            if reading and endpoint.reads:
                wanted[endpoint.source] = wanted.get(endpoint.source, 0) | select.POLLIN
            if endpoint.writes:
                wanted[endpoint.sink] = wanted.get(endpoint.sink, 0) | select.POLLOUT
        if reading and self._started and self._free_number() is not None:
            wanted.update((listener.fileno(), select.POLLIN) for listener, _ in self._forward)
        poller = select.poll()
        for fd, events in wanted.items():
            poller.register(fd, events)
        return dict(poller.poll(self._remaining()))

    def _remaining(self) -> float | None:
        """Return ms until the next deadline, having seen to those that have passed."""
        now = time.monotonic()
        if self._status is not None:
            return max(0.0, self._linger_end - now) * 1000 if self._linger_end > now else None
        if self._grace_end is not None and now >= self._grace_end:
            self._status = 128 + self._signalled
            return 0
        if self._deadline is not None and now >= self._deadline:
            raise BackendError(
                f"lab: {self._command.argv[0]}: not ended within {self._timeout:g} s; "
                "give it more time with -timeout"
            )
        if self._boot_end is not None and now >= self._boot_end:
            raise LinkClosedError(f"lab: the agent did not answer within {self._boot:.0f} s")
        if self._silence_end is not None and now >= self._silence_end:
            raise LabHangsError(f"lab: no sign of life for {self._silence:.0f} s; run it again")
        limits = (
            self._deadline,
            self._grace_end,
            self._boot_end,
            self._silence_end,
            self._next_knock,
        )
        ends = [end for end in limits if end is not None]
        return (min(ends) - now) * 1000 if ends else None

    # The link.

    def _send(self, frame: Frame) -> None:
        self._tx += protocol.encode(frame)

    def _talk(self, events: int) -> None:
        try:
            if events & select.POLLOUT:
                del self._tx[: self._link.send(self._tx)]
            if events & ~select.POLLOUT:
                data = self._link.recv(_TX_HIGH)
                if not data:
                    raise LinkClosedError("lab: the connection to the agent was closed")
                self._silence_end = time.monotonic() + self._silence
                for frame in self._decoder.feed(data):
                    self._receive(frame)
        except BlockingIOError:
            pass
        except OSError as error:
            raise LinkClosedError(f"lab: the connection to the agent: {error.strerror}") from None

    def _receive(self, frame: Frame) -> None:
        if frame.channel == protocol.CONTROL:
            self._control(frame)
        elif frame.channel in self._endpoints:
            self._endpoints[frame.channel].channel.receive(frame)
        else:
            raise ProtocolError(f"lab: {frame.kind.name} on channel {frame.channel}, not open")

    def _control(self, frame: Frame) -> None:
        if frame.kind == Kind.ALIVE:
            return
        if frame.kind == Kind.HELLO and not self._started:
            self._start(*protocol.words(frame, 1))
        elif frame.kind == Kind.EXIT:
            (self._status,) = protocol.words(frame, 1)
        elif frame.kind == Kind.FAILED:
            self._status = self._not_started(*protocol.words(frame, 2))
        else:
            raise ProtocolError(f"lab: the agent sent {frame.kind.name}, unexpectedly")

    # The command.

    def _start(self, version: int) -> None:
        if version != protocol.VERSION:
            raise ProtocolError(f"lab: the agent speaks version {version}, not {protocol.VERSION}")
        self._started = True
        self._boot_end = None
        self._next_knock = time.monotonic()
        for name, value in self._command.env.items():
            self._text(Kind.ENV, f"{name}={value}")
        for argument in self._command.argv:
            self._text(Kind.ARG, argument)
        self._text(Kind.CWD, self._command.cwd)
        umask = os.umask(0o022)
        os.umask(umask)
        mask = sum(1 << n for n in self._terminals)
        self._send(protocol.start(mask, umask, *self._size()))
        self._join_streams()

    def _text(self, kind: Kind, text: str) -> None:
        self._send(Frame(protocol.CONTROL, kind, os.fsencode(text)))

    def _join_streams(self) -> None:
        for n, number in enumerate(_STDIO):
            if n in self._terminals:
                continue
            channel = Channel(number, sends=n == 0, receives=n != 0)
            source = self._fds[n] if n == 0 else -1
            sink = self._writer(self._fds[n]) if n else -1
            self._endpoints[number] = Endpoint(channel, source, sink)
        if self._terminals:
            self._join_terminal()

    def _join_terminal(self) -> None:
        """Read it only where it is the command's input; write where the command would."""
        reads = 0 in self._terminals
        writes = next(n for n in (1, 2, 0) if n in self._terminals)
        source = self._fds[0] if reads else -1
        channel = Channel(protocol.TERMINAL)
        sink = self._writer(self._fds[writes])
        self._endpoints[protocol.TERMINAL] = Endpoint(channel, source, sink)
        if reads:
            self._resources.enter_context(terminal.raw(source))

    def _writer(self, fd: int) -> int:
        copy = terminal.writer(fd)
        self._resources.callback(os.close, copy)
        return copy

    def _size(self) -> tuple[int, int]:
        return terminal.size(self._fds[self._terminals[0]]) if self._terminals else (0, 0)

    def _not_started(self, stage: int, error: int) -> int:
        """Say why on the command's stderr, as a shell does."""
        what = {2: self._command.cwd, 3: self._command.argv[0]}.get(stage, "streams")
        message = os.fsencode(f"pyvirt: lab: {what}: {os.strerror(error)}\n")
        with contextlib.suppress(OSError):
            os.write(self._fds[2], message)
        return _COMMAND_NOT_FOUND if stage == 3 and error == 2 else _COMMAND_NOT_RUN

    def _signal(self, number: int) -> None:
        if number == signal.SIGWINCH:
            if self._terminals and self._started:
                self._send(protocol.winsize(*self._size()))
        elif self._status is not None:
            for endpoint in self._endpoints.values():
                endpoint.channel.refuse()
        elif not self._started or self._signalled:
            self._status = 128 + number
        else:
            self._signalled = number
            self._send(protocol.signal(number))
            if number != signal.SIGINT:  # which a command may well take and go on
                self._grace_end = time.monotonic() + _GRACE

    # Sockets.

    @property
    def _forward(self) -> Sequence[tuple[socket.socket, str]]:
        return [*self._given, *(self._machines.forward if self._machines else ())]

    def _free_number(self) -> int | None:
        return next((n for n in protocol.SOCKETS if n not in self._endpoints), None)

    def _accept(self, listener: socket.socket, path: str) -> None:
        number = self._free_number()
        if number is None:
            return
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        endpoint = Endpoint.of_socket(Channel(number), connection)
        self._resources.callback(endpoint.close)
        self._endpoints[number] = endpoint
        self._send(Frame(number, Kind.OPEN, os.fsencode(path)))
