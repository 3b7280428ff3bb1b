"""A folder of the host under Linux's own driver: what Debian's virtiofsd shares, and its end."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.harness.guest import kernel

from .live import Live, live, reporting

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MIB = 1 << 20
MODULES = ("virtio_mmio", "virtiofs")
SECONDS = 60.0


class Daemon:
    """A virtiofsd that somebody else has started; it serves one connection and ends with that."""

    def __init__(self, socket: str, folder: Path) -> None:
        self._words = [VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={folder}"]
        self._socket = socket
        self.start()

    def start(self) -> None:
        Path(self._socket).unlink(missing_ok=True)
        self._process = subprocess.Popen([*self._words, "-o", "cache=none"], start_new_session=True)
        until = time.monotonic() + SECONDS
        while not os.path.exists(self._socket):
            assert time.monotonic() < until
            time.sleep(0.01)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        one = Daemon(f"{name}/s", folder)
        yield one
        one.kill()


@pytest.fixture(scope="module")
def guest(
    cloud: kernel.Kernel, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    back_end = SocketBackEnd("-chardev id=c", daemon._socket)
    device = FsConfig("fs0", b"shared", back_end)
    with (
        live(cloud, tmp_path_factory.mktemp("fs"), modules=MODULES, devices=(device,)) as running,
        reporting(running.machine),
    ):
        running.run("mount -t virtiofs shared /mnt", SECONDS)
        yield running


def test_files_of_either_side_are_the_others(guest: Live, folder: Path) -> None:
    data = random.Random(1).randbytes(8 * MIB)
    (folder / "host").write_bytes(data)
    summed = guest.run("md5sum /mnt/host", SECONDS).split()[0]
    assert summed == hashlib.md5(data).hexdigest()
    guest.run("cp /mnt/host /tmp/copy && cp /tmp/copy /mnt/guest && sync /mnt/guest", SECONDS)
    assert (folder / "guest").read_bytes() == data
    guest.run("rm /tmp/copy")


def test_what_files_have_beside_bytes(guest: Live, folder: Path) -> None:
    guest.run("mkdir -p /mnt/a/b && echo text >/mnt/a/b/c && chmod 640 /mnt/a/b/c")
    guest.run("ln -s b/c /mnt/a/link && ln /mnt/a/b/c /mnt/a/hard && mv /mnt/a/b /mnt/a/d")
    guest.run("touch -d @1000000000 /mnt/a/hard && chown 12:34 /mnt/a/hard")
    status = os.stat(folder / "a/hard")
    assert (status.st_mode & 0o777, status.st_nlink, status.st_mtime) == (0o640, 2, 1000000000)
    assert (status.st_uid, status.st_gid) == (12, 34)
    assert os.readlink(folder / "a/link") == "b/c"
    assert sorted(os.listdir(folder / "a")) == ["d", "hard", "link"]
    assert guest.run("cat /mnt/a/d/c") == "text"
    guest.run("rm -r /mnt/a")
    assert not (folder / "a").exists()


def test_many_small_files(guest: Live, folder: Path) -> None:
    many = 200
    start = time.monotonic()
    guest.run(
        f"mkdir /mnt/many && for i in $(seq 0 {many - 1}); do echo $i >/mnt/many/$i; done",
        SECONDS,
    )
    print(f"{many} files made: {time.monotonic() - start:.2f} s")
    assert len(os.listdir(folder / "many")) == many
    assert guest.run("cat /mnt/many/* | sort -n | tail -1", SECONDS) == str(many - 1)
    guest.run("rm -r /mnt/many", SECONDS)
    assert not (folder / "many").exists()


def test_a_request_costs_no_exit_to_python(guest: Live) -> None:
    assert guest.machine.slots
    transport = guest.machine.slots.transports[-1]
    guest.run("cat /mnt/host >/dev/null", SECONDS)
    before = transport.reads + transport.writes
    guest.run("cat /mnt/host >/dev/null; ls -l /mnt", SECONDS)
    assert transport.reads + transport.writes == before


def test_a_daemon_that_comes_back_is_mounted_again(guest: Live, daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()
    # The new one knows nothing of what was open, and says so; nothing hangs.
    output, status = _try(guest, "cat /mnt/host >/dev/null")
    assert status != 0, output
    guest.run("umount -l /mnt; mount -t virtiofs shared /mnt", SECONDS)
    assert "host" in guest.run("ls /mnt", SECONDS)
    assert "there is a back end again" in guest.log.read_text()


def test_a_guest_that_is_reset_mounts_it_again(guest: Live) -> None:
    guest.machine.reset()
    guest.expect("live-guest-ready\n", SECONDS)
    guest.run("mount -t virtiofs shared /mnt", SECONDS)
    assert "host" in guest.run("ls /mnt", SECONDS)


def test_without_a_daemon_nothing_hangs(guest: Live, daemon: Daemon) -> None:
    daemon.kill()
    output, status = _try(guest, "ls /mnt/host 2>&1")
    assert status != 0
    assert "not connected" in output
    assert "no back end has come within 5 s" in guest.log.read_text()
    guest.run("umount /mnt", SECONDS)


def _try(guest: Live, command: str) -> tuple[str, int]:
    guest.begin(command)
    return guest.finish(SECONDS)
