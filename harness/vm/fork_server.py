"""The harness's side of a `pyvirt serve` of its own (cli/server/server.py: what is said)."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import BackendError, PyvirtError

CONNECT_S = 20.0
START_S = 150.0  # for a server in a lab that is to boot first
_STOP_S = 5.0
_LINE_MAX = 1 << 16
_READY = b"ready: "
# A folder that takes sockets, as not every file system of the lab does; else the usual one.
SOCKETS = "/dev/shm"  # noqa: S108  (a folder of our own is made in it)


def command(*words: str) -> list[str]:
    """Return the command that runs `pyvirt WORD...` of this very package."""
    return [sys.executable, "-P", "-c", "from pyvirt.cli.main import main; main()", *words]


class ServerGoneError(PyvirtError):
    """The fork server, or the lab that it runs in, does not answer any more."""


def _connect(path: str, first_line: object) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(CONNECT_S)
        connection.connect(path)
        connection.sendall(json.dumps(first_line).encode() + b"\n")
        connection.settimeout(None)
    except OSError as error:
        connection.close()
        reason = error.strerror or str(error)
        raise ServerGoneError(f"fork server {path}: {reason}") from None
    return connection


def answers(path: str, timeout: float) -> bool:
    """Say whether the server at `path` answers within `timeout` seconds."""
    try:
        with _connect(path, {"ping": True}) as connection:
            connection.settimeout(timeout)
            return connection.recv(16) != b""
    except (OSError, ServerGoneError):
        return False


def read_file(path: str, name: str) -> str | None:
    """Return the beginning of a file as the server at `path` sees it, None where there is none.

    In the nested lab /sys and /proc are not this host's. ServerGoneError.
    """
    with _connect(path, {"read": name}) as connection:
        connection.settimeout(CONNECT_S)
        data = b""
        try:
            while not data.endswith(b"\n") and (more := connection.recv(_LINE_MAX)):
                data += more
            text: str | None = json.loads(data)["text"]
        except (OSError, ValueError, KeyError):
            raise ServerGoneError(f"fork server {path}: it does not read {name}") from None
    return text


def _is_readable(fd: int, until: float) -> bool:
    """Wait until a descriptor is readable; False: not until then (time.monotonic)."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0.0, until - time.monotonic()) * 1000))


class Process:
    """A monitor of a fork server: its streams, and its end. Owns the sockets until `close`.

    For one thread, `kill` apart. `fileno` is readable when `take` has something to learn.
    """

    def __init__(
        self,
        server: str,
        words: Sequence[str],
        streams: Mapping[str, Sequence[int]],
        cwd: str | None = None,
        *,
        template: Template | None = None,
    ) -> None:
        """Ask for `pyvirt run WORDS` in folder `cwd` (None: this process's); ServerGoneError.

        `streams` has the monitor's descriptors by names, one connection for each name. With a
        `template` of the server it is a fork of that, and WORDS are as behind `pyvirt restore DIR`.
        """
        self.pid: int | None = None
        self.status: int | None = None  # -N after signal N
        self.error = ""  # why there is no monitor
        self.is_gone = False  # there is no more to learn
        self.streams: dict[str, socket.socket] = {}
        self._line = b""
        key = secrets.token_hex(8)
        run: dict[str, object] = {
            "run": list(words),
            "cwd": os.path.abspath(cwd or "."),
            "streams": {f"{key}-{name}": list(numbers) for name, numbers in streams.items()},
        }
        if template is not None:
            run["template"] = template.name
        try:
            for name in streams:
                self.streams[name] = _connect(server, {"stream": f"{key}-{name}"})
            self._control = _connect(server, run)
        except BaseException:
            self._close_streams()
            raise

    def fileno(self) -> int:
        """Return the control connection's descriptor."""
        return self._control.fileno()

    def take(self) -> None:
        """Read what the server tells; waits when there is nothing."""
        try:
            data = self._control.recv(_LINE_MAX)
        except OSError:
            data = b""
        if not data:
            self.is_gone = True
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.pid = message.get("pid", self.pid)
            self.status = message.get("status", self.status)
            self.error = message.get("error", self.error)
            self.is_gone = self.status is not None or self.error != ""

    def wait(self, timeout: float) -> bool:
        """Learn until there is no more to learn; False: not within `timeout` seconds."""
        until = time.monotonic() + timeout
        while not self.is_gone:
            if not _is_readable(self.fileno(), until):
                return False
            self.take()
        return True

    def kill(self) -> None:
        """Send SIGKILL; its end is told as any other. Any thread."""
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_WR)

    def _close_streams(self) -> None:
        for stream in self.streams.values():
            stream.close()

    def close(self) -> None:
        """Close everything, which ends a monitor that still lives."""
        self._control.close()
        self._close_streams()


class Template:
    """Room for a template in a fork server, and what a machine has made of it; see `Process`.

    Owned until `close`, or the end of this process; forks that run go on then. One thread.
    """

    def __init__(self, server: str, *, spares: int = 1) -> None:
        """Have room made; ServerGoneError. `spares` forks, 0 to 16, are prepared ahead."""
        self.name = secrets.token_hex(8)
        self._server = server
        self._control = _connect(server, {"hold": self.name, "spares": spares})
        self._lines = self._control.makefile("rb")
        try:
            path = self._hear(CONNECT_S)["path"]
        except BaseException:
            self.close()
            raise
        # What `migrate` takes, of a monitor that the server runs.
        self.uri = f"template:{path},name={self.name}"

    def wait(self, timeout: float) -> None:
        """Return when the next fork of it is prepared, for the first time; once.

        BackendError: it cannot be forked, or is not there within `timeout` seconds.
        """
        self._hear(timeout)

    def _hear(self, timeout: float) -> dict[str, str]:
        self._control.settimeout(timeout)
        try:
            message = json.loads(self._lines.readline(_LINE_MAX))
        except TimeoutError:
            raise BackendError(f"template: not there within {timeout:.0f} s") from None
        except (OSError, ValueError):
            raise ServerGoneError(f"fork server {self._server}: it does not answer") from None
        if "error" in message:
            raise BackendError(message["error"])
        found: dict[str, str] = message
        return found

    def close(self) -> None:
        """Give it up; its memory is there as long as a fork is."""
        self._lines.close()
        self._control.close()


class Switch:
    """A switch between VMs beside a fork server; ends with `close`, or with this process."""

    def __init__(self, server: str, path: str) -> None:
        """Have the server run one at the socket `path`, of its own file system; BackendError."""
        self._control = _connect(server, {"switch": path})
        self._control.settimeout(CONNECT_S)
        try:
            answer = json.loads(self._control.makefile("rb").readline(_LINE_MAX) or b"{}")
            if "pid" not in answer:
                why = answer.get("error", "the fork server has ended")
                raise BackendError(f"a link between VMs: {why}")
        except BaseException as error:
            self._control.close()
            if isinstance(error, OSError):
                raise ServerGoneError(f"fork server {server}: {error}") from None
            raise

    def close(self) -> None:
        """End it."""
        self._control.close()


class ForkServer:
    """A server process of our own, here or in a nested lab; ends with `close` or this process."""

    def __init__(self, *, lab_mib: int = 0) -> None:
        """Start it, in a new lab with `lab_mib` MiB of memory if that is not 0; BackendError."""
        self._folder = tempfile.mkdtemp(
            prefix="pyvirt-", dir=SOCKETS if os.access(SOCKETS, os.W_OK) else None
        )
        self.path = f"{self._folder}/fork"
        words = command("serve", "-stdin", self.path)
        if lab_mib:
            inside = f"{SOCKETS}/pyvirt-fork"
            words = command(
                *("lab", "exec", "-m", f"{lab_mib}M", "-forward", f"{self.path}={inside}", "--"),
                *command("serve", "-stdin", inside),
            )
        self._messages = Path(self._folder, "messages")
        try:
            with self._messages.open("wb") as messages:
                # In a session of its own: Ctrl-C is for us, who end it in good order.
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=messages,
                    start_new_session=True,
                )
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> None:
        assert self._process.stdout is not None
        until = time.monotonic() + START_S
        said = b""
        while _READY not in said:
            ready = _is_readable(self._process.stdout.fileno(), until)
            data = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not data:
                raise BackendError(
                    self.why() if ready else f"no fork server within {START_S:.0f} s"
                )
            said += data

    @property
    def is_alive(self) -> bool:
        """Whether the process runs; the lab around it may have stopped nevertheless."""
        return self._process.poll() is None

    def why(self) -> str:
        """Return the last thing that it said of its end, in one line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        lines = self._messages.read_text(errors="replace").split("\n")
        text = next((line for line in reversed(lines) if line.strip()), "")
        status = self._process.returncode
        return text.removeprefix("pyvirt: ") or f"the fork server ended with status {status}"

    def close(self) -> None:
        """End it with all its monitors, and remove its files."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            # A lab that has stopped; its QEMU ends with it.
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
