"""Devices of other processes under Linux's drivers: Debian's virtiofsd, QEMU's storage daemon."""

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
from pyvirt.devices.vhost_user.block import BlockConfig
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.net import NetConfig
from pyvirt.devices.vhost_user.plugged import QUEUE_SIZE, Export
from pyvirt.devices.vhost_user.plugged_nic import Uplink
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.harness.guest import kernel
from pyvirt.vmm.inspection import counters

from ..unit.devices.vhost_user.bench import wait
from ..unit.devices.vhost_user.switch import PROTOCOL, Switch
from ..unit.devices.vhost_user.test_plugged_nic import ALL
from .live import Live, live, reporting

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MIB = 1 << 20
MODULES = ("virtio_mmio", "virtiofs", "virtio_blk", "virtio_net", "ext4")
EXPORT = "vhost-user-blk,id=e,node-name=n,writable=on,addr.type=unix"
GUEST_MAC = bytes.fromhex("525400112233")
SECONDS = 60.0


class Daemon:
    """A virtiofsd that somebody else has started; it serves one connection and ends with that."""

    def __init__(self, socket: str, folder: Path) -> None:
        self._words = [VIRTIOFSD, f"--socket-path={socket}", "-o", f"source={folder}"]
        self.socket = socket
        self.start()

    def start(self) -> None:
        Path(self.socket).unlink(missing_ok=True)
        self._process = subprocess.Popen([*self._words, "-o", "cache=none"], start_new_session=True)
        until = time.monotonic() + SECONDS
        while not os.path.exists(self.socket):
            assert time.monotonic() < until
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Storage:
    """A storage daemon with an image, which serves whoever comes."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self.socket = folder / "s"
        self.image = folder / "disk.img"
        self.image.touch()
        os.truncate(self.image, size)
        self.start()

    def start(self) -> None:
        for name in ("s", "pid"):
            (self._folder / name).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                *("qemu-storage-daemon", "--pidfile", f"{self._folder}/pid"),
                *("--blockdev", f"driver=file,node-name=n,filename={self.image},discard=unmap"),
                *("--export", f"{EXPORT},addr.path={self.socket}"),
            ]
        )
        wait((self._folder / "pid").exists)

    def kill(self) -> None:
        self._process.kill()
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
def image() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        storage = Storage(Path(name), 64 * MIB)
        yield storage.image
        storage.kill()


@pytest.fixture(scope="module")
def switch() -> Iterator[Switch]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        switch = Switch(Path(name, "s"), protocol=PROTOCOL)
        yield switch
        switch.die()


@pytest.fixture(scope="module")
def guest(
    micro: kernel.Kernel,
    daemon: Daemon,
    folder: Path,
    image: Path,
    switch: Switch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    def at(path: Path | str) -> SocketBackEnd:
        return SocketBackEnd("-chardev id=c", str(path))

    devices = (
        FsConfig("fs0", b"shared", at(daemon.socket)),
        FsConfig("share0", b"share0", Virtiofsd(str(folder), readonly=True)),
        BlockConfig("blk0", at(image.parent / "s")),
        NetConfig("net0", at(switch.path), GUEST_MAC),
    )
    logs = tmp_path_factory.mktemp("vu")
    append = "console=ttyS0 quiet panic=-1 pyvirt.share=share0"
    with (
        live(
            micro, logs, modules=MODULES, devices=devices, hotplug=True, cmdline=append
        ) as running,
        reporting(running.machine),
    ):
        running.run("mount -t virtiofs shared /mnt", SECONDS)
        yield running


def test_files_of_either_side_are_the_others(guest: Live, folder: Path) -> None:
    data = random.Random(1).randbytes(MIB)
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
    many = 30
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


def test_a_shared_folder_is_there_when_the_script_begins(guest: Live, folder: Path) -> None:
    """init.sh has mounted it where the kernel's command line says so; nobody can write there."""
    guest.run("umount -l /mnt")
    (folder / "seen").write_text("from the host")
    assert guest.run("cat /mnt/share0/seen", SECONDS) == "from the host"
    output, status = _try(guest, "touch /mnt/share0/new 2>&1")
    assert status != 0
    assert "Read-only file system" in output
    guest.run("mount -t virtiofs shared /mnt", SECONDS)


def test_a_disk_holds_a_file_system(guest: Live, image: Path) -> None:
    guest.run("mke2fs -F -I 256 /dev/vdg >/dev/null 2>&1 && mkdir -p /disk", SECONDS)
    guest.run("mount -t ext4 /dev/vdg /disk && echo kept >/disk/file && umount /disk", SECONDS)
    assert b"kept\n" in image.read_bytes()
    guest.run("mount -t ext4 -o ro /dev/vdg /disk", SECONDS)
    assert guest.run("cat /disk/file; umount /disk", SECONDS) == "kept"


def test_a_host_on_the_wire_answers(guest: Live) -> None:
    guest.run("ip link set eth2 up && ip addr add 10.99.0.2/24 dev eth2")
    shown = guest.run("cat /sys/class/net/eth2/address /sys/class/net/eth2/carrier")
    assert shown.split() == ["52:54:00:11:22:33", "1"]
    output = guest.run("ping -A -c 3 -s 1000 -W 20 10.99.0.1", SECONDS)
    assert "3 packets received" in output


@pytest.fixture
def storage() -> Iterator[Storage]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        storage = Storage(Path(name), 16 * MIB)
        yield storage
        storage.kill()


def counted(guest: Live, name: str) -> dict[str, int]:
    return next(values for _, one, values in counters(guest.machine) if one == name)


def plugged(path: Path) -> Export:
    where = SocketBackEnd("chardev c", str(path))
    return Export(BlockConfig("d", where, queue_size=QUEUE_SIZE, config_wce=False))


def test_a_plugged_disk(guest: Live, storage: Storage) -> None:
    """Linux's driver took its slot when that was empty."""
    size = "cat /sys/class/block/vdb/size"
    text = "written by the guest\n"
    for life in range(2):
        disk = plugged(storage.socket)
        guest.machine.attach("block", 1, disk)
        guest.run(f"until [ $({size}) = {16 * MIB // 512} ]; do sleep 0.1; done", SECONDS)
        if life == 0:
            guest.run("mke2fs -F -I 256 /dev/vdb >/dev/null 2>&1", SECONDS)
        guest.run("mount -t ext4 /dev/vdb /disk", SECONDS)
        guest.run("echo written by the guest >/disk/file && sync", SECONDS)
        assert text.encode() in storage.image.read_bytes()
        storage.kill()
        guest.begin("dd if=/dev/vdb of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null")
        storage.start()
        assert guest.finish(SECONDS)[1] == 0
        known = counted(guest, "vhost-user-blk d")
        assert (known["connected"], known["connections"], known["waiting"]) == (1, 2, 0)
        guest.run("umount /disk")
        guest.machine.detach("block", 1)
        disk.close()
        guest.run(f"until [ $({size}) = 0 ]; do sleep 0.1; done", SECONDS)


def test_a_plugged_nic(guest: Live, tmp_path: Path) -> None:
    guest.run("ip addr flush dev eth2 && ip link set eth2 down")
    guest.run("ip link set eth1 up && ip addr add 10.99.0.2/24 dev eth1")
    carrier = "cat /sys/class/net/eth1/carrier"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        switch = Switch(Path(name, "s"), features=ALL, protocol=PROTOCOL)
        for _ in range(2):
            assert guest.run(carrier) == "0"
            where = SocketBackEnd("chardev c", str(switch.path))
            way = Uplink(NetConfig("n", where, bytes(6)))
            guest.machine.attach("net", 1, way)
            guest.run(f"until [ $({carrier}) = 1 ]; do sleep 0.1; done", SECONDS)
            output = guest.run("ping -A -c 3 -s 1000 -W 20 10.99.0.1", SECONDS)
            assert "3 packets received" in output
            known = counted(guest, "NIC slot 1")
            assert (known["connected"], known["connections"]) == (1, 1)
            assert known["waiting"] > 0  # room for frames
            guest.machine.detach("net", 1)
            way.close()
            guest.run(f"until [ $({carrier}) = 0 ]; do sleep 0.1; done", SECONDS)
        # Linux has told the network where it is.
        arp = [frame for _, frame in switch.served if frame[12:14] == b"\x08\x06"]
        assert any(frame[28:32] == frame[38:42] for frame in arp)
        switch.die()


def test_a_request_costs_no_exit_to_python(guest: Live) -> None:
    assert guest.machine.slots
    transports = guest.machine.slots.transports
    (transport,) = (one for one in transports if one.device.name == "virtio-fs fs0")
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
