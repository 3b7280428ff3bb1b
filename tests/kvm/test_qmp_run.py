"""`pyvirt run -qmp` as a tool meets it: a process with a monitor, from its start to its end."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.cli import registry
from pyvirt.errors import BackendError
from pyvirt.harness.judge import evidence
from pyvirt.harness.judge.symbols import Symbols
from pyvirt.qmp.client import Client, CommandError

from ..compat.qemu_schema import schema
from .support import MAILBOX, PATIENCE
from .test_run import PYVIRT, command, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Kernel = Callable[[str], Path]

pytestmark = pytest.mark.any_kvm
QUERIES = (
    "query-status", "query-name", "query-uuid", "query-cpus-fast", "query-hotpluggable-cpus",
    "query-machines", "query-iothreads", "query-chardev", "query-block", "query-blockstats",
    "query-named-block-nodes", "query-rx-filter", "query-memory-size-summary", "query-memdev",
    "query-cpu-definitions", "query-qmp-schema",
)  # fmt: skip


class Monitored:
    """A guest that counts in its mailbox for ever, and a client of its monitor."""

    def __init__(self, kernel: Path, *words: str, throttle: bool = True) -> None:
        # Not every file system of the lab takes sockets.
        self._sockets = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.path = f"{self._sockets.name}/qmp.sock"
        monitor = f"unix:{self.path},server,nowait,throttle={'on' if throttle else 'off'}"
        self.process = subprocess.Popen(
            command(kernel, "-qmp", monitor, "-name", "counts", *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"XDG_RUNTIME_DIR": self._sockets.name},
        )
        wait_for(self._is_listening, "socket")
        self.events: list[dict[str, Any]] = []
        try:
            self.client = Client(self.path, self.events.append)
        except BaseException:
            self._end()
            raise

    def _is_listening(self) -> bool:
        return os.path.exists(self.path) or self.process.poll() is not None

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    def mailbox(self) -> str:
        found: str = self.client.execute("query-mem-gpa", {"gpa": hex(MAILBOX)})
        return found

    def ended(self) -> int:
        """Return the exit status; take the events up to the end."""
        try:
            while True:
                self.client.pump()
        except BackendError as error:
            if "closed the connection" not in str(error):
                raise
        assert self.process.wait(PATIENCE) == self.process.returncode
        assert not os.path.exists(self.path)
        return self.process.returncode

    def __enter__(self) -> Monitored:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._end()

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._sockets.cleanup()


@pytest.fixture
def spin(kernel: Kernel) -> Iterator[Monitored]:
    with Monitored(kernel("spin")) as guest:
        yield guest


def test_stop_and_cont(spin: Monitored) -> None:
    assert spin.client.execute("query-status")["running"]
    spin.client.execute("stop")
    assert spin.client.execute("query-status")["status"] == "paused"
    stands = spin.mailbox()
    assert spin.mailbox() == stands
    spin.client.execute("cont")
    wait_for(lambda: spin.mailbox() != stands, "the guest to count on")
    assert spin.names() == ["STOP", "RESUME"]


def test_quit(spin: Monitored) -> None:
    assert spin.client.execute("quit") == {}
    assert spin.ended() == 0
    assert [event["data"] for event in spin.events] == [{"guest": False, "reason": "host-qmp-quit"}]
    assert spin.process.stderr is not None
    assert spin.process.stderr.read() == b""


def test_signal_is_told(spin: Monitored) -> None:
    spin.process.send_signal(signal.SIGTERM)
    assert spin.ended() == 0
    assert [event["data"] for event in spin.events] == [{"guest": False, "reason": "host-signal"}]


def test_looking_into_the_guest(spin: Monitored) -> None:
    assert int(spin.client.execute("query-vcpu-reg", {"addr": "rip", "vcpu": 0}), 16) >> 20 == 1
    assert int(spin.client.execute("query-vcpu-reg", {"addr": "cr0", "vcpu": 0}), 16) & 1
    assert spin.client.execute("query-status")["running"]
    assert spin.names() == []
    (cpu,) = spin.client.execute("query-cpus-fast")
    assert os.path.exists(f"/proc/{spin.process.pid}/task/{cpu['thread-id']}")
    assert spin.client.execute("query-name") == {"name": "counts"}
    (counters,) = spin.client.execute("x-query-stats", {"target": "vcpu"})
    assert counters["name"] == "vcpu0"
    (console,) = spin.client.execute("query-chardev")
    assert console == {"frontend-open": True, "filename": "stdio", "label": "serial0"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder where sockets can be: not on the lab's 9p."""
    with tempfile.TemporaryDirectory(prefix="pyvirt-") as name:
        yield Path(name)


def test_character_devices_are_listed_and_memory_is_read(kernel: Kernel, folder: Path) -> None:
    link = folder / "tty"
    words = ["-chardev", "ringbuf,id=log,size=1K", "-serial", "chardev:log"]
    words += ["-chardev", f"pty,id=tty,path={link}", "-device", "virtio-serial-device"]
    words += ["-device", "virtconsole,chardev=tty", "-S"]
    other = f"{folder}/m"
    words += ["-chardev", f"socket,id=m,path={other},server,nowait", "-mon", "m,mode=control"]
    with Monitored(kernel("console"), *words) as guest:
        listed = guest.client.execute("query-chardev")
        assert listed == [
            {"frontend-open": True, "filename": "ringbuf", "label": "log"},
            {"frontend-open": False, "filename": f"pty:{os.readlink(link)}", "label": "tty"},
            {"frontend-open": True, "filename": f"unix:{other},server=on", "label": "m"},
        ]
        assert guest.client.execute("ringbuf-read", {"device": "log", "size": 100}) == ""
        guest.client.execute("ringbuf-write", {"device": "log", "data": "mark\n"})
        assert guest.client.execute("ringbuf-read", {"device": "log", "size": 100}) == "mark\n"
        with pytest.raises(CommandError, match="tty: not a ringbuf, but pty"):
            guest.client.execute("ringbuf-read", {"device": "tty", "size": 1})
        with pytest.raises(CommandError, match="x: there is none"):
            guest.client.execute("ringbuf-read", {"device": "x", "size": 1})
        guest.client.execute("quit")
        assert guest.ended() == 0
        assert guest.process.stderr is not None
        told = guest.process.stderr.read().decode()
        assert told.startswith("pyvirt: -chardev id=tty: its terminal is /dev/pts/")
    assert not os.path.lexists(link)


def test_where_the_guest_is(spin: Monitored, kernel: Kernel, tmp_path: Path) -> None:
    text = evidence.vcpus(spin.client, Symbols.from_vmlinux(kernel("spin")))
    lines = text.splitlines()
    assert lines[0] == "vCPU 0: kernel mode, interrupts off"
    assert re.fullmatch(r"rip 0x10000\w _start\+0x\w/0x\w+", lines[1])
    assert spin.client.execute("query-status")["running"]
    path = tmp_path / "saved"
    for name, more in (("memsave", {"cpu-index": 0}), ("pmemsave", {})):
        where = {"val": 0x10_0000, "size": 16, "filename": str(path), **more}
        assert spin.client.execute(name, where) == {}
        data = spin.client.execute("x-read-memory", {"val": 0x10_0000, "size": 16})["data"]
        assert path.read_bytes() == base64.b64decode(data)
        assert any(path.read_bytes())
        path.unlink()
    spin.client.execute("dump-guest-memory", {"paging": False, "protocol": f"file:{path}"})
    assert path.read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(CommandError, match="is no canonical address"):
        spin.client.execute("x-read-memory", {"val": 1 << 63, "size": 1, "virtual": True})
    (counters,) = spin.client.execute("x-query-stats", {"target": "vm"})
    assert {"name": "memory", "value": 128 << 20} in counters["stats"]


def test_counters_of_a_device_that_is_there_for_good(kernel: Kernel) -> None:
    words = ("-object", "rng-random,id=src", "-device", "virtio-rng-device,rng=src")
    with Monitored(kernel("spin"), *words) as guest:
        (found,) = guest.client.execute("x-query-stats", {"target": "device"})
        assert found["name"] == "virtio-rng rng0"
        assert {"name": "requests", "value": 0} in found["stats"]


def test_a_balloon_without_a_driver(kernel: Kernel) -> None:
    with Monitored(kernel("spin"), "-device", "virtio-balloon-device") as guest:
        assert guest.client.execute("query-balloon") == {"actual": 128 << 20}
        assert guest.client.execute("balloon", {"value": 100 << 20}) == {}
        assert guest.client.execute("query-balloon") == {"actual": 128 << 20}
        of = {"path": "/machine/peripheral/balloon0"}
        interval = of | {"property": "guest-stats-polling-interval"}
        assert guest.client.execute("qom-set", interval | {"value": 3}) == {}
        assert guest.client.execute("qom-get", interval) == 3
        found = guest.client.execute("qom-get", of | {"property": "guest-stats"})
        assert found["last-update"] == 0
        assert set(found["stats"].values()) == {(1 << 64) - 1}
        assert guest.names() == []


def test_reset_button(spin: Monitored) -> None:
    spin.client.execute("stop")
    spin.client.execute("system_reset")
    assert int(spin.mailbox(), 16) == 0
    assert spin.client.execute("query-status")["status"] == "paused"
    spin.client.execute("cont")
    wait_for(lambda: int(spin.mailbox(), 16) > 0, "the guest to count anew")
    assert spin.names() == ["STOP", "RESET", "RESUME"]


def test_disk_in_a_slot_without_a_driver(spin: Monitored, tmp_path: Path) -> None:
    """Before the guest's driver is up a plug is as good as later: it finds the disk there."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    file = {"driver": "file", "filename": str(image)}
    for slot in ("0x0", "0x5"):
        spin.client.execute("blockdev-add", {"node-name": "d", "file": file})
        given = {"id": "d", "driver": "virtio-blk-mmio", "addr": slot}
        spin.client.execute("device_add", given)
        (block,) = spin.client.execute("query-block")
        assert block["inserted"]["image"]["virtual-size"] == 1 << 20
        spin.client.execute("device_del", {"id": "d"})
    assert spin.names() == ["DEVICE_DELETED"] * 2


def test_boot_disk_has_its_slot_and_its_lock(kernel: Kernel, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    with Monitored(kernel("spin"), "-drive", f"id=rootfs,file={image}") as guest:
        (block,) = guest.client.execute("query-block")
        assert (block["device"], block["inserted"]["file"]) == ("rootfs", str(image))
        file = {"driver": "file", "filename": str(image)}
        with pytest.raises(CommandError) as info:
            guest.client.execute("blockdev-add", {"node-name": "x", "file": file})
        assert "file can only be shared with read_only" in str(info.value)
        guest.client.execute("device_del", {"id": "rootfs"})
        assert guest.client.execute("query-block") == []
        guest.client.execute("blockdev-add", {"node-name": "x", "file": file})
        guest.client.execute("device_add", {"id": "x", "driver": "virtio-blk-mmio", "addr": "0x0"})
        guest.client.execute("quit")
        assert guest.ended() == 0


def test_iothreads_are_listed(kernel: Kernel, tmp_path: Path) -> None:
    """Those that no disk uses as well; none runs, as this guest has no driver."""
    (tmp_path / "image").write_bytes(bytes(4096))
    words = ["-object", "iothread,id=io1", "-disk", f"{tmp_path}/image,iothread=io1"]
    polling = dict.fromkeys(("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch"), 0)
    with Monitored(kernel("spin"), *words, "-object", "iothread,id=io2") as guest:
        assert guest.client.execute("query-iothreads") == [
            {"id": "io1", "thread-id": 0, **polling},
            {"id": "io2", "thread-id": 0, **polling},
        ]


def test_machine_is_listed(spin: Monitored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.path.dirname(spin.path))

    def found() -> list[tuple[str, list[str]]]:
        """Return what is entered for that process; in the lab others may be there as well."""
        pid = spin.process.pid
        return [(one.name, one.sockets) for one in registry.running() if one.pid == pid]

    wait_for(found, "the entry")
    assert found() == [("counts", [spin.path])]
    spin.process.kill()
    spin.process.wait(PATIENCE)
    assert found() == []


def test_live_socket_of_another_machine(spin: Monitored, kernel: Kernel) -> None:
    status, out, err = run(*command(kernel("spin"), "-qmp", f"unix:{spin.path},server,nowait"))
    assert (status, out) == (2, b"")
    assert err == (
        f"pyvirt: -qmp unix:{spin.path}: Address already in use; "
        "name another path, or end the process that listens there\n"
    )
    assert spin.client.execute("query-status")["running"]


def test_one_command_of_the_tool(spin: Monitored) -> None:
    assert run(str(PYVIRT), "qmp", spin.path, "stop") == (0, b"", "")
    status, _, err = run(str(PYVIRT), "qmp", spin.path, "device_del", "id=x")
    assert (status, err) == (1, "pyvirt: device_del: Device x not found (GenericError)\n")


UUID = "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3b"


@pytest.fixture
def equipped(kernel: Kernel, tmp_path: Path) -> Iterator[Monitored]:
    """A guest with a disk on an I/O thread, an empty slot's image, and a NIC."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        socket.socket(socket.AF_UNIX) as peer,
    ):
        peer.bind(f"{folder}/peer")
        peer.listen(1)
        for name in ("first", "second"):
            (tmp_path / name).write_bytes(bytes(1 << 20))
        words = (
            *("-object", "iothread,id=io0", "-uuid", UUID),
            *("-drive", f"id=first,file={tmp_path}/first,throttling.iops-total=100"),
            *("-device", "virtio-blk-device,drive=first,id=first,iothread=io0"),
            *("-netdev", f"stream,id=nic,path={folder}/peer"),
        )
        with Monitored(kernel("spin"), *words) as guest:
            yield guest


def test_answers_are_as_qemu_has_them(equipped: Monitored, tmp_path: Path) -> None:
    """Of a whole machine; tests/compat holds each command to its schema on one that is none."""
    client = equipped.client
    second = {"driver": "file", "filename": f"{tmp_path}/second"}
    add = {"node-name": "second", "driver": "raw", "file": second, "aio": "io_uring"}
    plug = {"id": "second", "driver": "virtio-blk-mmio", "iothread": "io0", "romfile": ""}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("blockdev-add", add),
        ("query-blockstats", {"query-nodes": True}),
        ("device_add", plug),
        ("human-monitor-command", {"command-line": "info registers"}),
        *((name, {}) for name in QUERIES),
        *((name, {}) for name in ("stop", "cont", "system_reset")),
        ("device_del", {"id": "second"}),
        ("blockdev-del", {"node-name": "second"}),
    ]
    answers = {}
    for name, arguments in asked:
        answers[name] = client.execute(name, arguments)
        assert schema().answer(name, answers[name]) == [], name
    assert answers["query-uuid"] == {"UUID": UUID}
    assert answers["query-memory-size-summary"]["base-memory"] == 128 << 20
    disks = {one["device"]: one["inserted"] for one in answers["query-block"]}
    assert {name: node["iops"] for name, node in disks.items()} == {"first": 100, "second": 0}
    (rip,) = re.findall(r"RIP=([0-9a-f]{16})", answers["human-monitor-command"])
    assert int(rip, 16) >> 20 == 1
    assert client.execute("quit") == {}
    assert equipped.ended() == 0
    assert equipped.names() == ["STOP", "RESUME", "RESET", "DEVICE_DELETED", "SHUTDOWN"]
    for event in equipped.events:
        assert schema().event(event["event"], event["data"]) == []


def counts(guest: Monitored, seen: set[str]) -> bool:
    """Say whether the mailbox has had more than one value."""
    seen.add(guest.mailbox())
    return len(seen) > 1


def test_nodes_of_vcpus_and_memory(kernel: Kernel) -> None:
    """The guest is the same as ever, in memory of two pieces, and after a reset."""
    words = (
        *("-smp", "2", "-numa", "node,cpus=1,memdev=low", "-numa", "node,cpus=0,memdev=high"),
        *("-object", "memory-backend-ram,id=low,size=64M,host-nodes=0,policy=bind"),
        *("-object", "memory-backend-memfd,id=high,size=64M,prealloc=on"),
    )
    with Monitored(kernel("spin"), *words) as guest:
        client = guest.client
        for _ in range(2):
            values = {guest.mailbox()}
            wait_for(partial(counts, guest, values), "count")
            client.execute("system_reset")
        found = client.execute("query-cpus-fast")
        assert [one["props"].get("node-id") for one in found] == [1, 0]
        found = client.execute("query-memdev")
        assert schema().answer("query-memdev", found) == []
        keys = ("id", "size", "share", "prealloc", "host-nodes", "policy")
        assert [tuple(one[key] for key in keys) for one in found] == [
            ("low", 64 << 20, False, False, [0], "bind"),
            ("high", 64 << 20, True, True, [], "default"),
        ]
        guest.client.execute("quit")
        assert guest.ended() == 0
