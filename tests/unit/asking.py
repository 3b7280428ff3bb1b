"""Somebody at a machine's monitor, without a socket between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyvirt.qmp.machine import MachineHost
from pyvirt.qmp.monitor import Monitor
from pyvirt.qmp.session import Session
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine


class Asking:
    """Asks a machine, and hears its events."""

    def __init__(self, machine: Machine) -> None:
        self.events: list[str] = []
        self.host = MachineHost(machine)
        self._monitor = Monitor(self.host, lambda name, _: self.events.append(name), Log())
        self._session = Session(self._monitor)
        self._session.is_ready = True

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return what a request returns, or the text of its error."""
        request = {"execute": command, "arguments": arguments}
        message: Any = self._monitor.execute(self._session, request).message
        return message["return"] if "return" in message else message["error"]["desc"]

    def register(self, path: Path, size: int, *, readonly: bool = False) -> None:
        """Give a file this size, and make it a backend of its name."""
        path.touch()
        os.truncate(path, size)
        file = {"driver": "file", "filename": str(path)}
        arguments: Any = {"node-name": path.name, "file": file, "read-only": readonly}
        assert self.ask("blockdev-add", **arguments) == {}
