"""A fork server whose monitors have no guest: `python fake_monitor.py -stdin SOCKET`.

In place of a guest there is the agent, as a program of this host; what it runs can write to two
FIFOs, named by the environment: to $CONSOLE what a kernel would say, to $MONITOR what the monitor
is to do, one line each: `say TEXT` (on stderr), `event NAME DATA`, `exit STATUS`, `mute` (the
agent stops).
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from pyvirt.cli import run, serve
from pyvirt.harness.agent import image

CONSOLE, MESSAGES, AGENT, QMP, EVENTS = 1, 2, 3, 4, 5
REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11"),
    *("r12", "r13", "r14", "r15", "cr0", "cr2", "cr3", "cr4", "efer", "fs_base", "gs_base"),
    *("rflags", "rip"),
)
VCPU = {"cpu-index": 0, "registers": {**dict.fromkeys(REGISTERS, 0x1234), "cs": 0x10, "ss": 0x18}}
ANSWERS: dict[str, Any] = {
    "query-status": {"running": True},
    "x-query-registers": [VCPU],
}


class Monitor:
    """One monitor."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.folder = tempfile.TemporaryDirectory()
        self.environment = dict(os.environ)
        for name, read in (("CONSOLE", self.on_console), ("MONITOR", self.on_word)):
            path = f"{self.folder.name}/{name}"
            os.mkfifo(path)
            # Open for writing too, so that it does not end with its first writer.
            self.selector.register(os.open(path, os.O_RDWR), selectors.EVENT_READ, read)
            self.environment[name] = path
        for fd in (QMP, EVENTS):
            connection = socket.socket(fileno=fd)
            connection.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
            self.selector.register(connection, selectors.EVENT_READ, self.on_request)
        self.events = connection
        self.agent: subprocess.Popen[bytes] | None = None
        initrd = sys.argv[sys.argv.index("-initrd") + 1] if "-initrd" in sys.argv else ""
        if "refused" in initrd:
            os.write(MESSAGES, b"pyvirt: -m 1M: there is no room for the kernel\n")
            self.exit(2)
        if "no-agent" not in initrd:
            self.agent = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", image.agent(), "-fd", str(AGENT)],
                pass_fds=[AGENT],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            os.close(AGENT)

    def on_console(self, fd: int) -> None:
        os.write(CONSOLE, os.read(fd, 65536))

    def on_word(self, fd: int) -> None:
        for line in os.read(fd, 65536).decode().splitlines():
            word, _, rest = line.partition(" ")
            if word == "say":
                os.write(MESSAGES, f"{rest}\n".encode())
            elif word == "event":
                name, _, data = rest.partition(" ")
                self.emit(name, json.loads(data or "{}"))
            elif word == "exit":
                self.exit(int(rest))
            elif word == "mute" and self.agent:
                self.agent.send_signal(signal.SIGSTOP)

    def emit(self, name: str, data: dict[str, Any]) -> None:
        event = {"event": name, "data": data, "timestamp": {}}
        self.events.sendall(json.dumps(event).encode() + b"\r\n")

    def exit(self, status: int) -> NoReturn:
        if self.agent:
            self.agent.kill()
        self.folder.cleanup()
        os._exit(status)

    def on_request(self, connection: socket.socket) -> None:
        for line in connection.recv(65536).splitlines():
            request = json.loads(line)["execute"]
            if request == "x-read-memory":
                answer: dict[str, Any] = {"error": {"class": "GenericError", "desc": "no memory"}}
            else:
                answer = {"return": ANSWERS.get(request, {})}
            connection.sendall(json.dumps(answer).encode() + b"\r\n")
            if request == "device_del":
                self.emit("DEVICE_DELETED", {"device": "disk1", "path": "disk1"})

    def run(self) -> NoReturn:
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)


def main() -> NoReturn:
    Monitor().run()


if __name__ == "__main__":
    run.main = lambda *_: main()
    serve.main(sys.argv[1:])
    Path(sys.argv[-1]).unlink(missing_ok=True)
