"""Sockets that carry frames: one that somebody listens on, and a passt of the guest's own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices import child, passt
from pyvirt.devices.passt import Passt, PasstConfig
from pyvirt.devices.stream import StreamConfig
from pyvirt.errors import BackendError

from ..namespace import ip, network_namespace
from ..refusal import refusal, unprivileged

PATIENCE = 30.0
GUEST = bytes.fromhex("525400123456")


@pytest.fixture
def routed() -> Iterator[None]:
    """A host with an address and a route to everywhere, which passt looks for."""
    with network_namespace():
        ip("tuntap add out mode tap")
        ip("addr add 10.7.0.2/24 dev out")
        ip("link set out up")
        ip("route add default via 10.7.0.1")
        yield


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_a_socket_that_somebody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "switch.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        before = descriptors()
        stream = StreamConfig(str(path)).open()
        peer, _ = server.accept()
        (fd,) = stream.fds
        assert (stream.kind, stream.offloads, stream.mtu, stream.vhost_fds) == ("stream", 0, 0, ())
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        os.write(fd, b"frame")
        assert peer.recv(100) == b"frame"
        stream.close()
        assert peer.recv(100) == b""
        peer.close()
        assert descriptors() == before


def test_nobody_listens(tmp_path: Path) -> None:
    path = tmp_path / "switch.sock"
    before = descriptors()
    message = refusal(StreamConfig(str(path)).open)
    assert f"-netdev stream,path={path}: No such file or directory; name a socket" in message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert "Connection refused" in refusal(StreamConfig(str(path)).open)
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            # It accepts nobody: an error, and not a wait.
            assert "temporarily unavailable" in refusal(StreamConfig(str(path)).open)
    assert descriptors() == before


def ask(fd: int) -> bytes:
    """Ask by ARP for the address of the gateway, and return the answer's frame."""
    question = b"\xff" * 6 + GUEST + bytes.fromhex("0806 0001080006040001") + GUEST
    question += bytes([10, 7, 0, 2]) + bytes(6) + bytes([10, 7, 0, 1])
    with socket.socket(fileno=os.dup(fd)) as stream:
        stream.settimeout(PATIENCE)
        stream.sendall(len(question).to_bytes(4, "big") + question)
        size = int.from_bytes(stream.recv(4, socket.MSG_WAITALL), "big")
        answer = stream.recv(size, socket.MSG_WAITALL)
    os.set_blocking(fd, False)
    return answer


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("routed")
@pytest.mark.parametrize("privileged", [True, False])
def test_passt_answers_and_ends_with_its_socket(privileged: bool) -> None:
    before = descriptors()
    if privileged:
        one = PasstConfig().open()
    else:
        with unprivileged():
            one = PasstConfig().open()
    assert is_running(one.pid)
    answer = ask(one.fds[0])
    assert answer[:6] == GUEST
    assert answer[20:22] == b"\x00\x02"  # a reply
    assert answer[28:32] == bytes([10, 7, 0, 1])
    pid = one.pid
    one.close()
    assert not is_running(pid)
    assert descriptors() == before
    one.close()


@pytest.mark.usefixtures("routed")
def test_a_passt_that_was_killed_is_no_trouble() -> None:
    one = PasstConfig().open()
    os.kill(one.pid, signal.SIGKILL)
    os.set_blocking(one.fds[0], True)
    assert os.read(one.fds[0], 100) == b""
    one.close()
    assert one.pid == 0


@pytest.mark.usefixtures("routed")
def test_signals_are_not_blocked_for_it() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        one = PasstConfig().open()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    status = Path(f"/proc/{one.pid}/status").read_text()
    (blocked,) = [line for line in status.splitlines() if line.startswith("SigBlk")]
    assert int(blocked.split()[1], 16) & 1 << signal.SIGTERM - 1 == 0
    assert os.getpgid(one.pid) != os.getpgid(0)
    one.close()


def complaint(config: PasstConfig) -> str:
    before = descriptors()
    with pytest.raises(BackendError) as info:
        config.open()
    assert descriptors() == before
    message = str(info.value)
    assert "\n" not in message
    return message


def test_no_route() -> None:
    with network_namespace():
        message = complaint(PasstConfig())
    assert message.startswith("-netdev user: passt: No external routable interface for IPv4")
    assert message.endswith("give this host a default route")


@pytest.mark.usefixtures("routed")
def test_what_passt_refuses() -> None:
    assert "Invalid port specifier" in complaint(PasstConfig(["--tcp-ports", "99999999"]))


def test_no_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert complaint(PasstConfig()) == (
        "-netdev user: passt is not installed; "
        "run: sudo apt-get install -y --no-install-recommends passt"
    )


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Put a program of ours in passt's place."""
    program = folder / "passt"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_one_that_never_gets_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, "exec sleep 100")
    monkeypatch.setattr(passt, "_START_S", 0.3)
    assert "passt: not ready after 0.3 s" in complaint(PasstConfig())


def test_one_that_complains_without_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody reads what it says; it is neither held up by that nor does it outlive the guest."""
    script = 'echo $$ >/proc/self/fd/1; trap "" PIPE; while :; do echo complaint >&2; done'
    stand_in(monkeypatch, tmp_path, script)
    monkeypatch.setattr(child, "_END_S", 0.3)
    one = PasstConfig().open()
    assert isinstance(one, Passt)
    deadline = time.monotonic() + PATIENCE
    while "complaint" not in one._complaints.lines():
        assert time.monotonic() < deadline
    pid = one.pid
    one.close()
    assert not is_running(pid)


def test_the_real_one_is_there() -> None:
    assert shutil.which("passt"), "run: sudo apt-get install -y --no-install-recommends passt"
