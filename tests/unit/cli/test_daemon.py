"""Going to the background, and the file that says who did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pyvirt.cli.daemon import PidFile

from ..refusal import refusal, unprivileged

DAEMON = """
import os, sys, time
from pyvirt.errors import ConfigError
from pyvirt.cli.daemon import daemonize
starter = daemonize()
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {os.getsid(0)}")
sys.stderr.write("a message before the start\\n")
exec(sys.argv[2])
starter.started()
sys.stderr.write("a message after it\\n")
time.sleep(60)
"""


def start(where: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Run a program that goes to the background; return what its starter sees."""
    return subprocess.run(
        [sys.executable, "-c", DAEMON, str(where), before],
        capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_starter_ends_when_the_guest_has_started(tmp_path: Path) -> None:
    where = tmp_path / "ids"
    result = start(where, "time.sleep(0.2)")
    pid, session = map(int, where.read_text(encoding="ascii").split())
    try:
        assert result.returncode == 0
        assert result.stderr == "a message before the start\n"
        assert session != os.getsid(0), "the terminal's signals do not reach it"
        assert session != pid, "it cannot get a terminal again"
        for fd in range(3):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == os.devnull
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "death", ["sys.exit('it failed')", "os._exit(0)", "os.kill(os.getpid(), 9)"]
)
def test_starter_tells_that_the_guest_did_not_start(death: str, tmp_path: Path) -> None:
    result = start(tmp_path / "ids", death)
    assert result.returncode == 1
    assert ("it failed" in result.stderr) == ("failed" in death)


def test_starter_ends_with_the_status_of_the_failure_after_its_message(tmp_path: Path) -> None:
    death = "try:\n  with starter:\n    raise ConfigError('it failed')\nexcept ConfigError as e:\n"
    result = start(tmp_path / "ids", f"{death}  time.sleep(0.2); sys.exit(str(e))")
    assert result.returncode == 2
    assert "it failed" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["-kernel", "FOLDER/none"],
        ["-kernel", "FILE", "-initrd", "FOLDER/none"],
        ["-kernel", "FILE", "-disk", "FOLDER/none"],
        ["-kernel", "FILE", "-pidfile", "FOLDER/none/pid"],
        ["-kernel", "FILE", "-serial", "file,path=FOLDER/none/log"],
        ["-kernel", "FILE", "-qmp", "unix:FOLDER/none/sock,server,nowait"],
        ["-kernel", "FILE", "-device", "python,file=FOLDER/none.py"],
    ],
    ids=lambda words: words[-2],
)
def test_wrong_files_have_one_status_in_the_background_and_not(
    words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "kernel"
    file.write_bytes(b"no kernel")
    given = [word.replace("FOLDER", str(tmp_path)).replace("FILE", str(file)) for word in words]
    command = [str(Path(sys.executable).with_name("pyvirt")), "run", "-accel", "kvm", *given]
    here, there = (
        subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )
        for more in ([], ["-daemonize"])
    )  # fmt: skip
    assert here.returncode == there.returncode == 2, here.stderr
    assert here.stderr == there.stderr


def dead_pid() -> int:
    """Return the id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_file_holds_the_id_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(str(path)):
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
    assert not path.exists()


def test_file_is_removed_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(ZeroDivisionError), PidFile(str(path)):
        raise ZeroDivisionError
    assert not path.exists()


def test_no_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with PidFile(""):
        assert list(tmp_path.iterdir()) == []


def test_a_lock_is_respected_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with PidFile(str(path)):
        assert refusal(PidFile(str(path)).__enter__) == (
            f"-pidfile {path}: another process has it locked; name another file"
        )
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_lock_of_another_process_is_respected(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    program = "import sys\nfrom pyvirt.cli.daemon import PidFile\nPidFile(sys.argv[1]).__enter__()"
    with PidFile(str(path)):
        result = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert "another process has it locked" in result.stderr


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    message = refusal(PidFile(str(path)).__enter__)
    assert message == f"-pidfile {path}: Not a regular file; name a file in a writable folder"


def test_another_file_that_has_taken_its_place_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pid"
    with PidFile(str(path)):
        path.unlink()
        path.write_text("of another")
    assert path.read_text() == "of another"
    assert capsys.readouterr().err == f"pyvirt: -pidfile {path}: somebody has removed it\n"


@pytest.mark.parametrize(
    "content", ["dead", "living", "own", "", "garbage\n", "²\n", "\xff\xfe", "-1", "0"]
)
def test_stale_file_is_replaced(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    known = {"dead": dead_pid(), "living": os.getppid(), "own": os.getpid()}
    path.write_bytes(f"{known.get(content, content)}\n".encode("latin-1"))
    with PidFile(str(path)):
        assert path.read_text(encoding="ascii") == f"{os.getpid()}\n"
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no/pid", "No such file or directory"),
        ("file/pid", "Not a directory"),
        (".", "Is a directory"),
    ],
)
def test_place_that_cannot_be_written(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = f"{tmp_path}/{name}"
    message = refusal(PidFile(path).__enter__)
    assert message == f"-pidfile {path}: {problem}; name a file in a writable folder"


@pytest.mark.parametrize("exists", [False, True])
def test_place_without_permission(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    if exists:
        path.touch(0)
    tmp_path.chmod(0o500)
    with unprivileged():
        message = refusal(PidFile(str(path)).__enter__)
    tmp_path.chmod(0o700)
    assert message == f"-pidfile {path}: Permission denied; name a file in a writable folder"


def test_file_that_somebody_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pid"
    with PidFile(str(path)):
        path.unlink()
    assert capsys.readouterr().err == f"pyvirt: -pidfile {path}: somebody has removed it\n"
