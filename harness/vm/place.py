"""Where the VMs of a test session run: beside a fork server, here or in a nested lab.

The lab is booted when the first VM asks, and anew when it has stopped. It has one CPU
(docs/lab.md), so that the workers of pytest-xdist get one each, as far as there are cores.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...devices.unix_socket import UnixListener
from ...errors import BackendError, PyvirtError
from ...vmm.accel import kvm_failure
from . import fork_server
from .fork_server import ForkServer

if TYPE_CHECKING:
    from collections.abc import Callable

LAB_MIB = 4096
_ALIVE_S = 10.0
_ASK_S = 600.0  # for a lab, three times, behind others who ask
_LINE_MAX = 1 << 16
_BACKLOG = 64


def is_emulated() -> bool:
    """Say whether VMs run in the nested lab."""
    return "PYVIRT_LAB" in os.environ or kvm_failure() != ""


class Place(Protocol):
    """What a VM knows of where it runs."""

    def server(self) -> str:
        """Return the socket of a fork server that works; PyvirtError when there is none."""

    def is_alive(self, server: str) -> bool:
        """Say whether that one still answers."""

    def why(self, server: str) -> str:
        """Return why it does not, and have a new one take its place."""


class Session:
    """Owns a fork server, and the lab around it, until `close`. Any thread."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Start nothing yet; `say` gets lines for the user."""
        self._say = say
        self._lock = threading.RLock()
        self._server: ForkServer | None = None
        self._past: dict[str, str] = {}  # why servers that are gone are so, by their sockets

    def server(self) -> str:
        """Return the socket of the server, starting it if need be."""
        with self._lock:
            if self._server is not None and not self._server.is_alive:
                self.why(self._server.path)
            if self._server is None:
                self._server = self._start()
            return self._server.path

    def _start(self) -> ForkServer:
        failure = kvm_failure()
        if not failure:
            return ForkServer()
        self._say(f"the VMs run in the nested lab, because: {failure}")
        return ForkServer(lab_mib=LAB_MIB)

    def _end(self, why: str) -> None:
        if self._server is not None:
            self._past[self._server.path] = why
            self._server.close()
            self._server = None

    def is_alive(self, server: str) -> bool:
        """Say whether a server answers; anything but at once is a lab that has stopped."""
        return fork_server.answers(server, _ALIVE_S)

    def why(self, server: str) -> str:
        """Return why a server is gone; the next VM gets a new one."""
        with self._lock:
            if self._server is not None and server == self._server.path:
                stopped = "the nested lab has stopped"
                self._end(stopped if self._server.is_alive else self._server.why())
            return self._past.get(server, "the fork server is gone")

    def close(self) -> None:
        """End all that runs."""
        with self._lock:
            self._end("the session has ended")


class Broker:
    """Gives the workers of pytest-xdist their sessions, by a Unix socket; owns them."""

    def __init__(self, first: Session, make: Callable[[], Session]) -> None:
        """Serve; `first` is of the first worker, `make` makes another."""
        cores = len(os.sched_getaffinity(0))
        self._sessions = [first] + [make() for _ in range(cores - 1 if is_emulated() else 0)]
        folder = fork_server.SOCKETS if os.access(fork_server.SOCKETS, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="pyvirt-", dir=folder)
        self.path = str(Path(self._folder.name, "session"))
        self._unix = UnixListener(self.path, mode=0o600, backlog=_BACKLOG)
        self._listener = socket.socket(fileno=os.dup(self._unix.fd))
        self._listener.setblocking(True)
        threading.Thread(target=self._serve, name="pyvirt-broker", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            worker, server = json.loads(client.recv(_LINE_MAX))
            session = self._sessions[worker % len(self._sessions)]
            try:
                message = {"answer": session.why(server) if server else session.server()}
            except PyvirtError as error:
                message = {"error": str(error)}
            client.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """Serve no more, and end the sessions."""
        # A thread that waits in accept() is woken by this, not by close().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._unix.close()
        self._folder.cleanup()
        for session in self._sessions:
            session.close()


class Remote:
    """A session of another process, behind its broker."""

    def __init__(self, path: str, worker: int) -> None:
        """Ask nothing yet; `worker` counts from 0."""
        self._path = path
        self._worker = worker

    def _ask(self, server: str) -> str:
        with socket.socket(socket.AF_UNIX) as broker:
            try:
                broker.settimeout(_ASK_S)
                broker.connect(self._path)
                broker.sendall(json.dumps([self._worker, server]).encode())
                answer: dict[str, Any] = json.loads(broker.recv(_LINE_MAX) or b"{}")
            except OSError as error:
                raise BackendError(f"the session of pytest's controller: {error}") from None
        if "answer" not in answer:
            raise BackendError(answer.get("error", "the session of pytest's controller has ended"))
        return str(answer["answer"])

    def server(self) -> str:
        """Return the socket of the server."""
        return self._ask("")

    def is_alive(self, server: str) -> bool:
        """Say whether a server answers."""
        return fork_server.answers(server, _ALIVE_S)

    def why(self, server: str) -> str:
        """Return why a server is gone; the next VM gets a new one."""
        return self._ask(server)

    def close(self) -> None:
        """Nothing here is ours."""
