"""-sandbox-path by itself: what a process may do, and what is said without Landlock."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyvirt.native import lib
from pyvirt.vmm import landlock, sandbox

from ..refusal import refusal

PATIENCE = 60
# Binds itself to its first words, a path and what may be done there each, and tells of each try.
PROGRAM = """
import errno, os, sys
from pyvirt.native import check, lib
from pyvirt.vmm.landlock import Place, arm
folder = sys.argv[1]
arm([Place(f"{folder}/{name}", int(what), name) for name, what in map(str.split, sys.argv[2:])])
check(lib.pv_sandbox_arm(lib.PV_SANDBOX_LOG), "sandbox")
check(lib.pv_sandbox_enter(lib.PV_SANDBOX_CONTROL), "sandbox")
def attempt(name, call):
    try:
        call()
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
def opened(path, flags):
    return lambda: os.close(os.open(path, flags))
for name in ("here", "there"):
    at = f"{folder}/{name}"
    attempt(f"{name} read", opened(f"{at}/file", os.O_RDONLY))
    attempt(f"{name} list", lambda: os.listdir(at))
    attempt(f"{name} write", opened(f"{at}/file", os.O_WRONLY))
    attempt(f"{name} cut", opened(f"{at}/file", os.O_RDONLY | os.O_TRUNC))
    attempt(f"{name} make", opened(f"{at}/new", os.O_WRONLY | os.O_CREAT))
    attempt(f"{name} rename", lambda: os.rename(f"{at}/file", f"{at}/other"))
    attempt(f"{name} move", lambda: os.rename(f"{at}/other", f"{at}/folder/other"))
    attempt(f"{name} remove", lambda: os.unlink(f"{at}/folder/other"))
    attempt(f"{name} clear", lambda: os.unlink(f"{at}/socket"))
attempt("away", opened("/etc/passwd", os.O_RDONLY))
attempt("null", opened("/dev/null", os.O_RDWR))
attempt("self", opened(f"/proc/self/status", os.O_RDONLY))
attempt("init", opened(f"/proc/1/status", os.O_RDONLY))
import colorsys  # of the standard library, and nobody has imported it yet
"""
EVERYTHING = ("read", "list", "write", "cut", "make", "rename", "move", "remove", "clear")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("here", "there"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "file").touch()
        (tmp_path / name / "socket").touch()
    return tmp_path


def attempts(folder: Path, *places: str) -> dict[str, str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("what", "allowed"),
    [
        (lib.PV_LANDLOCK_READ, {"read", "list"}),
        (lib.PV_LANDLOCK_WRITE, set(EVERYTHING) - {"read", "list", "cut"}),
        (lib.PV_LANDLOCK_READ | lib.PV_LANDLOCK_WRITE, set(EVERYTHING)),
        (lib.PV_LANDLOCK_REMOVE, {"clear"}),
    ],
)
def test_what_is_named_can_be_done_there_alone(folder: Path, what: int, allowed: set[str]) -> None:
    found = attempts(folder, f"here {what}")
    # What has not got its new name cannot be removed by that.
    refused = {name for name in EVERYTHING if found[f"here {name}"] != "ok"}
    assert refused == set(EVERYTHING) - allowed
    assert {found[f"there {name}"] for name in EVERYTHING} <= {"EACCES", "ENOENT"}
    assert found["away"] == "EACCES"


def test_the_rest_of_the_process_goes_on(folder: Path) -> None:
    found = attempts(folder)
    assert (found["null"], found["self"], found["init"]) == ("ok", "ok", "EACCES")


def test_a_file_alone_can_be_named(folder: Path) -> None:
    found = attempts(folder, f"here/file {lib.PV_LANDLOCK_READ | lib.PV_LANDLOCK_WRITE}")
    assert (found["here read"], found["here write"], found["here make"]) == ("ok", "ok", "EACCES")
    # Of what there is to allow of a folder alone it has nothing.
    found = attempts(folder, f"here/file {lib.PV_LANDLOCK_REMOVE}")
    assert {found[f"here {name}"] for name in EVERYTHING} <= {"EACCES", "ENOENT"}


def test_what_is_named_has_to_be_there(tmp_path: Path) -> None:
    """In a process of its own: the set is for good."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "nowhere 1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "nowhere: No such file or directory; name a file or folder that is there" in done.stderr


def test_the_kernel_says_its_version() -> None:
    assert landlock.version() >= 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_kernel_without_it(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "lib", SimpleNamespace(pv_landlock_begin=lambda: -number))
    assert "-sandbox-path: this host's kernel has no Landlock" in refusal(lambda: landlock.arm([]))


def test_a_message_names_the_option_where_it_may_be_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox.out_of_reach("file: Permission denied") == ""
    monkeypatch.setattr(sandbox, "lib", SimpleNamespace(pv_landlock_is_on=lambda: 1))
    assert "-sandbox-path" in sandbox.out_of_reach("file: Permission denied")
    assert sandbox.out_of_reach("file: No such file or directory") == ""
