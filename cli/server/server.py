"""A server that starts machines as forks of itself, without the wait for imports.

Clients connect to its Unix socket. The first line of a connection, a JSON object of at most
LINE_MAX bytes, says what the connection is:

    {"stream": KEY}         a stream of a monitor that is to be; KEY is the client's to choose, and
                            what follows the line is the monitor's alone
    {"run": [WORD, ...], "cwd": PATH, "streams": {KEY: [FD, ...], ...}, "fds": [FD, ...]}
                            run `pyvirt run WORD...` in folder PATH with these streams as its
                            descriptors, and those that come with the line (SCM_RIGHTS), as `fds`
                            numbers them (0, 1 and 2 are /dev/null where none is given). With
                            "template": NAME it is a fork of that template: WORDs are those of
                            `pyvirt restore` behind the folder. With "caller", which is
                            {"version": TEXT, "package": PATH, "umask": N, "env": {NAME: VALUE}},
                            it has that environment and umask, and what limits, processors and
                            priority the client's process has
    {"hold": NAME, "spares": N}
                            have room for a template, as long as this connection is there, of which
                            N forks (0 to 16; else 1) are prepared ahead; answered by
                            {"path": PATH}, the server's socket, and when one is prepared by
                            {"ready": true}, or {"error": TEXT}
    {"give": NAME}          make a machine the template; vmm/snapshot/template.py has the rest
    {"switch": PATH}        run a switch between the VMs whose stream netdevs name the socket PATH,
                            a new one; answered as a `run` is, and ends as one
    {"read": PATH}          answered by {"text": TEXT}, of at most READ_MAX bytes of a regular file
                            (null where there is none), and the end
    {"ping": true}          answered by {} and the end

A `run` is answered by one line, {"pid": N}, or {"error": TEXT} and the end; and when the monitor
has ended by another, {"status": N}, which is -N after signal N, and the end. To who sent
descriptors comes a pidfd with the first. The client's next byte, or the end of its sending, kills
the monitor. One with a caller gets SIGHUP then; it does not end with the server, says its status
itself, and when it goes to the background {"left": 0} in its place. A stream that no `run` asks
for, a `run` whose streams do not come and a connection that says nothing are closed after
PATIENCE_S, or at once when their client closes them.

Clients of another user than this process's, or root, are refused. One thread, so that a fork is
safe.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ...devices.unix_socket import UnixListener
from ...errors import ConfigError, PyvirtError, unexpected
from ...harness.vm.switch import Switch
from . import child
from .code import Code
from .connection import Connection, Refused, is_path, peer, read_file, read_run, why
from .places import PLACES_MAX, SPARES_MAX, Place
from .spares import Ahead, Spares, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from .child import Enter
    from .connection import Run

PATIENCE_S = 20.0
CONNECTIONS_MAX = 512  # that are no monitor's yet
_BACKLOG = 128
_FIRST_FD = 3


@dataclass(eq=False)
class _Monitor:
    """A child, and the connection that it was asked for on; a switch's has a socket's `path`."""

    pid: int
    pidfd: int
    control: Connection
    path: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether it ends with this process, and is killed for its client."""
        return self.control.run is None or self.control.run.caller is None


def _is_welcome(client: socket.socket) -> bool:
    return peer(client)[1] in {os.geteuid(), 0}


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class Server:
    """Forks monitors; owns the socket, the connections and the children until `close`."""

    def __init__(
        self, path: str, enter: Enter, tidy: Callable[[], object], *, name: str = "serve"
    ) -> None:
        """Listen at `path`; ConfigError, which begins with the command's `name`.

        `enter` is what a child calls to be a monitor. `tidy` is called after one was killed.
        """
        try:
            self._listener = UnixListener(path, mode=0o600, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"{name} {path}: {error.strerror}; name a new file in a writable folder"
            ) from None
        self._path = os.path.abspath(path)
        self._name = name
        self._code = Code()
        self._enter = enter
        self._tidy = tidy
        self._accepting = socket.socket(fileno=os.dup(self._listener.fd))
        self._spare = _spare()  # given up to say that there are no more
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._accepting, selectors.EVENT_READ, self._accept)
        self._unclaimed: dict[Connection, None] = {}
        self._streams: dict[str, Connection] = {}
        # What they say is a monitor's, so that their end alone is looked for.
        self._hung_up = select.epoll()
        self._selector.register(self._hung_up, selectors.EVENT_READ, self._drop_gone)
        self._waiting: list[Connection] = []  # each has a run whose streams are still to come
        self._monitors: set[_Monitor] = set()
        self.ahead = Ahead()
        self.places: dict[str, Place] = {}

    def serve(self, until: Callable[[], bool], fd: int = -1) -> None:
        """Serve until `until` is true, which is asked when something has happened.

        That is when `fd` can be read, if one is given; else anything.
        """
        ended: list[bool] = []

        def look() -> None:
            if until():
                ended.append(True)

        if fd >= 0:
            self._selector.register(fd, selectors.EVENT_READ, look)
        else:
            look()
        while not ended:
            self._refill()
            for key, _ in self._selector.select(self._patience()):
                # It may be gone since the selector looked.
                if self._selector.get_map().get(key.fd) == key:
                    self._serve_one(key)
            self._close_late()
            if fd < 0:
                look()
        if fd >= 0:
            self._selector.unregister(fd)

    def _serve_one(self, key: selectors.SelectorKey) -> None:
        """Serve one descriptor; a fault of ours costs that one, and no other monitor."""
        try:
            key.data()
        except Exception as error:
            if not isinstance(key.fileobj, socket.socket) or key.fileobj is self._accepting:
                raise
            sys.stderr.write(f"pyvirt: {self._name}: {unexpected(error)}; please report\n")
            if self._selector.get_map().get(key.fd) == key:
                self._selector.unregister(key.fileobj)
            for connection in [one for one in self._unclaimed if one.socket is key.fileobj]:
                self._drop(connection, "the server has failed; see what it says")

    def _patience(self) -> float | None:
        times = [connection.until for connection in self._unclaimed]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _close_late(self) -> None:
        now = time.monotonic()
        for connection in [c for c in self._unclaimed if c.until <= now]:
            self._drop(connection, "its streams have not come" if connection.run else "")

    def _refill(self) -> None:
        for spares in (self.ahead, *self.places.values()):
            try:
                waiting = spares.refill(self._enter)
            except OSError:
                continue  # who asks for a machine is told
            if waiting is not None:
                self._watch(spares, waiting)

    def _accept(self) -> None:
        try:
            client, _ = self._accepting.accept()
        except OSError as error:
            self._refuse(error)
            return
        client.setblocking(True)
        connection = Connection(client, time.monotonic() + PATIENCE_S)
        if not _is_welcome(client):
            self._drop(connection, "it serves another user; start one of your own")
            return
        if len(self._unclaimed) >= CONNECTIONS_MAX:
            self._drop(connection, "it has too many clients; try again later")
            return
        self._unclaimed[connection] = None
        self._selector.register(client, selectors.EVENT_READ, lambda: self._begin(connection))

    def _refuse(self, error: OSError) -> None:
        """Tell whoever is next why there is no connection, if that takes one file more."""
        if error.errno not in {errno.EMFILE, errno.ENFILE}:
            return
        os.close(self._spare)
        try:
            with closing(self._accepting.accept()[0]) as client:
                line = json.dumps({"error": why(error)}).encode() + b"\n"
                client.sendall(line, socket.MSG_DONTWAIT)
        except OSError:
            return
        finally:
            self._spare = _spare()

    def _begin(self, connection: Connection) -> None:
        """Take a part of the first line of a connection."""
        try:
            message = connection.read_line()
            if message is not None:
                self._selector.unregister(connection.socket)
                self._understand(connection, message)
        except BlockingIOError:
            return
        except (OSError, PyvirtError, Refused) as error:
            self._drop(connection, str(error))

    def _understand(self, connection: Connection, message: dict[str, Any]) -> None:
        if "run" in message:
            connection.run = self._read_run(connection, message)
            self._waiting.append(connection)
            # A client that gives up is not to get a monitor.
            self._selector.register(
                connection.socket, selectors.EVENT_READ, lambda: self._drop(connection, "")
            )
        elif "switch" in message:
            self._start_switch(connection, message["switch"])
            return
        elif "hold" in message:
            self._hold(connection, message["hold"], message.get("spares", 1))
            return
        elif "give" in message:
            self._give(connection, message["give"])
            return
        elif message.get("ping") or "read" in message:
            is_read = "read" in message
            connection.answer({"text": read_file(message["read"])} if is_read else {})
            self._drop(connection, "")
            return
        else:
            key = message.get("stream")
            if not isinstance(key, str) or not key or key in self._streams:
                raise Refused("stream: not a key of its own")
            connection.key = key
            self._streams[key] = connection
            self._hung_up.register(connection.socket, 0)
        for waiting in list(self._waiting):
            assert waiting.run is not None
            if waiting.run.streams.keys() <= self._streams.keys():
                self._start(waiting, waiting.run)

    def _read_run(self, connection: Connection, message: dict[str, Any]) -> Run:
        run = read_run(message)
        if len(run.fds) != len(connection.fds):
            raise Refused("fds: not as many as have come")
        if run.caller is not None and (difference := self._code.difference(run.caller)):
            raise Refused(f"{difference}; start it anew")
        return run

    def _drop_gone(self) -> None:
        """Close the streams whose clients have closed them."""
        gone = {fd for fd, _ in self._hung_up.poll(0)}
        for stream in [one for one in self._streams.values() if one.socket.fileno() in gone]:
            self._drop(stream, "")

    def _drop(self, connection: Connection, why: str) -> None:
        """Close a connection that is no monitor's, after an answer where there is one to give."""
        if why and not connection.key:
            connection.answer({"error": why})
        self._release(connection)
        connection.close()

    def _release(self, connection: Connection) -> None:
        self._unclaimed.pop(connection, None)
        if self._streams.pop(connection.key, None) is not None:
            self._hung_up.unregister(connection.socket)
        if connection in self._waiting:
            self._waiting.remove(connection)
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)

    def _hold(self, connection: Connection, name: object, spares: object) -> None:
        if not (isinstance(name, str) and name and "," not in name) or name in self.places:
            raise Refused("hold: not a name of its own")
        if type(spares) is not int or not 0 <= spares <= SPARES_MAX:
            raise Refused(f"spares: not a number from 0 to {SPARES_MAX}")
        if len(self.places) >= PLACES_MAX:
            raise Refused(f"hold: there are {PLACES_MAX} templates; give up one")
        self._release(connection)
        self.places[name] = Place(connection.answer, spares=spares)
        self._selector.register(
            connection.socket, selectors.EVENT_READ, lambda: self._let_go(connection, name)
        )
        connection.answer({"path": self._path})

    def _let_go(self, connection: Connection, name: str) -> None:
        self._drop(connection, "")
        self.places.pop(name).close()

    def _give(self, connection: Connection, name: object) -> None:
        place = self.places.get(name) if isinstance(name, str) else None
        if place is None:
            raise Refused(f"there is no template of the name {str(name)[:40]!r}")
        place.give(connection)
        self._release(connection)
        self._selector.register(
            connection.socket, selectors.EVENT_READ, lambda: self._take(connection, place)
        )
        connection.answer({})

    def _take(self, connection: Connection, place: Place) -> None:
        """Take what fills a place, or the end of who wanted to."""
        try:
            if connection.read_line() is None:
                return
            place.fill(connection.fds)
            gc.freeze()
            connection.answer({})
        except BlockingIOError:
            return
        except (OSError, PyvirtError, Refused) as error:
            connection.answer({"error": str(error)})
        place.giver = None
        self._drop(connection, "")

    def _hear(self, spares: Spares, waiting: Waiting) -> None:
        """Hear a child until it runs its guest, or ends: who closes first may lose what is said."""
        if not spares.hear(waiting):
            self._selector.unregister(waiting.channel)
            waiting.channel.close()

    def _watch(self, spares: Spares, waiting: Waiting) -> None:
        def end() -> None:
            self._selector.unregister(waiting.pidfd)
            os.close(waiting.pidfd)
            os.waitpid(waiting.pid, 0)
            if waiting in spares.waiting:
                spares.waiting.remove(waiting)

        self._listen_to(spares, waiting)
        self._selector.register(waiting.pidfd, selectors.EVENT_READ, end)

    def _listen_to(self, spares: Spares, waiting: Waiting) -> None:
        self._selector.register(
            waiting.channel, selectors.EVENT_READ, lambda: self._hear(spares, waiting)
        )

    def _start(self, control: Connection, run: Run) -> None:
        streams = {key: self._streams[key] for key in run.streams}
        for connection in (control, *streams.values()):
            self._release(connection)
        fds = {
            number: streams[key].socket.fileno()
            for key, numbers in run.streams.items()
            for number in numbers
        }
        fds |= dict(zip(run.fds, control.fds, strict=True))
        try:
            if run.template is not None:
                self._fork_template(control, run, fds)
            elif run.caller is None or not self._take_ahead(control, run, fds):
                asked = control.socket.fileno()
                self._fork(control, lambda: child.become(run, fds, asked, self._enter))
        finally:
            control.close_fds()
            for stream in streams.values():
                stream.close()

    def _take_ahead(self, control: Connection, run: Run, fds: dict[int, int]) -> bool:
        """Have a child that waits be the machine; say whether one does."""
        try:
            waiting = self.ahead.take_waiting(run, fds, control.socket.fileno(), 0)
        except OSError:
            waiting = None  # of too much at once, which a fork of its own has no need to be sent
        if waiting is None:
            self.ahead.missed()
            return False
        self._selector.unregister(waiting.pidfd)
        self._adopt(_Monitor(waiting.pid, waiting.pidfd, control), has_fds=bool(run.fds))
        return True

    def _fork_template(self, control: Connection, run: Run, fds: dict[int, int]) -> None:
        asked_ns = time.monotonic_ns()
        name = run.template or ""
        place = self.places.get(name)
        try:
            if place is None:
                raise Refused("is not there; make it again")
            waiting, is_new = place.take(self._enter, run, fds, asked_ns)
        except (OSError, Refused) as error:
            text = why(error) if isinstance(error, OSError) else str(error)
            self._drop(control, f"template {name}: {text}" if name else f"template: {text}")
            return
        if is_new:
            self._listen_to(place, waiting)
        else:
            self._selector.unregister(waiting.pidfd)
        self._adopt(_Monitor(waiting.pid, waiting.pidfd, control), has_fds=bool(run.fds))

    def _start_switch(self, control: Connection, path: object) -> None:
        if not is_path(path):
            raise Refused("switch: not an absolute path")
        self._release(control)
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(path)
                listener.listen(_BACKLOG)
            except OSError as error:
                control.answer({"error": f"switch: {path}: {error.strerror or error}"})
                control.close()
                return
            self._fork(control, lambda: self._switch(listener), path)

    def _fork(self, control: Connection, life: Callable[[], NoReturn], path: str = "") -> None:
        """Start a child, which `life` is the whole life of."""
        is_ours = control.run is None or control.run.caller is None
        parent = os.getpid() if is_ours else 0
        try:
            pid = os.fork()
        except OSError as error:
            self._drop(control, f"fork: {why(error)}")
            return
        if pid == 0:
            child.live(life, parent)
        has_fds = control.run is not None and bool(control.run.fds)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._drop(control, f"fork: {why(error)}")
            return
        self._adopt(_Monitor(pid, pidfd, control, path), has_fds=has_fds)

    def _adopt(self, monitor: _Monitor, *, has_fds: bool) -> None:
        control = monitor.control
        self._monitors.add(monitor)
        self._selector.register(monitor.pidfd, selectors.EVENT_READ, lambda: self._end(monitor))
        if monitor.is_ours:
            self._selector.register(
                control.socket, selectors.EVENT_READ, lambda: self._kill_one(monitor)
            )
        control.answer({"pid": monitor.pid}, [monitor.pidfd] if has_fds else ())

    @staticmethod
    def _switch(listener: socket.socket) -> NoReturn:
        """Be a switch; the listener is the only descriptor beside the standard ones."""
        child.place({_FIRST_FD: listener.fileno()})
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
            self._tidy()
        monitor.control.answer({"status": status})
        if monitor.control.socket in self._selector.get_map():
            self._selector.unregister(monitor.control.socket)
        monitor.control.close()

    def close(self) -> None:
        """End everything but monitors that are their callers'."""
        for monitor in [one for one in self._monitors if one.is_ours]:
            signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)
            self._end(monitor)
        for monitor in self._monitors:
            os.close(monitor.pidfd)
            monitor.control.close()
        for spares in (self.ahead, *self.places.values()):
            spares.close()
        for connection in list(self._unclaimed):
            self._drop(connection, "")
        self._selector.close()
        self._hung_up.close()
        self._accepting.close()
        os.close(self._spare)
        self._listener.close()
