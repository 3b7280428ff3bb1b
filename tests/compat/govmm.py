"""How Kata's govmm reads and writes, by what its sources do."""

from __future__ import annotations

import json
import socket
from typing import Any


class Govmm:
    """Kata's govmm: lines up to one with QMP.version.qemu of major 5 or more; then a line each."""

    def __init__(self, client: socket.socket) -> None:
        """`client` is connected."""
        self._socket = client
        self._lines = client.makefile("rb")
        assert json.loads(next(self._lines))["QMP"]["version"]["qemu"]["major"] >= 5
        self.do("qmp_capabilities")

    def _request(self, command: str, arguments: dict[str, Any], fd: int = -1) -> dict[str, Any]:
        request = {"execute": command, "arguments": arguments}
        data = json.dumps(request, separators=(",", ":")).encode() + b"\n"
        socket.send_fds(self._socket, [data], [fd] if fd >= 0 else [])
        events: list[dict[str, Any]] = []
        while True:
            line = next(self._lines)
            assert len(line) < 1 << 16
            message: dict[str, Any] = json.loads(line)
            if "event" not in message:
                return message | {"events": events}
            events.append(message)

    def do(self, command: str, fd: int = -1, /, **arguments: Any) -> Any:
        answer = self._request(command, hyphened(arguments), fd)
        assert "return" in answer, answer
        if command == "device_del":
            told = [one["data"]["device"] for one in answer["events"]]
            assert told == [arguments["id"]]
        return answer["return"]

    def refused(self, command: str, /, **arguments: Any) -> str:
        error = self._request(command, hyphened(arguments))["error"]
        return f"{error['class']}: {error['desc']}"

    def close(self) -> None:
        self._lines.close()


def hyphened(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}
