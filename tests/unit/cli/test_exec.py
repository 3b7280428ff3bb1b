"""`pyvirt exec` and the agent itself, which runs on this host in a guest's place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.cli import exec as command
from pyvirt.errors import PyvirtError
from pyvirt.harness.agent import image, protocol

SECONDS = 60
PYVIRT = Path(sys.prefix, "bin", "pyvirt")


class Guest:
    """Serves one client after the other at a socket, as the guest's port does or its sockets."""

    def __init__(self, path: Path, answer: bytes) -> None:
        """`answer` is what a client is told that asks for the agent's port; b"": a port."""
        self.path = path
        self.asked: list[bytes] = []
        self._answer = answer
        self._agent = str(image.agent())
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            with client:
                if self._answer:
                    self.asked.append(client.recv(100))
                    client.sendall(self._answer)
                fd = client.fileno()
                subprocess.run([self._agent, "-fd", str(fd)], pass_fds=[fd], check=False)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.fixture(params=["port", "sockets"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return what names a guest, by its port and by its sockets."""
    by_port = request.param == "port"
    guest = Guest(tmp_path / "s", b"" if by_port else b"OK 1073741825\n")
    yield str(guest.path) if by_port else f"vsock:{guest.path}"
    guest.close()
    assert set(guest.asked) <= {b"CONNECT %d\n" % protocol.VSOCK_PORT}


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [PYVIRT, "exec", *words], input=stdin, capture_output=True, timeout=SECONDS, check=False
    )


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(SECONDS)
    finally:
        process.kill()


def test_outputs_and_status(place: str) -> None:
    done = run(place, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)
    assert run(place, "true").returncode == 0


def test_input_to_its_end(place: str) -> None:
    data = os.urandom(3 << 20)
    assert run(place, "--", "cat", stdin=data).stdout == data


def test_a_command_that_is_missing(place: str) -> None:
    done = run(place, "no-such-command", "--", "-x")
    assert done.returncode == 127
    assert b"no-such-command" in done.stderr


def test_signals_are_the_commands(place: str) -> None:
    script = "trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done"
    words = [str(PYVIRT), "exec", place, "--", "sh", "-c", script]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert ended(process) == 7


def test_an_output_that_nobody_reads_ends_the_command(place: str) -> None:
    words = [str(PYVIRT), "exec", place, "--", "yes"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert ended(process) == 128 + signal.SIGPIPE


def refused(*argv: str) -> str:
    with pytest.raises(PyvirtError) as error:
        command.main(list(argv))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing() -> None:
    assert refused() == "exec: name the guest's socket; pyvirt exec -help tells more"
    assert refused("--", "ls") == "exec: name the guest's socket; pyvirt exec -help tells more"
    for words in (("/s",), ("/s", "--")):
        assert refused(*words) == "exec: give a command; pyvirt exec -help tells more"


def test_nobody_is_there(tmp_path: Path) -> None:
    mend = "is the guest running, and does it have the agent?"
    for place in (f"{tmp_path}/none", f"vsock:{tmp_path}/none"):
        assert refused(place, "ls") == f"exec {place}: No such file or directory; {mend}"
    long = "x" * 200
    assert refused(long, "ls") == f"exec {long}: AF_UNIX path too long; {mend}"
    assert refused("vsock:3", "ls").startswith("exec vsock:3: ")


def test_a_guest_without_the_agent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()

        def close_one() -> None:
            server.accept()[0].close()

        threading.Thread(target=close_one, daemon=True).start()
        assert refused(f"vsock:{tmp_path}/s", "ls") == (
            f"exec vsock:{tmp_path}/s: the guest has refused; its agent listens once it has "
            "started, if the guest's kernel has vmw_vsock_virtio_transport"
        )
