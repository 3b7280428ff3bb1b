"""`pyvirt fork-server`: monitors without the wait for imports, each a fork of this process.

Clients connect to its Unix socket. The first line of a connection, a JSON object of at most
LINE_MAX bytes, says what the connection is:

    {"stream": KEY}         a stream of a monitor that is to be; KEY is the client's to choose, and
                            what follows the line is the monitor's alone
    {"run": [WORD, ...], "cwd": PATH, "streams": {KEY: [FD, ...], ...}}
                            run `pyvirt run WORD...` in folder PATH with these streams as its
                            descriptors (0, 1 and 2 are /dev/null where none is given)
    {"switch": PATH}        run a switch between the VMs whose stream netdevs name the socket PATH,
                            a new one; answered as a `run` is, and ends as one
    {"read": PATH}          answered by {"text": TEXT}, of at most READ_MAX bytes of a regular file
                            (null where there is none), and the end
    {"ping": true}          answered by {} and the end

A `run` is answered by one line, {"pid": N}, or {"error": TEXT} and the end; and when the monitor
has ended by another, {"status": N}, which is -N after signal N, and the end. The client's next
byte, or the end of its sending, kills the monitor. A stream that no `run` asks for, a `run` whose
streams do not come and a connection that says nothing are closed after PATIENCE_S.

One thread, so that a fork is safe. The server ends with its stdin, or by SIGTERM, SIGINT or
SIGHUP, and so do the monitors.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import stat
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from ..devices.unix_socket import UnixListener
from ..errors import ConfigError, unexpected
from ..harness.vm.switch import Switch
from . import registry, usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

USAGE = """\
usage: pyvirt fork-server SOCKET

Serves the test harness: starts monitors quickly, for as long as its stdin is open.
"""
LINE_MAX = 1 << 16
READ_MAX = 4096
PATIENCE_S = 20.0
STREAMS_MAX = 64  # of one monitor, and its highest descriptor
CONNECTIONS_MAX = 512  # that are no monitor's yet
READY = "ready"
_BACKLOG = 128
_FIRST_FD = 3
_PR_SET_PDEATHSIG = 1
# What `pyvirt run` imports when its options ask for it.
_PRELOADED = (
    *("cli.run", "cli.control", "cli.registry", "cli.options.gather", "cli.options.chardevs"),
    *("cli.options.disks", "cli.options.monitors", "cli.options.nics", "cli.options.objects"),
    *("cli.options.ports", "cli.options.sizes", "cli.options.sockets", "devices.chardev"),
    *("devices.nic", "devices.unix_socket", "devices.virtio.block", "devices.virtio.console"),
    *("devices.virtio.net", "qmp.host", "qmp.machine", "qmp.server", "vmm.boot.acpi"),
    *("vmm.boot.bzimage", "vmm.boot.elf", "vmm.boot.mptable"),
)


class _Refused(Exception):  # noqa: N818  (it is the client's error)
    """What a client asks for cannot be done; its text tells why."""


@dataclass(frozen=True)
class _Run:
    """What a monitor is to be: `streams` are its descriptors by the keys of connections."""

    words: list[str]
    cwd: str
    streams: dict[str, list[int]]


def _read_run(message: dict[str, Any]) -> _Run:
    """Return what a first line asks for; _Refused."""
    words, cwd, streams = message["run"], message.get("cwd"), message.get("streams", {})
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise _Refused("run: not a list of words")
    if not (isinstance(cwd, str) and os.path.isabs(cwd) and "\0" not in cwd):
        raise _Refused("cwd: not an absolute path")
    if not (isinstance(streams, dict) and len(streams) <= STREAMS_MAX):
        raise _Refused(f"streams: not an object of at most {STREAMS_MAX} keys")
    taken: set[int] = set()
    for key, numbers in streams.items():
        valid = isinstance(numbers, list) and all(
            type(number) is int and 0 <= number < STREAMS_MAX for number in numbers
        )
        if not valid or taken & set(numbers) or len(set(numbers)) < len(numbers):
            raise _Refused(f"streams: {key}: not descriptors of its own, 0 to {STREAMS_MAX - 1}")
        taken |= set(numbers)
    return _Run(words, cwd, streams)


def _read(path: object) -> str | None:
    """Return the beginning of a regular file, None where there is none to read; _Refused."""
    if not (isinstance(path, str) and os.path.isabs(path) and "\0" not in path):
        raise _Refused("read: not an absolute path")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
        return os.read(fd, READ_MAX).decode(errors="replace") if is_regular else None
    except OSError:
        return None
    finally:
        os.close(fd)


@dataclass(eq=False)
class _Connection:
    """A client's; `line` is what has come of its first line."""

    socket: socket.socket
    until: float  # time.monotonic(), at which it is closed
    line: bytearray = field(default_factory=bytearray)
    key: str = ""  # a stream's
    run: _Run | None = None

    def read_line(self) -> dict[str, Any] | None:
        """Read no further than the first line; return it when it is whole. _Refused, OSError."""
        data = self.socket.recv(LINE_MAX, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if not data:
            raise _Refused("the connection ended")
        end = data.find(b"\n") + 1
        self.line += self.socket.recv(end or len(data))
        if len(self.line) > LINE_MAX:
            raise _Refused(f"the first line is longer than {LINE_MAX} bytes")
        if not end:
            return None
        try:
            message = json.loads(self.line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise _Refused("the first line is no JSON object")
        return message

    def answer(self, **message: object) -> None:
        """Send a line; a client that is gone or does not read loses it."""
        try:
            self.socket.send(json.dumps(message).encode() + b"\n", socket.MSG_DONTWAIT)
        except OSError:
            return


@dataclass(eq=False)
class _Monitor:
    """A child, and the connection that it was asked for on; a switch's has a socket's `path`."""

    pid: int
    pidfd: int
    control: _Connection
    path: str = ""


class Server:
    """Forks monitors; owns the socket, the connections and the children until `close`."""

    def __init__(self, path: str) -> None:
        """Listen at `path`; ConfigError."""
        try:
            self._listener = UnixListener(path, mode=0o600, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"fork-server {path}: {error.strerror}; name a new file in a writable folder"
            ) from None
        self._accepting = socket.socket(fileno=os.dup(self._listener.fd))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._accepting, selectors.EVENT_READ, self._accept)
        self._unclaimed: dict[_Connection, None] = {}
        self._streams: dict[str, _Connection] = {}
        self._waiting: list[_Connection] = []  # each has a run whose streams are still to come
        self._monitors: set[_Monitor] = set()
        self._prctl = ctypes.CDLL(None).prctl

    def serve(self, stdin: int = 0) -> None:
        """Serve until `stdin` ends."""
        ended: list[bool] = []

        def read() -> None:
            if not os.read(stdin, 4096):
                ended.append(True)

        self._selector.register(stdin, selectors.EVENT_READ, read)
        while not ended:
            for key, _ in self._selector.select(self._patience()):
                # It may be gone since the selector looked.
                if self._selector.get_map().get(key.fd) == key:
                    self._serve_one(key)
            self._close_late()

    def _serve_one(self, key: selectors.SelectorKey) -> None:
        """Serve one descriptor; a fault of ours costs that one, and no other monitor."""
        try:
            key.data()
        except Exception as error:
            if not isinstance(key.fileobj, socket.socket) or key.fileobj is self._accepting:
                raise
            sys.stderr.write(f"pyvirt: fork-server: {unexpected(error)}; please report\n")
            if self._selector.get_map().get(key.fd) == key:
                self._selector.unregister(key.fileobj)

    def _patience(self) -> float | None:
        soonest = min((connection.until for connection in self._unclaimed), default=None)
        return None if soonest is None else max(0.0, soonest - time.monotonic())

    def _close_late(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self._unclaimed if c.until <= now]:
            self._drop(connection, "its streams have not come" if connection.run else "")

    def _accept(self) -> None:
        try:
            client, _ = self._accepting.accept()
        except OSError:
            return
        client.setblocking(True)
        connection = _Connection(client, time.monotonic() + PATIENCE_S)
        if len(self._unclaimed) >= CONNECTIONS_MAX:
            client.close()
            return
        self._unclaimed[connection] = None
        self._selector.register(client, selectors.EVENT_READ, lambda: self._begin(connection))

    def _begin(self, connection: _Connection) -> None:
        """Take a part of the first line of a connection."""
        try:
            message = connection.read_line()
            if message is not None:
                self._selector.unregister(connection.socket)
                self._understand(connection, message)
        except BlockingIOError:
            return
        except (OSError, _Refused) as error:
            self._drop(connection, str(error))

    def _understand(self, connection: _Connection, message: dict[str, Any]) -> None:
        if "run" in message:
            connection.run = _read_run(message)
            self._waiting.append(connection)
            # A client that gives up is not to get a monitor.
            self._selector.register(
                connection.socket, selectors.EVENT_READ, lambda: self._drop(connection, "")
            )
        elif "switch" in message:
            self._start_switch(connection, message["switch"])
            return
        elif message.get("ping") or "read" in message:
            connection.answer(**({"text": _read(message["read"])} if "read" in message else {}))
            self._drop(connection, "")
            return
        else:
            key = message.get("stream")
            if not isinstance(key, str) or not key or key in self._streams:
                raise _Refused("stream: not a key of its own")
            connection.key = key
            self._streams[key] = connection
        for waiting in list(self._waiting):
            assert waiting.run is not None
            if waiting.run.streams.keys() <= self._streams.keys():
                self._start(waiting, waiting.run)

    def _drop(self, connection: _Connection, why: str) -> None:
        """Close a connection that is no monitor's, after an answer where there is one to give."""
        if why and not connection.key:
            connection.answer(error=why)
        self._release(connection)
        connection.socket.close()

    def _release(self, connection: _Connection) -> None:
        self._unclaimed.pop(connection, None)
        self._streams.pop(connection.key, None)
        if connection in self._waiting:
            self._waiting.remove(connection)
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)

    def _start(self, control: _Connection, run: _Run) -> None:
        streams = {key: self._streams[key] for key in run.streams}
        for connection in (control, *streams.values()):
            self._release(connection)
        places = {
            number: streams[key].socket.fileno()
            for key, numbers in run.streams.items()
            for number in numbers
        }
        try:
            self._fork(control, lambda: self._become(run, places))
        finally:
            for stream in streams.values():
                stream.socket.close()

    def _start_switch(self, control: _Connection, path: object) -> None:
        if not (isinstance(path, str) and os.path.isabs(path) and "\0" not in path):
            raise _Refused("switch: not an absolute path")
        self._release(control)
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
                listener.listen(_BACKLOG)
            except OSError as error:
                control.answer(error=f"switch: {path}: {error.strerror}")
                control.socket.close()
                return
            self._fork(control, lambda: self._switch(listener), path)

    def _fork(self, control: _Connection, child: Callable[[], NoReturn], path: str = "") -> None:
        """Start a child, which `child` is the whole life of."""
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            control.answer(error=f"fork: {error.strerror}")
            control.socket.close()
            return
        if pid == 0:
            self._live(child, parent)
        monitor = _Monitor(pid, os.pidfd_open(pid), control, path)
        self._monitors.add(monitor)
        self._selector.register(monitor.pidfd, selectors.EVENT_READ, lambda: self._end(monitor))
        self._selector.register(
            control.socket, selectors.EVENT_READ, lambda: self._kill_one(monitor)
        )
        control.answer(pid=pid)

    def _live(self, child: Callable[[], NoReturn], parent: int) -> NoReturn:
        """Be the child."""
        try:
            os.setsid()
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            child()
        except BaseException as error:  # noqa: BLE001  (no way may lead back into the server)
            os.write(2, f"pyvirt: {unexpected(error)}\n".encode(errors="replace"))
        finally:
            os._exit(1)

    @staticmethod
    def _become(run: _Run, places: dict[int, int]) -> NoReturn:
        """Be a monitor."""
        _place(places)
        os.chdir(run.cwd)
        sys.argv = ["pyvirt", "run", *run.words]
        from .main import main

        main()

    @staticmethod
    def _switch(listener: socket.socket) -> NoReturn:
        """Be a switch; the listener is the only descriptor beside the standard ones."""
        _place({_FIRST_FD: listener.fileno()})
        listener.detach()
        Switch(socket.socket(fileno=_FIRST_FD)).serve()

    def _kill_one(self, monitor: _Monitor) -> None:
        self._selector.unregister(monitor.control.socket)
        signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)

    def _end(self, monitor: _Monitor) -> None:
        """See to a monitor that has ended."""
        self._selector.unregister(monitor.pidfd)
        os.close(monitor.pidfd)
        self._monitors.discard(monitor)
        status = os.waitstatus_to_exitcode(os.waitpid(monitor.pid, 0)[1])
        if monitor.path:
            with contextlib.suppress(OSError):
                os.unlink(monitor.path)
        if status < 0:
            for _ in registry.running():
                pass  # which tidies up what the dead one could not
        monitor.control.answer(status=status)
        if monitor.control.socket in self._selector.get_map():
            self._selector.unregister(monitor.control.socket)
        monitor.control.socket.close()

    def close(self) -> None:
        """End everything."""
        for monitor in list(self._monitors):
            signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)
            self._end(monitor)
        for connection in list(self._unclaimed):
            self._drop(connection, "")
        self._selector.close()
        self._accepting.close()
        self._listener.close()


def _place(places: dict[int, int]) -> None:
    """Let descriptor `number` be what `places` has for it, and no other be open."""
    null = os.open(os.devnull, os.O_RDWR)
    wanted = {0: null, 1: null, 2: null, **places}
    top = max(wanted) + 1
    # None is to be overwritten before it is copied.
    copies = {
        number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STREAMS_MAX) for number, fd in wanted.items()
    }
    for number, copy in copies.items():
        os.dup2(copy, number)
    for number in range(top):
        if number not in wanted:
            os.closerange(number, number + 1)
    os.closerange(top, os.sysconf("SC_OPEN_MAX"))


class _Ended(BaseException):
    """A signal asks for the end."""


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    raise _Ended


def main(argv: list[str]) -> int:
    """Run `pyvirt fork-server ARGV`; return the exit status."""
    if usage.shown(USAGE, argv):
        return 0
    for word in argv:
        if word.startswith("-"):
            raise ConfigError(f"fork-server: {word}: no such option; pyvirt fork-server -help")
    if len(argv) != 1:
        words = " ".join(["fork-server", *argv])
        raise ConfigError(f"{words}: give the path of one socket; pyvirt fork-server -help")
    for name in _PRELOADED:
        __import__(f"pyvirt.{name}")
    "".encode("unicode_escape")  # the registry's; a codec is a module, too
    server = Server(argv[0])
    # From here on, so that the garbage collector of a child does not touch, and copy, our pages.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _on_signal)
    try:
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        server.serve()
    except (_Ended, BrokenPipeError):
        pass
    finally:
        server.close()
    return 0
