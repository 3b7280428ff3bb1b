"""`pyvirt ps` and the files it goes by."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyvirt.cli import ps, registry
from pyvirt.errors import PyvirtError
from pyvirt.harness.lab.machines import Machines

from ..refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

CHILD = """
import os, sys
from pyvirt.cli.registry import Registration
Registration(sys.argv[1], sys.argv[2:])
print("registered", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "pyvirt"


def machine(*argv: str) -> subprocess.Popen[str]:
    """Start a process that is registered when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "registered\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_machines_are_listed_while_they_live(capsys: pytest.CaptureFixture[str]) -> None:
    first = machine("web\nserver", "/tmp/a.sock", "tcp:127.0.0.1:4444")
    second = machine("")
    found = {entry.pid: entry for entry in registry.running()}
    assert set(found) == {first.pid, second.pid}
    assert found[first.pid].name == "web\nserver"
    assert found[first.pid].sockets == ["/tmp/a.sock", "tcp:127.0.0.1:4444"]
    assert ps.main([]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["PID", "SECONDS", "NAME", "MONITORS"]
    rows.sort(key=lambda row: int(row.split()[0]) == second.pid)
    assert rows[0].split()[0] == str(first.pid)
    assert "web\\nserver" in rows[0]
    assert rows[0].endswith("/tmp/a.sock tcp:127.0.0.1:4444")
    assert rows[1].split()[2:] == ["-", "-"]
    end(first)
    assert [entry.pid for entry in registry.running()] == [second.pid]
    end(second)


def test_entry_left_behind_is_removed(folder: Path) -> None:
    process = machine("x")
    assert len(os.listdir(folder)) == 1
    end(process)
    assert os.listdir(folder) != []
    assert list(registry.running()) == []
    assert os.listdir(folder) == []


def test_entry_of_one_killed_before_its_lock_is_removed(folder: Path) -> None:
    script = "import fcntl, os; fcntl.flock = lambda *_: os._exit(0)\n" + CHILD
    subprocess.run([sys.executable, "-c", script, "x"], check=True, stdout=subprocess.DEVNULL)
    (left,) = folder.iterdir()
    # Its machine may be about to lock it.
    assert (list(registry.running()), list(folder.iterdir())) == ([], [left])
    long_ago = left.stat().st_mtime - 60
    os.utime(left, (long_ago, long_ago))
    assert (list(registry.running()), list(folder.iterdir())) == ([], [])


def test_entry_goes_with_its_machine(folder: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    entry = registry.Registration("x", [])
    assert [found.pid for found in registry.running()] == [os.getpid()]
    entry.close()
    assert os.listdir(folder) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_folder_is_for_its_user_alone(folder: Path) -> None:
    registry.Registration("x", []).close()
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["others-may-write", "link"])
def test_folder_of_somebody_else_is_not_used(folder: Path, tmp_path: Path, what: str) -> None:
    if what == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(PyvirtError) as info:
        registry.Registration("x", [])
    assert str(info.value) == f"{folder}: not this user's alone; remove it"
    assert list(registry.running()) == []


def test_no_folder_no_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert ps.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("name", ["x", "12", ".12-3", "12-", "-1"])
def test_strange_files_do_no_harm(folder: Path, name: str) -> None:
    folder.mkdir(0o700)
    (folder / name).write_bytes(b"\xff\x00\nx")
    assert list(registry.running()) == []


def test_without_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative", "/no/such/folder"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert registry.folder() == f"/tmp/pyvirt-{os.getuid()}"


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(lambda: ps.main(["x"])) == "ps x: takes no arguments; leave them out"
    assert ps.main(["-help"]) == 0
    assert capsys.readouterr().out == ps.USAGE


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose path leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="ps-") as place:
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        yield Path(place, "pyvirt")


def test_machines_in_a_lab(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are listed on the host, and so are sockets that lead to theirs."""
    with registry.LabFolder() as place:
        assert place is not None
        with contextlib.closing(Machines(place)) as machines, monkeypatch.context() as lab:
            lab.setenv("PYVIRT_LAB", "1")
            lab.setenv("PYVIRT_LAB_MACHINES", place)
            monitors = ["/dev/shm/a\nb", "127.0.0.1:4444", "/dev/shm/c"]
            with registry.Registration("inside", monitors):
                lab.undo()
                assert [entry.sockets for entry in registry.running()] == [[]]
                machines.look()
                assert [path for _, path in machines.forward] == ["/dev/shm/a\nb", "/dev/shm/c"]
                (entry,) = registry.running()
                assert (entry.pid, entry.name, entry.in_lab) == (os.getpid(), "inside", True)
                assert len(entry.sockets) == 2
                for one, (listener, _) in zip(entry.sockets, machines.forward, strict=True):
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(one)
                        listener.accept()[0].close()
                assert ps.main([]) == 0
                row = capsys.readouterr().out.splitlines()[1].split()
                assert (row[0], row[2:]) == (f"lab:{os.getpid()}", ["inside", *entry.sockets])
                lab.setenv("PYVIRT_LAB", "1")
                lab.setenv("PYVIRT_LAB_MACHINES", place)
            lab.undo()
            assert list(registry.running()) == []
            monkeypatch.setattr(time, "monotonic", lambda: 1e9)
            machines.look()
            assert (machines.forward, os.listdir(place)) == ([], [])
    assert list(short.iterdir()) == []
    # One that a lab left behind goes as entries do.
    (short / "lab-1-2").mkdir()
    (short / "lab-1-2/5-6").symlink_to("1\nold\n")
    assert list(registry.running()) == []
    assert list(short.iterdir()) == []


def test_the_lab_has_a_folder_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over its file system the host's entries look as if nobody held them."""
    folder.mkdir(mode=0o700)
    entry = folder / "1-1"
    entry.write_text("1\nweb\n")
    monkeypatch.setenv("PYVIRT_LAB", "1")
    assert registry.folder() == f"/dev/shm/pyvirt-{os.getuid()}"
    with registry.Registration("inside", ["/dev/shm/monitor"]) as _:
        found = [(one.pid, one.name, one.sockets) for one in registry.running()]
        assert (os.getpid(), "inside", ["/dev/shm/monitor"]) in found
    assert entry.exists()
    monkeypatch.delenv("PYVIRT_LAB")
    assert list(registry.running()) == []
    assert not entry.exists()
