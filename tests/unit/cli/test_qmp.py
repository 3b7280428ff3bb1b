"""`pyvirt qmp`: one command, lines from elsewhere, and the shell on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.cli import qmp
from pyvirt.errors import BackendError, ConfigError
from pyvirt.qmp import words
from pyvirt.qmp.client import Client, CommandError

from ..qmp.fake_machine import TIMEOUT, Running, running
from ..refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = "from pyvirt.cli.main import main; main()"
# Else Ctrl-C on it would interrupt nobody.
OWN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, throttled=False) as server:
        yield server


def run(folder: Path, *argv: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "qmp", *argv],
        input=typed, capture_output=True, text=True, timeout=60, check=False,
        env=os.environ | {"XDG_STATE_HOME": str(folder / "state")},
    )  # fmt: skip


# One command.


def test_one_command(server: Running, tmp_path: Path) -> None:
    result = run(tmp_path, server.path, "query-status")
    assert json.loads(result.stdout)["status"] == "running"
    assert (result.returncode, result.stderr) == (0, "")


def test_disk_in_three_commands(server: Running, tmp_path: Path) -> None:
    image = tmp_path / "d.img"
    image.write_bytes(bytes(512))
    for argv in (
        ("blockdev-add", "node-name=drive-0", "file.driver=file", f"file.filename={image}"),
        ("device_add", "id=drive-0", "driver=virtio-blk-mmio", "addr=0x1"),
    ):
        result = run(tmp_path, server.path, *argv)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert server.host.plugged()["blk"] == {1: "drive-0"}
    assert run(tmp_path, server.path, "device_del", '{"id": "drive-0"}').returncode == 0
    assert server.host.plugged()["blk"] == {}


def test_refused_command(server: Running, tmp_path: Path) -> None:
    result = run(tmp_path, server.path, "device_del", "id=x")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == "pyvirt: device_del: Device x not found (GenericError)\n"


def test_quit(server: Running, tmp_path: Path) -> None:
    assert run(tmp_path, server.path, "quit").returncode == 0
    assert server.host.calls == ["quit"]


# What cannot be talked to.


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("FOLDER/none", "No such file or directory"),
        ("FOLDER", "Connection refused"),
        ("tcp:127.0.0.1:1", "Connection refused"),
    ],
)
def test_nobody_there(tmp_path: Path, place: str, reason: str) -> None:
    place = place.replace("FOLDER", str(tmp_path))
    assert refusal(lambda: Client(place, lambda _: None)) == (
        f"{place}: {reason}; pyvirt ps lists the running machines"
    )


def test_tcp_without_port() -> None:
    message = refusal(lambda: Client("tcp:localhost", lambda _: None))
    assert message == "tcp:localhost: has no port; give tcp:HOST:PORT"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"SSH-2.0-x\r\n", "what answers there is no QMP monitor"),
        (b"[]\n", "what answers there is no QMP monitor"),
        (b'{"hello": 1}\n', "what answers there is no QMP monitor"),
        (b'{"QMP": {}}\n', "the monitor has closed the connection"),
        (b"", "the monitor has closed the connection"),
    ],
)
def test_somebody_else_there(tmp_path: Path, says: bytes, reason: str) -> None:
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            client.sendall(says)
            if says == b'{"QMP": {}}\n':
                client.recv(4096)
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(BackendError) as info:
            Client(path, lambda _: None)
        thread.join()
    assert str(info.value) == f"{path}: {reason}"


@pytest.mark.parametrize("answers", [b"", b'{"event": "STOP"}\n' * 3])
def test_an_answer_that_never_comes(answers: bytes) -> None:
    ours, theirs = socket.socketpair()
    events: list[dict[str, Any]] = []
    with ours, theirs:
        theirs.sendall(b'{"QMP": {}}\n{"return": {}}\n')
        client = Client(ours, events.append)
        theirs.sendall(answers)
        with pytest.raises(BackendError) as info:
            client.execute("stop", timeout=0.05)
        assert str(info.value) == "QMP: no answer in 0.05 s; is the monitor stopped?"
        assert len(events) == answers.count(b"\n")
        # A late answer is nobody's.
        assert ours.fileno() == -1
        with pytest.raises(BackendError, match="Bad file descriptor"):
            client.execute("stop")


def test_a_monitor_that_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"QMP": {}}\n{"return": {}}\n')
        client = Client(ours, lambda _: None)
        with pytest.raises(BackendError, match=r"^QMP: no answer in 0\.05 s; "):
            client.ask(" " * (16 << 20), timeout=0.05)


def test_no_socket_named(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 2
    assert result.stderr == ("pyvirt: qmp: name a monitor's socket; pyvirt qmp -help tells more\n")
    assert run(tmp_path, "-help").stdout == qmp.USAGE


def test_server_cannot_paint_the_terminal() -> None:
    assert str(CommandError("x", "y\x1b[2J", "é\x07\n")) == "x: é\\x07\\n (y\\x1b[2J)"


# Words.

WORDS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("stop", [], {}),
    ("device_add", ["id=a", "driver=b", "addr=0x1"], {"id": "a", "driver": "b", "addr": "0x1"}),
    ("device_add", ["addr=1", "lun=1"], {"addr": "1", "lun": 1}),
    ("device_add", ["lun=one"], {"lun": "one"}),
    ("device_add", ["id=a=b"], {"id": "a=b"}),
    ("device_add", ["id="], {"id": ""}),
    ("blockdev-add", ["file.filename=1", "file.driver=file"],
     {"file": {"filename": "1", "driver": "file"}}),
    ("blockdev-add", ["read-only=true", "cache.direct=off"],
     {"read-only": True, "cache": {"direct": False}}),
    ("blockdev-add", ["read-only=maybe"], {"read-only": "maybe"}),
    ("blockdev-add", ["throttling.iops-total=100"], {"throttling.iops-total": 100}),
    ("blockdev-add", ['file={"filename": "x"}'], {"file": {"filename": "x"}}),
    ("qmp_capabilities", ["enable=[]"], {"enable": []}),
    ("unheard-of", ["a=1", "b=x", "c.d=true"], {"a": 1, "b": "x", "c": {"d": True}}),
    ("unheard-of", ['{"a": {"b": null}}'], {"a": {"b": None}}),
]  # fmt: skip


@pytest.mark.parametrize(("command", "given", "arguments"), WORDS)
def test_words(command: str, given: list[str], arguments: dict[str, Any]) -> None:
    assert words.arguments(command, given) == arguments


NO_NAME = "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["x"], "stop x: give member=value, or a JSON object"),
        (["=x"], "stop =x: give member=value, or a JSON object"),
        (["a=1", "a=2"], "stop a=2: a is given twice; give it once"),
        (["a=1", "a.b=2"], "stop a.b=2: a has a value already; give one or the other"),
        (["{x}"], f"stop: {NO_NAME} in {{x}}"),
        (['{"x":' + "1" * 5000 + "}"], "stop: number out of range; give a smaller one"),
    ],
)  # fmt: skip
def test_words_that_are_none(given: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as info:
        words.arguments("stop", given)
    assert str(info.value) == text


def test_completions() -> None:
    assert words.completions("device_add", "dr") == ["driver=", "drive="]
    assert words.completions("blockdev-add", "file.dri") == ["file.driver="]
    assert words.completions("blockdev-add", "file.driver=h") == ["file.driver=host_device"]
    assert words.completions("blockdev-add", "read-only=") == ["read-only=true", "read-only=false"]
    assert words.completions("unheard-of", "") == []


# Lines from elsewhere.


def test_lines(server: Running, tmp_path: Path) -> None:
    typed = 'query-name\n\n# a remark\nstop\n{"execute": "cont", "id": 7}\n'
    result = run(tmp_path, server.path, typed=typed)
    name, rest = result.stdout.split("}\n", 1)
    assert json.loads(name + "}") == {"name": "guest"}
    assert rest.splitlines() == ["STOP {}", "RESUME {}", '{"return": {}, "id": 7}']
    assert (result.returncode, result.stderr) == (0, "")


NOT_FOUND = "has not been found; query-commands lists them"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("device_del id=x", "device_del: Device x not found (GenericError)\n"),
        ("savevm", f"savevm: The command savevm {NOT_FOUND} (CommandNotFound)\n"),
        ("stop 'x", "stop 'x: No closing quotation\n"),
        ("help unheard-of", "help unheard-of: nothing is known of it; see docs/qmp.md\n"),
        ('{"execute": "x"}', ""),
    ],
)  # fmt: skip
def test_bad_line_is_told_and_the_next_is_run(
    server: Running, tmp_path: Path, line: str, told: str
) -> None:
    result = run(tmp_path, server.path, typed=f"{line}\nquery-name\nexit\nquery-status")
    assert result.stderr == told
    assert '"name": "guest"' in result.stdout
    assert "status" not in result.stdout
    assert result.returncode == 1


def test_help(server: Running, tmp_path: Path) -> None:
    result = run(tmp_path, server.path, typed="help\nhelp device_del\n")
    assert "device_add\n" in result.stdout
    assert "  id: the device's name\n" in result.stdout


# On a terminal.


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, server: Running, folder: Path) -> None:
        master, terminal = pty.openpty()
        self._fd = master
        self._seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL + PROGRAM, "qmp", server.path],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=os.environ
            | {"XDG_STATE_HOME": str(folder / "state"), "TERM": "dumb", "INPUTRC": os.devnull},
        )  # fmt: skip
        os.close(terminal)

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read_to(self, text: str) -> str:
        """Return what is shown up to `text`, and forget it."""
        deadline = time.monotonic() + TIMEOUT
        while text not in self._seen:
            left = deadline - time.monotonic()
            assert select.select([self._fd], [], [], max(0, left))[0], (text, self._seen)
            self._seen += os.read(self._fd, 4096).decode()
        before, _, self._seen = self._seen.partition(text)
        return before + text

    def shows(self, text: str) -> bool:
        """Return whether `text` is shown within a moment."""
        while select.select([self._fd], [], [], 0.5)[0]:
            self._seen += os.read(self._fd, 4096).decode()
            if text in self._seen:
                return True
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal(server: Running, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(server, tmp_path)
    terminal.read_to("(qmp) ")
    yield terminal
    terminal.close()


def test_shell(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("query-name\n")
    assert '"name": "guest"' in terminal.read_to("}\r\n(qmp) ")
    terminal.type("device_del id=x\n")
    terminal.read_to("device_del: Device x not found (GenericError)")
    terminal.read_to("(qmp) ")
    terminal.type("\x04")
    assert terminal.process.wait(TIMEOUT) == 0
    history = (tmp_path / "state/pyvirt/qmp_history").read_text()
    assert history.splitlines()[-2:] == ["query-name", "device_del id=x"]


def test_shell_shows_events_as_they_come(server: Running, terminal: Terminal) -> None:
    terminal.type("query-na")
    terminal.read_to("query-na")
    server.server.emit("GUEST_PANICKED", {"action": "run"})
    terminal.read_to('GUEST_PANICKED {"action": "run"}')
    terminal.read_to("(qmp) query-na")
    terminal.type("me\n")
    terminal.read_to('"name": "guest"')


def test_shell_completes(terminal: Terminal) -> None:
    terminal.type("query-kv\t")
    terminal.read_to("query-kvm ")
    terminal.type("\x15device_d\t")
    terminal.read_to("device_del")
    terminal.type("i\t")
    terminal.read_to("id=")
    terminal.type("\x15")


def test_shell_ends_with_the_machine(server: Running, terminal: Terminal) -> None:
    server.server.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
    server.server.close()
    terminal.read_to("SHUTDOWN")
    terminal.read_to("the monitor has closed the connection")
    assert terminal.process.wait(TIMEOUT) == 0


def test_interrupt_drops_the_line(terminal: Terminal) -> None:
    terminal.type("query-kv\t")
    terminal.read_to("query-kvm ")  # so the line is being edited
    terminal.type("x\x03")
    # What is typed and shown at that moment may be dropped, by the kernel as well.
    for _ in range(20):
        time.sleep(0.2)
        terminal.type("\x15query-name\n")
        if terminal.shows('"name": "guest"'):
            return
    raise AssertionError
