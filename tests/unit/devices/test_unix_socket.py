"""Sockets that this process listens on: who sees one can connect, and one path has one owner."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyvirt.devices import unix_socket
from pyvirt.devices.unix_socket import UnixListener
from pyvirt.files import SOCKET_PATH_MAX

ROUNDS = 300
STARTERS = 8


def connect(path: Path | str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_listener_has_a_socket_and_a_lock_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = UnixListener(str(path), mode=0o600)
    assert names(tmp_path) == {"sock", "sock.lock"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_blocking(listener.fd)
    connect(path)
    listener.close()
    assert names(tmp_path) == set()


def test_who_sees_it_can_connect(tmp_path: Path) -> None:
    """The file is there only once the socket listens."""
    path = tmp_path / "sock"
    refused: list[int] = []
    done = threading.Event()

    def try_all_the_time() -> None:
        while not done.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                refused.append(client.connect_ex(str(path)))

    thread = threading.Thread(target=try_all_the_time)
    thread.start()
    for _ in range(ROUNDS):
        listener = UnixListener(str(path), backlog=128)
        # Gone before it is closed, so that only a start can be seen.
        os.unlink(path)
        listener.close()
    done.set()
    thread.join()
    assert set(refused) <= {0, errno.ENOENT, errno.EAGAIN}


def test_it_listens_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sock"
    real, seen = os.rename, []

    def rename(old: str, new: str) -> None:
        connect(old)
        seen.append(new)
        real(old, new)

    monkeypatch.setattr(unix_socket.os, "rename", rename)  # type: ignore[attr-defined]
    UnixListener(str(path)).close()
    assert seen == [str(path)]


def test_one_of_many_starters_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    program = (
        "import sys\nfrom pyvirt.devices.unix_socket import UnixListener\n"
        "sys.stdin.readline()\n"
        "try:\n    listener = UnixListener(sys.argv[1])\n"
        "except OSError as error:\n    print(error.strerror, flush=True)\n"
        "else:\n    print('mine', flush=True)\n    sys.stdin.readline()\n    listener.close()\n"
    )
    pipe = subprocess.PIPE
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdin=pipe, stdout=pipe, text=True
        )
        for _ in range(STARTERS)
    ]
    try:
        for starter in starters:
            assert starter.stdin
            starter.stdin.write("go\n")
            starter.stdin.flush()
        said = [starter.stdout.readline().strip() for starter in starters if starter.stdout]
        assert sorted(said) == ["Address already in use"] * (STARTERS - 1) + ["mine"]
        connect(path)
    finally:
        for starter in starters:
            starter.communicate("end\n", timeout=60)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("left", ["sock", "sock.lock", "sock.new"])
def test_what_a_killed_process_leaves_is_replaced(tmp_path: Path, left: str) -> None:
    path = tmp_path / "sock"
    if left.endswith("lock"):
        (tmp_path / left).touch()
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / left))
    listener = UnixListener(str(path))
    connect(path)
    listener.close()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["sock", "sock.new"])
def test_what_is_no_socket_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        UnixListener(str(tmp_path / "sock"))
    assert (tmp_path / name).read_text() == "precious"
    assert names(tmp_path) == {name}


def test_the_socket_of_another_program_stays(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="Address already in use"):
            UnixListener(str(path))
        connect(path)
    assert names(tmp_path) == {"sock"}


def test_what_has_taken_its_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    listener = UnixListener(str(path))
    path.unlink()
    path.write_text("of another")
    listener.close()
    assert path.read_text() == "of another"


@pytest.mark.parametrize("size", [SOCKET_PATH_MAX, SOCKET_PATH_MAX - 4, 100])
@pytest.mark.parametrize("is_deep", [False, True])
def test_a_path_as_long_as_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, is_deep: bool
) -> None:
    """A relative one, which may lead to where no address is long enough for."""
    folder = tmp_path / ("d" * 200)
    folder.mkdir()
    monkeypatch.chdir(folder if is_deep else "/")
    path = "s" * size if is_deep else os.path.relpath(tmp_path, "/") + "/"
    path = path.ljust(size, "s")
    listener = UnixListener(path)
    connect(path)
    listener.close()
    assert not os.path.exists(path)
    assert not os.path.exists(f"{path}.lock")


def test_a_process_that_goes_elsewhere_removes_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listener = UnixListener("sock")
    monkeypatch.chdir("/")
    listener.close()
    assert names(tmp_path) == set()


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = os.listdir("/proc/self/fd")
    for path in ("file", "none/sock"):
        with pytest.raises(OSError, match=r"in use|No such file"):
            UnixListener(str(tmp_path / path))
    assert os.listdir("/proc/self/fd") == before
    assert names(tmp_path) == {"file"}


def test_a_file_system_without_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the lab sees the host's; its answer would say nothing to a user."""

    class Refusing(socket.socket):
        def bind(self, _address: object) -> None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    monkeypatch.setattr("pyvirt.devices.unix_socket.socket.socket", Refusing)
    with pytest.raises(OSError, match="takes no sockets; in the nested lab, /dev/shm does"):
        UnixListener(str(tmp_path / "socket"))
    assert names(tmp_path) == set()
