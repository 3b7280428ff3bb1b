"""The server: one thread that serves every listener and client.

Commands run on this thread, one at a time, whoever sends them; what other threads have to tell
comes through `emit`. A command that waits for the guest is gone on with between others, while its
client's next ones wait. A client gets what waits for it when it can take it: nobody waits for
another, and the machine for nobody.
"""

from __future__ import annotations

import _thread
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING

from ..errors import PyvirtError, unexpected
from ..native import lib
from .connection import Connection
from .listener import Listener
from .monitor import Monitor
from .pending import Pending

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..vmm.log import Log
    from .host import Host
    from .listener import ListenerConfig

CLIENTS_MAX = 64
_LOOK_S = 0.1  # at what waits for the guest, if nobody says `go_on`
_LAST_WORDS_S = 1.0  # how long `close` lets clients take what waits for them
_BREATH_S = 0.1  # without accepting there, when the process has no descriptors left


class Server:
    """A machine's QMP server; owns its sockets from the start on until `close`."""

    def __init__(self, host: Host, configs: Sequence[ListenerConfig], log: Log) -> None:
        """Open the listeners; ConfigError, and nothing is left behind. No thread yet."""
        self._log = log
        self._warn = log.limited()  # of what clients can cause
        self._monitor = Monitor(host, self.emit, log)
        self._pending = Pending()
        self._clients: set[Connection] = set()
        self._waiting: set[Connection] = set()  # of them, for the guest: they are not looked at
        self._listeners: list[Listener] = []
        self._resting: dict[Listener, float] = {}  # of them, not looked at until then
        self._selector = selectors.DefaultSelector()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake_fd, selectors.EVENT_READ, self._on_wake)
        self._closing = False
        self._running = _thread.allocate_lock()  # held by the thread
        try:
            for config in configs:
                self._open(Listener(config, log))
        except BaseException:
            self._give_back()
            raise

    def _open(self, listener: Listener) -> None:
        self._listeners.append(listener)
        if listener.connection is not None:
            self._greet(listener.connection, listener)
        else:
            self._look_at(listener)

    def _look_at(self, listener: Listener) -> None:
        if listener.socket is not None:
            self._selector.register(
                listener.socket, selectors.EVENT_READ, lambda _: self._on_client(listener)
            )

    def addresses(self) -> list[str]:
        """Return where clients connect to: absolute paths and tcp:HOST:PORT."""
        return [place for listener in self._listeners if (place := listener.describe())]

    def start(self) -> None:
        """Start the thread; PyvirtError. Not before a fork."""
        self._running.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:
            self._running.release()
            raise PyvirtError(f"QMP server: {error}; raise ulimit -u") from None

    def emit(self, name: str, data: dict[str, object]) -> None:
        """Send an event to every client that has begun to talk, as `pending` says.

        Any thread, never waits.
        """
        if self._pending.put(name, data):
            self._wake()

    def go_on(self) -> None:
        """Look at the commands that wait for the guest; any thread, never waits."""
        self._wake()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Send what has been emitted, for a second at most, then close everything.

        By one thread, not the server's. What is emitted later is lost.
        """
        self._closing = True
        self._wake()
        with self._running:
            pass
        self._give_back()

    def _give_back(self) -> None:
        self._close_sockets()
        self._selector.close()
        fd, self._wake_fd = self._wake_fd, -1
        if fd >= 0:
            os.close(fd)

    def _close_sockets(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        for listener in self._listeners:
            if listener.socket is not None and listener not in self._resting:
                self._selector.unregister(listener.socket)
            listener.close()
        self._listeners.clear()
        self._resting.clear()

    def _run(self) -> None:
        lib.pv_crash_thread(b"qmp")
        try:
            while not self._closing:
                for key, mask in self._selector.select(self._patience()):
                    key.data(mask)
                for client in list(self._waiting):
                    self._serve(client, 0)
                self._take_events(None)
                self._end_rests()
            self._say_goodbye()
        except Exception as error:  # noqa: BLE001  (the guest goes on without a monitor)
            self._log.error(f"QMP server: {unexpected(error)}; please report. It ends")
            self._close_sockets()
        finally:
            self._running.release()

    def _patience(self) -> float | None:
        waits = [] if (first := self._pending.patience()) is None else [first]
        if self._waiting:
            waits.append(_LOOK_S)
        if self._resting:
            waits.append(max(0.0, min(self._resting.values()) - time.monotonic()))
        return min(waits, default=None)

    def _end_rests(self) -> None:
        now = time.monotonic()
        for listener in [one for one, until in self._resting.items() if until <= now]:
            del self._resting[listener]
            self._look_at(listener)

    def _say_goodbye(self) -> None:
        """Let the clients take what waits for them; no request is looked at any more."""
        self._take_events(None)
        deadline = time.monotonic() + _LAST_WORDS_S
        with selectors.DefaultSelector() as last:
            for client in self._clients:
                if not client.is_idle():
                    last.register(client.socket, selectors.EVENT_WRITE, client)
            while last.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in last.select(left):
                    key.data.write()
                    if key.data.is_idle() or not key.data.is_open:
                        last.unregister(key.fileobj)

    def _on_wake(self, _: int) -> None:
        os.eventfd_read(self._wake_fd)

    def _on_client(self, listener: Listener) -> None:
        assert listener.socket is not None
        try:
            client, _ = listener.socket.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, or the client is gone already: the listener stays readable.
            self._warn(f"{listener.config.option}: {error.strerror}")
            self._selector.unregister(listener.socket)
            self._resting[listener] = time.monotonic() + _BREATH_S
            return
        if len(self._clients) >= CLIENTS_MAX:
            self._warn(f"{listener.config.option}: {CLIENTS_MAX} clients, no more")
            client.close()
            return
        self._greet(client, listener)

    def _greet(self, client: socket.socket, listener: Listener) -> None:
        client.setblocking(False)
        if client.family in {socket.AF_INET, socket.AF_INET6}:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = listener.config
        connection = Connection(
            client, self._monitor, throttled=config.throttled, events_last=config.events_last
        )
        self._clients.add(connection)
        self._selector.register(client, selectors.EVENT_READ, self._serving(connection))
        self._settle(connection)

    def _serving(self, client: Connection) -> Callable[[int], None]:
        def serve(mask: int) -> None:
            # Not dropped since the selector looked.
            if client.is_open:
                self._serve(client, mask)

        return serve

    def _serve(self, client: Connection, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                client.write()
            if mask & selectors.EVENT_READ:
                client.read()
            client.serve(self._take_events)
        except Exception as error:  # noqa: BLE001  (a fault of ours costs one client)
            client.is_open = False
            client.problem = f"{unexpected(error)}; please report"
        self._settle(client)

    def _take_events(self, requester: Connection | None) -> list[bytes]:
        """Send the events that wait to everybody but the requester; return them for that one."""
        taken = self._pending.take()
        if dropped := self._pending.take_dropped():
            self._warn(f"QMP: {dropped} events gave way to later ones")
        for event in taken:
            for client in list(self._clients):
                if client is not requester and client.session.wants_events:
                    client.send(event)
                    self._settle(client)
        return taken if requester is None or requester.session.wants_events else []

    def _settle(self, client: Connection) -> None:
        """Wait for what the client wants now, or drop it."""
        if client.is_waiting:
            # Also one that has gone: what it asked for is done.
            if client not in self._waiting:
                self._waiting.add(client)
                self._selector.unregister(client.socket)
            return
        if client in self._waiting:
            self._waiting.remove(client)
            self._selector.register(client.socket, selectors.EVENT_READ, self._serving(client))
        if not client.is_open:
            self._drop(client)
            return
        read, write = client.wants()
        # A client that has ended and taken everything is looked at once more, to be closed.
        mask = selectors.EVENT_READ if read else selectors.EVENT_WRITE
        if write:
            mask |= selectors.EVENT_WRITE
        key = self._selector.get_key(client.socket)
        if mask != key.events:
            self._selector.modify(client.socket, mask, key.data)

    def _drop(self, client: Connection) -> None:
        if client.problem:
            self._warn(f"QMP: {client.problem}; it is closed")
        self._clients.discard(client)
        if client in self._waiting:
            self._waiting.remove(client)
        else:
            self._selector.unregister(client.socket)
        client.close()
