"""A switch between VMs without taps: each frame that one of them sends goes to all the others.

It speaks what a stream netdev speaks (devices/stream.py): each frame behind its length, 32 bits in
network order. It needs no privileges, and no network of the host; it is for tests, not for speed.
"""

from __future__ import annotations

import contextlib
import selectors
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_LENGTH = 4
_FRAME_MAX = 65536 + 64  # bytes; what sends more is no netdev
_QUEUED_MAX = 1 << 20  # bytes for one that does not read; frames beyond are lost, as on a wire
_READ = 1 << 18


class _Port:
    """One VM's end."""

    __slots__ = ("received", "socket", "to_send")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.received = b""
        self.to_send = bytearray()


def _frames(port: _Port) -> bytes:
    """Take the whole frames off what has come, lengths included; ValueError for what is none."""
    data, at = port.received, 0
    while len(data) - at >= _LENGTH:
        length = int.from_bytes(data[at : at + _LENGTH], "big")
        if not 0 < length <= _FRAME_MAX:
            raise ValueError
        if len(data) - at < _LENGTH + length:
            break
        at += _LENGTH + length
    port.received = data[at:]
    return data[:at]


class Switch:
    """Serves a listening Unix socket, which stays the caller's; one thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._ports: set[_Port] = set()
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> NoReturn:
        """Serve for ever."""
        while True:
            self.turn()

    def turn(self, timeout: float | None = None) -> None:
        """Move what can be moved, waiting at most `timeout` seconds for something."""
        for key, events in self._selector.select(timeout):
            if key.data is None:
                self._accept()
            elif key.data in self._ports:
                self._move(key.data, events)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        port = _Port(connection)
        self._ports.add(port)
        self._selector.register(connection, selectors.EVENT_READ, port)

    def _move(self, port: _Port, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._send(port)
            if events & selectors.EVENT_READ:
                data = port.socket.recv(_READ)
                if not data:
                    raise ValueError
                port.received += data
                self._spread(port, _frames(port))
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._drop(port)

    def _spread(self, source: _Port, frames: bytes) -> None:
        for port in list(self._ports) if frames else []:
            if port is not source and len(port.to_send) <= _QUEUED_MAX:
                port.to_send += frames
                try:
                    self._send(port)
                except OSError:
                    self._drop(port)

    def _send(self, port: _Port) -> None:
        with contextlib.suppress(BlockingIOError):
            del port.to_send[: port.socket.send(port.to_send)]
        more = selectors.EVENT_WRITE if port.to_send else 0
        self._selector.modify(port.socket, selectors.EVENT_READ | more, port)

    def _drop(self, port: _Port) -> None:
        self._ports.discard(port)
        self._selector.unregister(port.socket)
        port.socket.close()
