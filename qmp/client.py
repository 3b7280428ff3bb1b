"""The other end: a client that connects, says hello, sends commands and takes events.

It talks to any QMP server whose messages are lines, as ours, StratoVirt's and QEMU's are.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

from ..errors import BackendError, ConfigError, PyvirtError

if TYPE_CHECKING:
    from collections.abc import Callable

_GREETING_S = 10.0
ANSWER_S = 60.0  # what a command may take unless its caller knows better
_LINE_MAX = 64 << 20  # bytes; no answer is that long
_READ_BYTES = 1 << 16


class CommandError(PyvirtError):
    """The server refused a command; `kind` is the error's class."""

    def __init__(self, command: str, kind: str, description: str) -> None:
        self.kind = kind
        super().__init__(f"{command}: {printable(description)} ({printable(kind)})")


def printable(text: str) -> str:
    """Return text of a server's as a terminal may get it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _connect(place: str) -> socket.socket:
    try:
        if place.startswith("tcp:"):
            host, _, port = place.removeprefix("tcp:").rpartition(":")
            address = (host.strip("[]") or "127.0.0.1", int(port))
            return socket.create_connection(address, _GREETING_S)
        path = place.removeprefix("unix:")
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(_GREETING_S)
            connected.connect(path)
        except BaseException:
            connected.close()
            raise
    except ValueError:
        raise ConfigError(f"{place}: has no port; give tcp:HOST:PORT") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{place}: {reason}; pyvirt ps lists the running machines") from None
    return connected


class Client:
    """A connection that has said hello. For one thread at a time."""

    def __init__(
        self, place: str | socket.socket, on_event: Callable[[dict[str, Any]], None]
    ) -> None:
        """Connect to a socket's path or tcp:HOST:PORT; ConfigError, BackendError.

        Or take a connected socket, which is the client's from then on. `on_event` is called with
        each event, by whoever waits for an answer or calls `pump`.
        """
        self._place = place if isinstance(place, str) else "QMP"
        self._on_event = on_event
        self._buffer = b""
        self._socket = _connect(place) if isinstance(place, str) else place
        try:
            greeting = self._greeting()
            if not isinstance(greeting.get("QMP"), dict):
                raise BackendError(f"{place}: what answers there is no QMP monitor")
            self.version: dict[str, Any] = greeting["QMP"].get("version") or {}
            self.execute("qmp_capabilities", timeout=_GREETING_S)
        except BaseException:
            self.close()
            raise

    def _greeting(self) -> dict[str, Any]:
        try:
            return self._receive(time.monotonic() + _GREETING_S)
        except TimeoutError:
            raise BackendError(
                f"{self._place}: no answer in {_GREETING_S:.0f} s; "
                "it is no QMP monitor, or one that has another client"
            ) from None

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something for `pump`."""
        return self._socket.fileno()

    def execute(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        *,
        timeout: float = ANSWER_S,
    ) -> Any:
        """Return what the command returns; CommandError, and BackendError as of `ask`."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        answer = self.ask(json.dumps(request), timeout)
        if "error" in answer:
            error = answer["error"]
            raise CommandError(command, str(error.get("class")), str(error.get("desc")))
        return answer["return"]

    def ask(self, request: str, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Send a request as it is and return the answer, error or not; BackendError.

        The connection is closed when no answer has come in `timeout` seconds: a late one would be
        taken for that of the next request.
        """
        deadline = time.monotonic() + timeout
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(request.encode("utf-8", "surrogateescape") + b"\n")
        except TimeoutError:
            raise self._too_late(timeout) from None
        except OSError as error:
            raise BackendError(f"{self._place}: {error.strerror}") from None
        while True:
            try:
                message = self._receive(deadline)
            except TimeoutError:
                raise self._too_late(timeout) from None
            if "event" in message:
                self._on_event(message)
            elif "return" in message or "error" in message:
                self._drain()
                return message

    def _too_late(self, timeout: float) -> BackendError:
        self.close()
        return BackendError(f"{self._place}: no answer in {timeout:g} s; is the monitor stopped?")

    def pump(self) -> None:
        """Take the events that have come; waits when there are none. BackendError at the end."""
        self._take(self._receive())
        self._drain()

    def _drain(self) -> None:
        """Take the events that are here already."""
        while b"\n" in self._buffer:
            self._take(self._receive())

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message)

    def _set_limit(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _receive(self, deadline: float | None = None) -> dict[str, Any]:
        """Return the next message; TimeoutError at the deadline (time.monotonic)."""
        while b"\n" not in self._buffer:
            try:
                self._set_limit(deadline)
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                raise
            except OSError as error:
                raise BackendError(f"{self._place}: {error.strerror}") from None
            if not data:
                raise BackendError(f"{self._place}: the monitor has closed the connection")
            self._buffer += data
            if len(self._buffer) > _LINE_MAX:
                raise BackendError(f"{self._place}: what answers there is no QMP monitor")
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise BackendError(f"{self._place}: what answers there is no QMP monitor")
        return message

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def state_folder() -> str:
    """Return where the shell keeps its history: $XDG_STATE_HOME/pyvirt or ~/.local/state/pyvirt."""
    base = os.environ.get("XDG_STATE_HOME", "")
    home = base if base.startswith("/") else os.path.expanduser("~/.local/state")
    return os.path.join(home, "pyvirt")
