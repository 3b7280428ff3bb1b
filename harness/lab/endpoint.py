"""A channel of the lab's protocol joined to file descriptors of the host."""

from __future__ import annotations

import contextlib
import os
import select
import socket

from .protocol import Channel, Frame

CHUNK = 16384


class Endpoint:
    """Moves bytes between a channel and the descriptors `source` and `sink` (-1: none, left).

    The descriptors stay their owner's, unless they are those of `connection`, which is
    closed by close(). They are read and written only when poll() says so, in pieces that do
    not block.
    """

    __slots__ = ("_connection", "_shut", "channel", "sink", "source")

    def __init__(self, channel: Channel, source: int, sink: int) -> None:
        self.channel = channel
        self.source = source
        self.sink = sink
        self._connection: socket.socket | None = None
        self._shut = False

    @classmethod
    def of_socket(cls, channel: Channel, connection: socket.socket) -> Endpoint:
        """Join a connected socket, which now belongs to the endpoint."""
        connection.setblocking(False)
        endpoint = cls(channel, connection.fileno(), connection.fileno())
        endpoint._connection = connection
        return endpoint

    @property
    def reads(self) -> bool:
        """Whether the source is to be read now."""
        return self.source >= 0 and self.channel.sendable > 0

    @property
    def writes(self) -> bool:
        """Whether there is something to be written."""
        return self.sink >= 0 and len(self.channel.arrived) > 0

    def read(self) -> Frame | None:
        """Read the source once; its end, or its loss, ends the channel's sending."""
        try:
            data = os.read(self.source, min(CHUNK, self.channel.sendable))
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if data:
            return self.channel.data(data)
        self.channel.end()
        self.source = -1
        return None

    def write(self) -> None:
        """Write what has arrived, at most PIPE_BUF bytes; a lost reader refuses the rest."""
        try:
            self.channel.taken(os.write(self.sink, self.channel.arrived[: select.PIPE_BUF]))
        except BlockingIOError:
            pass
        except OSError:
            self.channel.refuse()
            self.sink = -1

    def due(self) -> list[Frame]:
        """Return the channel's own frames to be sent now, after what they say here."""
        if self.channel.closed_by_peer:
            self.source = -1
        if self._connection and self.channel.drained and not self._shut:
            self._shut = True
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
        return self.channel.due()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection:
            self._connection.close()
        self.source = self.sink = -1
