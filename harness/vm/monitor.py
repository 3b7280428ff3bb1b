"""A QMP client that remembers what was said."""

from __future__ import annotations

import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ...qmp.client import ANSWER_S, Client

if TYPE_CHECKING:
    import socket

_KEPT_MAX = 500
_LINE_MAX = 400  # characters


class Monitor(Client):
    """The QMP client of a VM, for any thread; `log` has what was said, newest last."""

    def __init__(self, connection: socket.socket) -> None:
        """Say hello on a connection, which is ours from then on; BackendError."""
        self.log: deque[str] = deque(maxlen=_KEPT_MAX)
        self._lock = threading.RLock()
        super().__init__(connection, lambda _: None)  # events come elsewhere

    def ask(self, request: str, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Send a request and return the answer."""
        with self._lock:
            self.log.append(_short(f"-> {request}"))
            answer = super().ask(request, timeout)
            self.log.append(_short(f"<- {json.dumps(answer)}"))
            return answer


def _short(line: str) -> str:
    return line if len(line) <= _LINE_MAX else f"{line[:_LINE_MAX]}..."
