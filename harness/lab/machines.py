"""The lab's machines, seen from the host: their monitors' sockets, each with a twin out here.

`pyvirt run` in the lab makes an entry for each machine in a folder of the host's (cli/registry.py
says what is in one). An entry FILE whose machine has monitors gets sockets here, FILE.0 and on.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

_LOOK_S = 1.0  # between looks into the folder
_BACKLOG = 16
_SOCKETS_MAX = 16  # of one machine


class Machines:
    """Watches the folder; owns the sockets until `close`. For one thread."""

    def __init__(self, folder: str) -> None:
        """Look at nothing yet."""
        self._folder = folder
        self._next_look = 0.0
        self._twins: dict[str, list[tuple[socket.socket, str]]] = {}

    @property
    def forward(self) -> list[tuple[socket.socket, str]]:
        """Return the listening sockets, and the paths in the lab that they are for."""
        return [pair for pairs in self._twins.values() for pair in pairs]

    def look(self) -> None:
        """Make sockets for machines that have come, remove those of others; not too often."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        try:
            names = {name for name in os.listdir(self._folder) if "." not in name}
        except OSError:
            names = set()
        for name in self._twins.keys() - names:
            self._remove(name)
        for name in names - self._twins.keys():
            self._twins[name] = []
            for number, path in enumerate(self._sockets(name)):
                self._add(name, number, path)

    def _sockets(self, name: str) -> list[str]:
        """Return the sockets in the lab that an entry tells of."""
        try:
            text = os.fsencode(os.readlink(os.path.join(self._folder, name)))
            lines = text.decode(errors="replace").splitlines()
            paths = [line.encode().decode("unicode_escape") for line in lines[2:]]
        except (OSError, ValueError):
            return []
        return [path for path in paths if path.startswith("/")][:_SOCKETS_MAX]

    def _add(self, name: str, number: int, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file then has it from the start
            listener.bind(os.path.join(self._folder, f"{name}.{number}"))
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            return
        self._twins[name].append((listener, path))

    def _remove(self, name: str) -> None:
        for listener, _ in self._twins.pop(name):
            with contextlib.suppress(OSError):
                os.unlink(listener.getsockname())
            listener.close()

    def close(self) -> None:
        """Remove all sockets."""
        for name in list(self._twins):
            self._remove(name)
