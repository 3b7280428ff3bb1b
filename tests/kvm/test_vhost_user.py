"""`pyvirt run` with devices of other processes: how they come with it, and go with it."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.qmp.client import CommandError
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.inspection import counters
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine

from ..unit.devices.vhost_user.switch import PROTOCOL, Switch
from ..unit.devices.vhost_user.test_plugged_nic import ALL
from .support import MEMORY, PATIENCE
from .test_qmp_run import Monitored
from .test_run import (
    STATUS,
    TEXT,
    Kernel,
    Start,
    command,
    is_running,
    run,
    start,
    wait_for,
    wait_for_pid_file,
)

pytestmark = pytest.mark.any_kvm
__all__ = ["start"]  # a fixture


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder of a short name, where sockets can be: not on the lab's 9p."""
    with tempfile.TemporaryDirectory(prefix="vu-") as name:
        yield Path(name)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_a_disk_and_a_folder(kernel: Kernel, folder: Path) -> None:
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    export = f"vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={folder}/s,writable=on"
    daemon = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--pidfile", f"{folder}/pid"),
            *("--blockdev", f"driver=file,node-name=n,filename={folder}/disk.img"),
            *("--export", export),
        ]
    )
    try:
        wait_for((folder / "pid").exists, "the storage daemon")
        words = [
            *("-chardev", f"socket,id=c,path={folder}/s,server,nowait"),
            *("-device", "vhost-user-blk-device,chardev=c,id=d0", "-share", str(folder)),
        ]
        status, out, err = run(*command(kernel("console"), *words, "-stats"))
        assert (status, out) == (STATUS, TEXT)
        assert "vhost-user-blk d0: register exits" in err
        assert "virtio-fs share0: register exits" in err
        assert err.count("  back end there, connections 1") == 2
    finally:
        daemon.kill()
        daemon.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_shared_folders_daemon_ends_with_the_monitor(
    kernel: Kernel, start: Start, tmp_path: Path, number: int
) -> None:
    pidfile = tmp_path / "pid"
    words = ["-share", str(tmp_path), "-share", f"{tmp_path},readonly=on"]
    process = start(*command(kernel("halt"), *words, "-pidfile", str(pidfile)))
    wait_for_pid_file(process, pidfile)

    def daemons() -> list[int]:
        ours = children(process.pid)
        return ours + [child for daemon in ours for child in children(daemon)]

    # Each has a process of its own in its namespaces.
    wait_for(lambda: len(daemons()) == 4, "both daemons")
    found = daemons()
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    wait_for(lambda: not any(map(is_running, found)), "the end of virtiofsd")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-share", "/nowhere"], "-share /nowhere: no such folder"),
        (
            [
                *("-chardev", "socket,id=c,path=/nowhere/s"),
                *("-device", "vhost-user-fs-device,chardev=c,tag=t"),
            ],
            "-chardev id=c: /nowhere/s: No such file or directory; start the back end first",
        ),
    ],
)
def test_what_cannot_be_is_one_line(kernel: Kernel, words: list[str], said: str) -> None:
    status, out, err = run(*command(kernel("console"), *words))
    assert (status, out) == (2, b"")
    assert err.startswith(f"pyvirt: {said}")
    assert err.count("\n") == 1


def test_monitors_see_whether_there_is_a_back_end(kernel: Kernel, tmp_path: Path) -> None:
    share = FsConfig("share0", b"share0", Virtiofsd(str(tmp_path)))
    config = MachineConfig(str(kernel("halt")), memory=MEMORY, devices=(share,))
    assert config.share
    machine = Machine(config, Log(), lambda _: None)
    try:
        counted = {name: values for _, name, values in counters(machine)}
        assert counted["virtio-fs share0"]["connected"] == 1
        assert counted["virtio-fs share0"]["given-up"] == 0
    finally:
        machine.close()


@pytest.fixture
def daemon(folder: Path) -> Iterator[Path]:
    """Return the socket of a storage daemon with a disk of 1 MiB."""
    (folder / "disk.img").write_bytes(bytes(1 << 20))
    export = f"vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={folder}/s,writable=on"
    process = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--pidfile", f"{folder}/pid"),
            *("--blockdev", f"driver=file,node-name=n,filename={folder}/disk.img"),
            *("--export", export),
        ]
    )
    try:
        wait_for((folder / "pid").exists, "the storage daemon")
        yield folder / "s"
    finally:
        process.kill()
        process.wait()


def add_chardev(guest: Monitored, path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    guest.client.execute("chardev-add", {"id": "c", "backend": backend})


DISK = {"id": "d", "driver": "vhost-user-blk-mmio", "chardev": "c"}


def test_a_disk_is_plugged_and_unplugged(kernel: Kernel, daemon: Path) -> None:
    with Monitored(kernel("spin"), "-machine", "mem-share=on") as guest:
        ask = guest.client.execute
        add_chardev(guest, daemon)
        for _ in range(2):
            ask("device_add", DISK | {"addr": "0x3"})
            (disk,) = ask("query-block")
            assert disk["device"] == "d"
            assert disk["inserted"]["image"]["virtual-size"] == 1 << 20
            assert disk["inserted"]["file"] == f"chardev c: {daemon}"
            ask("device_del", {"id": "d"})
            assert guest.names()[-1] == "DEVICE_DELETED"
            assert ask("query-block") == []
        ask("chardev-remove", {"id": "c"})


def test_a_nic_is_plugged_and_unplugged(kernel: Kernel, folder: Path) -> None:
    switch = Switch(folder / "s", features=ALL, protocol=PROTOCOL)
    netdev = {"id": "n", "type": "vhost-user", "chardev": "c"}
    try:
        with Monitored(kernel("spin"), "-machine", "mem-share=on") as guest:
            ask = guest.client.execute
            add_chardev(guest, folder / "s")
            for _ in range(2):
                ask("netdev_add", netdev)
                ask("device_add", {"id": "n", "driver": "virtio-net-mmio", "addr": "0x1"})
                (counted,) = ask("x-query-stats", {"name": "n"})
                values = {one["name"]: one["value"] for one in counted["stats"]}
                assert (values["connected"], values["connections"]) == (1, 1)
                ask("device_del", {"id": "n"})
                assert guest.names()[-1] == "DEVICE_DELETED"
            ask("chardev-remove", {"id": "c"})
    finally:
        switch.die()


def test_a_disk_needs_memory_that_it_can_see(kernel: Kernel, daemon: Path) -> None:
    with Monitored(kernel("spin")) as guest:
        add_chardev(guest, daemon)
        with pytest.raises(CommandError, match="start the machine with -machine mem-share=on"):
            guest.client.execute("device_add", DISK)
        assert guest.client.execute("query-block") == []
        guest.client.execute("chardev-remove", {"id": "c"})
