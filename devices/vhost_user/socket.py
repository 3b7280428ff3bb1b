"""A back end that somebody else has started, behind the Unix socket that it listens on."""

from __future__ import annotations

import socket

from ..virtio import turn


class SocketBackEnd:
    """Where it is."""

    __slots__ = ("_path", "where")
    who = "the back end"
    mend = "start the back end first, or name its socket"
    patience = turn.LIMIT_S

    def __init__(self, option: str, path: str) -> None:
        """`option` is how messages call it; `path` has 1 to 107 bytes."""
        self._path = path
        self.where = f"{option}: {path}"

    def connect(self) -> socket.socket:
        """Return a new connection; OSError when nobody listens."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # One that is behind with accepting is not waited for.
            stream.setblocking(False)
            stream.connect(self._path)
        except BaseException:
            stream.close()
            raise
        return stream

    def why(self) -> str:
        """Return nothing: its log is elsewhere."""
        return ""

    def close(self) -> None:
        """Nothing is ours."""
