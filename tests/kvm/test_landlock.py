"""`pyvirt run -sandbox-path`: a monitor opens files where it may, and says where not."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.native.sandbox.syscalls import NUMBERS
from pyvirt.qmp.client import CommandError

from ..unit.devices.vhost_user.switch import PROTOCOL, Switch
from ..unit.devices.vhost_user.test_plugged_nic import ALL
from ..unit.native.injection import Captive
from ..unit.native.test_crash import find
from .support import MEMORY
from .test_qmp_run import Monitored
from .test_run import command, run, wait_for

Kernel = Callable[[str], Path]

pytestmark = pytest.mark.any_kvm


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """Return one that is named and one that is not, each with an image."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        for one in (here, there):
            one.mkdir()
            (one / "a.img").write_bytes(bytes(1 << 20))
        yield here, there


def plug(guest: Monitored, image: Path, *, readonly: bool = False) -> None:
    file = {"driver": "file", "filename": str(image)}
    node = {"node-name": "b", "driver": "raw", "file": file, "read-only": readonly}
    guest.client.execute("blockdev-add", node)
    guest.client.execute(
        "device_add", {"driver": "virtio-blk-device", "id": "b", "drive": "b", "addr": "1"}
    )
    guest.client.execute("device_del", {"id": "b"})
    guest.client.execute("blockdev-del", {"node-name": "b"})


def snapshot(guest: Monitored, folder: Path) -> str:
    """Write one; return why it was not, "" when it was."""
    execute = guest.client.execute
    execute("stop")
    execute("migrate", {"uri": f"file:{folder}"})
    wait_for(lambda: execute("query-migrate")["status"] != "active", "the snapshot")
    return str(execute("query-migrate").get("error-desc", ""))


def test_a_monitor_reaches_what_is_named(kernel: Kernel, folders: tuple[Path, Path]) -> None:
    here, there = folders
    words = ("-sandbox", "on", "-sandbox-path", str(here), "-disk", str(there / "a.img"))
    with Monitored(kernel("spin"), *words, "-pidfile", str(there / "pid")) as guest:
        plug(guest, here / "a.img")
        with pytest.raises(CommandError) as refused:
            plug(guest, there / "b.img")
        assert "No such file" in str(refused.value)
        (there / "b.img").write_bytes(bytes(1 << 20))
        with pytest.raises(CommandError) as refused:
            plug(guest, there / "b.img")
        line = str(refused.value)
        assert f"{there}/b.img" in line
        assert "Permission denied" in line
        assert "-sandbox-path" in line
        assert "\n" not in line
        line = snapshot(guest, there / "snapshot")
        assert f"{there}/snapshot" in line
        assert "-sandbox-path" in line
        assert snapshot(guest, here / "snapshot") == ""
        guest.client.execute("quit")
        # It removes its socket and its pid file, whose folders nobody has named.
        assert guest.ended() == 0
        assert guest.process.stderr is not None
        assert re.fullmatch(r"pyvirt: snapshot: .*\n", guest.process.stderr.read().decode())
    assert sorted(os.listdir(there)) == ["a.img", "b.img"]
    restored = ("-incoming", f"file:{here}/snapshot", "-disk", str(there / "a.img"))
    with Monitored(kernel("spin"), *restored, *words[:4]) as guest:
        stands = guest.mailbox()
        wait_for(lambda: guest.mailbox() != stands, "the restored guest to count on")


WAYS: tuple[tuple[str, dict[str, object], str], ...] = (
    ("dump-guest-memory", {"paging": False}, "protocol"),
    ("pmemsave", {"val": 0, "size": 4096}, "filename"),
    ("memsave", {"val": 1 << 20, "size": 4096}, "filename"),
)


def target_in(folder: Path, name: str) -> str:
    return f"{'file:' if name.startswith('dump') else ''}{folder}/{name}"


def test_memory_is_saved_where_it_may_be(kernel: Kernel, folders: tuple[Path, Path]) -> None:
    here, there = folders
    with Monitored(kernel("spin"), "-sandbox", "on", "-sandbox-path", str(here)) as guest:
        execute = guest.client.execute
        for name, arguments, target in WAYS:
            for _ in range(2):  # the second time the file is replaced
                execute(name, arguments | {target: target_in(here, name)})
            with pytest.raises(CommandError) as refused:
                execute(name, arguments | {target: target_in(there, name)})
            said = (
                f"{there}/{name}: Permission denied (only what -sandbox-path names can be reached)"
            )
            assert said in str(refused.value)
    assert sorted(os.listdir(here)) == ["a.img", *sorted(name for name, _, _ in WAYS)]
    assert (here / "dump-guest-memory").stat().st_size > MEMORY
    assert (here / "pmemsave").stat().st_size == (here / "memsave").stat().st_size == 4096
    assert os.listdir(there) == ["a.img"]


def add_chardev(guest: Monitored, path: Path) -> None:
    address = {"type": "unix", "data": {"path": str(path)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    guest.client.execute("chardev-add", {"id": "c", "backend": backend})


def test_a_back_end_is_found_wherever_it_is(kernel: Kernel, folders: tuple[Path, Path]) -> None:
    """Who may be connected to is not looked at."""
    words = ("-machine", "mem-share=on", "-sandbox", "on", "-sandbox-path", str(folders[0]))
    with Monitored(kernel("spin"), *words) as guest:
        ask = guest.client.execute
        for folder in folders:
            switch = Switch(folder / "s", features=ALL, protocol=PROTOCOL)
            try:
                add_chardev(guest, folder / "s")
                ask("netdev_add", {"id": "n", "type": "vhost-user", "chardev": "c"})
                ask("device_add", {"id": "n", "driver": "virtio-net-mmio", "addr": "0x1"})
                (counted,) = ask("x-query-stats", {"name": "n"})
                values = {one["name"]: one["value"] for one in counted["stats"]}
                assert (values["connected"], values["connections"]) == (1, 1)
                ask("device_del", {"id": "n"})
                ask("chardev-remove", {"id": "c"})
            finally:
                switch.die()


def test_what_is_only_read_is_not_written(kernel: Kernel, folders: tuple[Path, Path]) -> None:
    here, _ = folders
    with Monitored(kernel("spin"), "-sandbox", "on", "-sandbox-path", f"{here},ro") as guest:
        plug(guest, here / "a.img", readonly=True)
        with pytest.raises(CommandError, match="-sandbox-path"):
            plug(guest, here / "a.img")


@pytest.mark.parametrize("name", ["main", "qmp", "helper"])
def test_a_thread_that_may_open_files_opens_no_others(
    kernel: Kernel, folders: tuple[Path, Path], name: str
) -> None:
    here, there = folders
    with Monitored(kernel("spin"), "-sandbox", "on", "-sandbox-path", str(here)) as guest:
        pid = guest.process.pid
        captive = Captive(pid, pid if name == "main" else find(guest.process.pid, name))
        opened = NUMBERS["openat"]
        for path, flags in (
            ("/etc/passwd", os.O_RDONLY),
            (f"{there}/a.img", os.O_RDWR),
            (f"{there}/new", os.O_RDWR | os.O_CREAT),
            (f"/proc/{os.getpid()}/mem", os.O_RDWR),
        ):
            assert captive.result(opened, -100, path.encode(), flags, 0o600) == -errno.EACCES, path
        assert captive.result(opened, -100, f"{here}/a.img".encode(), os.O_RDWR) >= 0
        assert captive.result(NUMBERS["unlink"], f"{there}/a.img".encode()) == -errno.EACCES
        captive.let(signal.SIGKILL)


def test_a_folder_that_is_not_there(kernel: Kernel) -> None:
    words = command(kernel("console"), "-sandbox", "on", "-sandbox-path", "/nowhere")
    status, _, error = run(*words)
    assert status == 2
    assert re.fullmatch(r"pyvirt: -sandbox-path /nowhere: No such file or directory; .*\n", error)
