"""The virtiofsd that is installed, of either kind, as a process of the machine's own."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import virtiofsd
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.errors import PyvirtError

from ...refusal import refusal
from .bench import VhostUserBench, wait

# Of linux/fuse.h.
INIT, LOOKUP, MKDIR = 26, 1, 9
ROOT = 1
IN = struct.Struct("<IIQQIII4x")  # length, opcode, unique, node, uid, gid, pid
OUT = struct.Struct("<IiQ")  # length, error, unique


class Fs(VhostUserBench):
    """A driver that speaks as much of FUSE as shows a folder."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        self.back_end = Virtiofsd(str(folder), readonly=readonly)
        super().__init__(FsConfig("share0", b"share0", self.back_end).make())
        self._unique = 0

    def begin(self) -> None:
        assert self.start() == 0xF
        assert self.fuse(INIT, struct.pack("<IIII", 7, 31, 65536, 0)) == 0

    def fuse(self, opcode: int, body: bytes) -> int:
        """Return the error that a request is answered with."""
        self._unique += 1
        length = IN.size + len(body)
        head = IN.pack(length, opcode, self._unique, ROOT, os.getuid(), os.getgid(), os.getpid())
        place = self.offer(head + body, 1, 4096)
        self.used(1, 1)
        _, error, unique = OUT.unpack(self.memory.read(place, OUT.size))
        assert unique == self._unique
        return -int(error)

    def mkdir(self, name: str) -> int:
        return self.fuse(MKDIR, struct.pack("<II", 0o755, 0o22) + name.encode() + b"\0")

    def lookup(self, name: str) -> int:
        return self.fuse(LOOKUP, name.encode() + b"\0")

    @property
    def processes(self) -> list[int]:
        """Return the daemon and its descendants."""
        found = [self.back_end._pid]
        for pid in found:
            path = Path(f"/proc/{pid}/task/{pid}/children")
            found += map(int, path.read_text().split()) if path.exists() else []
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "there").touch()
    return tmp_path


@pytest.fixture
def fs(folder: Path) -> Iterator[Fs]:
    before = len(os.listdir("/proc/self/fd"))
    fs = Fs(folder)
    yield fs
    fs.close()
    assert len(os.listdir("/proc/self/fd")) == before


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def test_a_folder_is_shown_and_written(fs: Fs, folder: Path) -> None:
    fs.begin()
    assert fs.lookup("there") == 0
    assert fs.lookup("absent") == 2
    assert fs.mkdir("made") == 0
    assert (folder / "made").is_dir()


def test_it_is_told_the_tag(fs: Fs) -> None:
    assert fs.device.config() == b"share0".ljust(36, b"\0") + b"\1\0\0\0"


def test_it_ends_with_the_machine(folder: Path) -> None:
    fs = Fs(folder)
    fs.begin()
    processes = fs.processes
    assert processes
    fs.close()
    wait(lambda: not any(map(is_running, processes)))


def test_nothing_can_be_written_where_that_is_asked_for(folder: Path) -> None:
    fs = Fs(folder, readonly=True)
    fs.begin()
    assert fs.lookup("there") == 0
    assert fs.mkdir("made") == 30  # EROFS
    fs.close()
    (folder / "by the host").mkdir()


def test_nothing_can_be_written_below_it_either(folder: Path) -> None:
    """A file system in it is as read-only as itself, and what the kernel makes up is not there."""
    (folder / "memory").mkdir()
    (folder / "made up").mkdir()
    mounts = (
        f"mount -t tmpfs none '{folder}/memory' && touch '{folder}/memory/there' && "
        f'mount --rbind /proc \'{folder}/made up\' && exec "$0" "$@"'
    )
    looks = f"cd {virtiofsd._READONLY_AT}; touch new memory/new; ls; ls memory; ls 'made up'"
    program = (sys.executable, "-IS", virtiofsd._READONLY, str(folder), virtiofsd._READONLY_AT)
    words = ("sh", "-c", mounts, *program, "sh", "-c", looks)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "--", *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.stderr.splitlines() == [
        "touch: cannot touch 'new': Read-only file system",
        "touch: cannot touch 'memory/new': Read-only file system",
    ]
    assert done.stdout.splitlines() == ["made up", "memory", "there", "there"]


@pytest.mark.parametrize("readonly", [False, True])
def test_users_without_privileges_share_what_is_theirs(
    readonly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        words = Virtiofsd._words
        user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")
        monkeypatch.setattr(virtiofsd, "_is_root", lambda: False)
        monkeypatch.setattr(Virtiofsd, "_words", lambda self: [*user, *words(self)])
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name, "a,b\\c")
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(name, 65534, 65534)
            os.chown(folder, 65534, 65534)
        fs = Fs(folder, readonly=readonly)
        fs.begin()
        assert fs.mkdir("made") == (30 if readonly else 0)
        assert (folder / "made").exists() != readonly
        fs.close()


def test_one_that_is_killed_is_started_again(fs: Fs) -> None:
    fs.begin()
    for pid in fs.processes:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: "there is a back end again" in " ".join(fs.report()))
    # It is another, to which the guest has to introduce itself anew.
    assert fs.lookup("there") in {5, 9}  # as QEMU's says it, and the newer one
    assert fs.fuse(INIT, struct.pack("<IIII", 7, 31, 65536, 0)) == 0
    assert fs.lookup("there") == 0
    assert not fs.is_broken


def test_one_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(PyvirtError) as info:
        Fs(tmp_path / "gone")
    assert str(info.value).startswith(f"-share {tmp_path}/gone: virtiofsd has gone")
    said = (f'("{tmp_path}/gone"): No such file or directory', f"): {tmp_path}/gone does not exist")
    assert str(info.value).endswith(said)


def test_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(virtiofsd, "PROGRAMS", ("/nowhere/virtiofsd",))
    message = refusal(lambda: Fs(tmp_path))
    assert message == (
        f"-share {tmp_path}: virtiofsd is not installed; install the package virtiofsd, or for "
        "Debian 12 qemu-system-common"
    )


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("virtiofsd version 7.2.22 (Debian)", r"-o source=/a\,b=c\\d,sandbox=namespace"),
        ("virtiofsd 1.14.0", r"--shared-dir=/a,b=c\d --sandbox=namespace --log-level=warn"),
        ("virtiofsd backend 1.0.0", r"--shared-dir=/a,b=c\d --sandbox=namespace --log-level=warn"),
    ],
)
def test_each_is_told_in_its_own_words(
    version: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program, said = tmp_path / "virtiofsd", tmp_path / "said"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" && exit\n'
        f'printf "%s\\n" "$*" >{said}\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(virtiofsd, "PROGRAMS", ("/nowhere/virtiofsd", str(program)))
    monkeypatch.setattr(virtiofsd, "_is_root", lambda: True)
    monkeypatch.setattr(virtiofsd, "_has_admin", lambda: True)
    back_end = Virtiofsd(r"/a,b=c\d")
    back_end.connect().close()
    wait(lambda: said.exists() and said.read_text().endswith("\n"))
    back_end.close()
    assert said.read_text() == f"--fd=3 {words}\n"


IN_A_SANDBOX = """
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.native import lib
from pyvirt.errors import BackendError
assert lib.pv_sandbox_arm(lib.PV_SANDBOX_ON) == 0
assert lib.pv_sandbox_enter(lib.PV_SANDBOX_CONTROL) == 0
try:
    Virtiofsd("/tmp").connect()
except BackendError as error:
    print(error)
"""


def test_none_is_started_in_a_sandbox() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SANDBOX], capture_output=True, timeout=60, check=True
    )
    assert done.stdout.decode() == (
        "virtiofsd cannot be started any more: the machine runs in its sandbox; have it from the "
        "start, or give -sandbox off\n"
    )


def test_a_root_without_capabilities(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As in a container: no namespaces, but a folder of which it cannot get out."""
    monkeypatch.setattr(virtiofsd, "_has_admin", lambda: False)
    assert "cannot see to it that nothing is written" in refusal(lambda: Fs(folder, readonly=True))
    fs = Fs(folder)
    fs.begin()
    assert fs.lookup("there") == 0
    fs.close()
