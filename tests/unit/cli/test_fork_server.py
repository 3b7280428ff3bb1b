"""The fork server, spoken to as its clients do and as they should not; its monitors need no KVM."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from pyvirt.cli.options.help import usage
from pyvirt.cli.server import connection
from pyvirt.cli.server import server as server_side
from pyvirt.errors import BackendError, ConfigError
from pyvirt.harness.vm import config, fork_server
from pyvirt.harness.vm.fork_server import ForkServer, Process, ServerGoneError

from ..fork_server import read_all, telling_of_imports

SECONDS = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with telling_of_imports() as server:
        yield server


def say(server: ForkServer, *lines: bytes) -> socket.socket:
    """Connect and send lines as they are."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(server.path)
    for line in lines:
        client.sendall(line)
    return client


def answer(server: ForkServer, *lines: bytes) -> Any:
    with say(server, *lines) as client:
        text = read_all(client)
    return json.loads(text) if text else None


def endless(folder: Path) -> list[str]:
    """Return the words of a monitor that makes the file `begun` in the folder, and goes on."""
    device = folder / "device.py"
    device.write_text(
        # Renamed, for who finds the file looks at descriptors next, and making it takes one.
        "import pathlib, time\n"
        f"begun = pathlib.Path({str(folder / 'begun')!r})\n"
        "begun.with_suffix('.new').touch()\n"
        "begun.with_suffix('.new').rename(begun)\n"
        "time.sleep(600)\n"
    )
    return ["-accel", "kvm", "-kernel", "none", "-device", f"python,file={device}"]


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def a_run(*words: str, **other: object) -> bytes:
    return json.dumps({"run": words, "cwd": "/", **other}).encode() + b"\n"


def test_streams_are_the_monitors_descriptors(server: ForkServer) -> None:
    monitor = Process(server.path, ["-help"], {"console": [0, 1], "stderr": [2]})
    try:
        assert read_all(monitor.streams["console"]) == usage()
        assert monitor.wait(SECONDS)
        assert (monitor.status, monitor.error) == (0, "")
        assert isinstance(monitor.pid, int)
        read_all(monitor.streams["stderr"])
    finally:
        monitor.close()


def test_error_of_a_monitor_is_its_own(server: ForkServer) -> None:
    monitor = Process(server.path, ["-kernel", "/nowhere", "-accel", "kvm"], {"stderr": [2]})
    try:
        text = read_all(monitor.streams["stderr"])
        assert monitor.wait(SECONDS)
        assert monitor.status != 0
        assert "pyvirt: " in text
    finally:
        monitor.close()


def test_nothing_is_imported_after_the_fork(server: ForkServer, tmp_path: Path) -> None:
    """A monitor tells of each module that it imports, as the environment asks it to."""
    (tmp_path / "disk").write_bytes(bytes(4096))
    (tmp_path / "kernel").write_bytes(b"not a kernel")
    words = [
        *("-kernel", str(tmp_path / "kernel"), "-initrd", "/dev/null"),
        *("-disk", str(tmp_path / "disk"), *config.CHANNELS),
    ]
    monitor = Process(server.path, words, config.STREAMS)
    try:
        text = read_all(monitor.streams["messages"])
        assert monitor.wait(SECONDS)
        assert "pyvirt: " in text
        assert [line for line in text.splitlines() if line.startswith("import time:")] == []
    finally:
        monitor.close()


def test_monitor_has_its_folder_and_no_descriptors_but_its_own(
    server: ForkServer, tmp_path: Path
) -> None:
    other = say(server, b'{"stream": "of nobody"}\n')
    words = endless(tmp_path)
    monitor = Process(server.path, words, {"console": [0, 1], "agent": [5]}, str(tmp_path))
    try:
        monitor.take()
        process = Path(f"/proc/{monitor.pid}")
        wait_for((tmp_path / "begun").exists, "the monitor")
        assert process.joinpath("cwd").resolve() == tmp_path
        fds = {int(fd.name): os.readlink(fd) for fd in process.joinpath("fd").iterdir()}
        # But those that it has made: for signals, for the end, for KVM.
        made = ("anon_inode:", "/dev/kvm")
        found = {fd: to for fd, to in fds.items() if not to.startswith(made)}
        assert found[0] == found[1] != found[5]
        assert found[2] == "/dev/null"
        assert {fd: to for fd, to in found.items() if fd in {3, 4} or fd > 5} == {}
        assert os.getsid(monitor.pid or 0) == monitor.pid
    finally:
        monitor.close()
        other.close()


@pytest.mark.parametrize("how", ["kill", "close", "word"])
def test_control_connection_ends_the_monitor(how: str, server: ForkServer, tmp_path: Path) -> None:
    monitor = Process(server.path, endless(tmp_path), {"stderr": [2]})
    try:
        monitor.take()
        pid = monitor.pid
        assert pid is not None
        assert is_alive(pid)
        if how == "kill":
            monitor.kill()
        elif how == "word":
            monitor._control.sendall(b"x")
        else:
            monitor.close()
        wait_for(lambda: not is_alive(pid), "the end of the monitor")
        if how != "close":
            assert monitor.wait(SECONDS)
            assert monitor.status == -signal.SIGKILL
    finally:
        monitor.close()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([b"garbage\n"], "no JSON object"),
        ([b"[1]\n"], "no JSON object"),
        ([b"[" * 60000 + b"\n"], "no JSON object"),
        ([b"\xff\xfe\n"], "no JSON object"),
        ([b"x" * 200_000, b"x" * 200_000], "longer than 262144 bytes"),
        ([b"{}\n"], "not a key"),
        ([b'{"stream": 5}\n'], "not a key"),
        ([b'{"run": "words", "cwd": "/"}\n'], "not a list of words"),
        ([b'{"run": [5], "cwd": "/"}\n'], "not a list of words"),
        ([b'{"run": []}\n'], "cwd: not an absolute path"),
        ([b'{"switch": "here"}\n'], "switch: not an absolute path"),
        ([b'{"switch": "/none/here"}\n'], "switch: /none/here: No such file or directory"),
        ([b'{"switch": "/\\ud800"}\n'], "switch: not an absolute path"),
        ([b'{"switch": "/%b"}\n' % (b"x" * 200)], "AF_UNIX path too long"),
        ([b'{"read": "/\\ud800"}\n'], "read: not an absolute path"),
        ([b'{"run": [], "cwd": "here"}\n'], "cwd: not an absolute path"),
        ([b'{"run": [], "cwd": "/\\udcff\\ud800"}\n'], "cwd: not an absolute path"),
        ([b'{"run": ["\\udfff"], "cwd": "/"}\n'], "run: not a list of words"),
        ([b'{"run": ["a\\u0000"], "cwd": "/"}\n'], "run: not a list of words"),
        ([a_run(streams=[])], "streams: not an object"),
        ([a_run(streams={"a": 0})], "streams: a: not descriptors"),
        ([a_run(streams={"a": [64]})], "streams: a: not descriptors"),
        ([a_run(streams={"a": [-1]})], "streams: a: not descriptors"),
        ([a_run(streams={"a": [True]})], "streams: a: not descriptors"),
        ([a_run(streams={"a": [0], "b": [0]})], "streams: b: not descriptors"),
        ([a_run(streams={"a": [0, 0]})], "streams: a: not descriptors"),
    ],
)
def test_what_is_not_understood_is_refused(
    lines: list[bytes], error: str, server: ForkServer
) -> None:
    assert error in answer(server, *lines)["error"]
    assert fork_server.answers(server.path, SECONDS)


def test_first_line_may_come_byte_by_byte(server: ForkServer) -> None:
    with say(server) as client:
        for byte in b'{"ping": true}\n':
            client.sendall(bytes([byte]))
        assert read_all(client) == "{}\n"


def test_reading_a_file_where_the_server_is(server: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"Y\n\xff")
    os.mkfifo(tmp_path / "fifo")
    assert fork_server.read_file(server.path, str(tmp_path / "file")) == "Y\n\ufffd"
    for name in (tmp_path / "fifo", tmp_path, tmp_path / "absent", "/dev/zero"):
        assert fork_server.read_file(server.path, str(name)) is None
    (tmp_path / "file").write_bytes(b"\0" * 100_000)
    text = fork_server.read_file(server.path, str(tmp_path / "file"))
    assert text == "\0" * connection.READ_MAX
    for path in ("relative", "/a\0b"):
        with pytest.raises(ServerGoneError, match="does not read"):
            fork_server.read_file(server.path, path)


def test_bytes_behind_the_first_line_are_the_monitors(server: ForkServer, tmp_path: Path) -> None:
    """The server must not read one of them."""
    stream = say(server, b'{"stream": "eager"}\nand more')
    with stream, say(server, a_run(*endless(tmp_path), streams={"eager": [7]})) as run:
        pid = json.loads(run.recv(4096))["pid"]
        wait_for(lambda: Path(f"/proc/{pid}/fd/7").exists(), "the stream")
        unread = fcntl.ioctl(stream, termios.TIOCOUTQ, bytes(4))
        assert int.from_bytes(unread, "little") > 0


def test_a_key_is_used_once(server: ForkServer) -> None:
    with say(server, b'{"stream": "twice"}\n'):
        assert "not a key" in answer(server, b'{"stream": "twice"}\n')["error"]


def test_folder_that_is_not_there(server: ForkServer) -> None:
    monitor = Process(server.path, ["-help"], {"stderr": [2]}, "/not/there")
    try:
        (line,) = read_all(monitor.streams["stderr"]).splitlines()
        assert line.startswith("pyvirt: FileNotFoundError: ")
        assert monitor.wait(SECONDS)
        assert monitor.status == 1
    finally:
        monitor.close()


class Quick:
    """A server whose patience is short, if it is not said, served by the test itself."""

    def __init__(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float = 0.05
    ) -> None:
        monkeypatch.setattr(server_side, "PATIENCE_S", patience_s)
        self.path = str(path)
        self.server = server_side.Server(self.path, lambda *_: os._exit(1), lambda: None)
        self.stdin, self.end = os.pipe()

    def turn(self) -> None:
        for key, _ in self.server._selector.select(0.01):
            key.data()
        self.server._close_late()

    def serve_until_it_closes(self, client: socket.socket) -> bytes:
        """Serve until nothing is left to wait for; return what the client got."""
        while True:
            self.turn()
            if not self.server._unclaimed:
                client.settimeout(SECONDS)
                return client.recv(4096)

    def serve_until(self, condition: Callable[[], object], what: str) -> None:
        def look() -> object:
            self.turn()
            return condition()

        wait_for(look, what)

    def close(self) -> None:
        self.server.close()
        os.close(self.stdin)
        os.close(self.end)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", b""),
        (b'{"stream": ', b""),
        (b'{"stream": "unclaimed"}\n', b""),
        (a_run(streams={"never": [3]}), b"its streams have not come"),
    ],
)
def test_patience_has_an_end(
    line: bytes, text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Quick(tmp_path / "quick", monkeypatch)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(quick.path)
            client.sendall(line)
            assert text in quick.serve_until_it_closes(client)
        assert quick.server._streams == {}
        assert quick.server._waiting == []
    finally:
        quick.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b'{"stream": ',
        b'{"stream": "unclaimed"}\n',
        b'{"stream": "unclaimed"}\nand what a monitor was to get',
        a_run(streams={"never": [3]}),
    ],
)
def test_a_client_that_goes_is_not_kept(
    line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However patient the server is; one that has but said all that it has to say is waited for."""
    with closing(Quick(tmp_path / "quick", monkeypatch, 100 * SECONDS)) as quick:
        before = len(os.listdir("/proc/self/fd"))
        with socket.socket(socket.AF_UNIX) as stays, socket.socket(socket.AF_UNIX) as goes:
            for client, said in ((stays, b'{"stream": "other"}\n'), (goes, line)):
                client.connect(quick.path)
                client.sendall(said)
            stays.shutdown(socket.SHUT_WR)
            quick.serve_until(lambda: len(quick.server._unclaimed) == 2, "both clients")
            quick.serve_until(lambda: "other" in quick.server._streams, "the first line")
            goes.close()
            quick.serve_until(lambda: len(quick.server._unclaimed) == 1, "the end of one")
            assert list(quick.server._streams) == ["other"]
        quick.serve_until(lambda: not quick.server._unclaimed, "the end of the other")
        assert len(os.listdir("/proc/self/fd")) == before


def test_server_ends_with_its_owner_and_takes_the_monitors_along(tmp_path: Path) -> None:
    server = ForkServer()
    folder = Path(server.path).parent
    monitor = Process(server.path, endless(tmp_path), {})
    monitor.take()
    assert monitor.pid is not None
    server.close()
    assert not is_alive(monitor.pid)
    assert not folder.exists()
    assert monitor.wait(SECONDS)
    monitor.close()
    with pytest.raises(ServerGoneError, match="fork server"):
        Process(server.path, ["-help"], {"stderr": [2]})
    assert not fork_server.answers(server.path, 1.0)


def test_server_that_is_killed_takes_the_monitors_along(tmp_path: Path) -> None:
    server = ForkServer()
    try:
        monitor = Process(server.path, endless(tmp_path), {})
        monitor.take()
        pid = monitor.pid
        assert pid is not None
        server._process.kill()
        wait_for(lambda: not is_alive(pid), "the end of the monitor")
        assert monitor.wait(SECONDS)
        assert monitor.status is None
        monitor.close()
        assert not server.is_alive
        assert server.why() == "the fork server ended with status -9"
    finally:
        server.close()


def test_signal_ends_the_server_in_good_order() -> None:
    server = ForkServer()
    server._process.terminate()
    assert server._process.wait(SECONDS) == 0
    assert not Path(server.path).exists()
    server.close()


def test_files_that_may_be_open_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fork_server.command
    shell = ("sh", "-c", 'ulimit -n 80; exec "$@"', "sh")
    monkeypatch.setattr(fork_server, "command", lambda *words: [*shell, *real(*words)])
    with closing(ForkServer()) as server, ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(80)]
        for client in clients:
            client.connect(server.path)
        # Those that were too many are told, and the others are waited for.
        refused = select.select(clients, [], [], SECONDS)[0][0]
        told = refused.recv(65536)
        assert json.loads(told)["error"].startswith("the process that makes forks has 80 files")
        for client in clients:
            client.close()
        wait_for(lambda: fork_server.answers(server.path, 1.0), "it serves on")


def test_server_that_cannot_listen_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"serve /dev/null: .*; name a new file"):
        server_side.Server("/dev/null", lambda *_: os._exit(1), lambda: None)
    monkeypatch.setattr(fork_server, "command", lambda *words: ["sh", "-c", "echo it is so >&2"])
    with pytest.raises(BackendError, match=r"^it is so$"):
        ForkServer()
