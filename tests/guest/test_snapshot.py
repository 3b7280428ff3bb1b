"""Snapshots of stock kernels: what was at work goes on in other processes, at the right time.

One boot; the guests of the tests are restored from its snapshot. That several are at once, and what
cannot be restored, tests/kvm shows; that no write is lost, test_snapshot_rounds.py.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.qmp.client import Client

from ..unit.fork_server import held
from .conftest import PYVIRT
from .live import BOOT_SECONDS, SCRIPT, SECONDS, Live, live

MIB = 1 << 20
DISK = 16 * MIB
SLEEP = 20  # seconds that a sleep in the guest takes
PATTERN = random.Random(1).randbytes(MIB)
LOCKUP = "soft lockup|hung_task|rcu.*stall|blocked for more than"


class Process(Live):
    """A guest in a process of its own, its console and monitor on sockets."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.path = str(folder / "qmp")
        until = time.monotonic() + BOOT_SECONDS
        while not (folder / "qmp").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until, "no monitor"
            time.sleep(0.01)
        self._console = socket.socket(socket.AF_UNIX)
        self._console.connect(str(folder / "console"))
        self._text = ""
        self.client = Client(self.path, lambda _: None)

    def close(self) -> None:
        """End what is connected to it."""
        self.client.close()
        self._console.close()

    def end(self) -> None:
        """End the process, and see that it told of nothing but the progress of snapshots."""
        self.client.execute("quit")
        told = self.process.communicate(timeout=BOOT_SECONDS)[1].splitlines()
        assert [line for line in told if not line.startswith("pyvirt: snapshot: ")] == []


@pytest.fixture(scope="module")
def words(micro: kernel.Kernel) -> list[str]:
    initrd = initramfs.build(micro, script=SCRIPT)
    append = "console=ttyS0 quiet panic=-1"
    return ["-kernel", str(micro.image), "-initrd", str(initrd), f"-append={append}"]


def devices(folder: Path, disk: Path | str, tap: str) -> list[str]:
    """Return the options of a disk, a NIC and a port."""
    return [
        *("-disk", str(disk), "-net", tap),
        *("-chardev", f"socket,id=p,path={folder}/port,server,nowait"),
        *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=p,name=test"),
    ]


@contextmanager
def started(command: list[str], disk: Path | str = "", tap: str = "") -> Iterator[Process]:
    """Run `pyvirt COMMAND` with a disk, a NIC and a port, or without."""
    # Not every file system of the lab takes sockets.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        options = [
            *("-accel", "kvm", "-serial", f"socket,path={folder}/console,server,nowait"),
            *("-qmp", f"unix:{folder}/qmp,server,nowait"),
            *(devices(folder, disk, tap) if disk else ()),
        ]
        process = subprocess.Popen(
            [str(PYVIRT), *command, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            with closing(Process(process, folder)) as guest:
                yield guest
                guest.end()
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def taps() -> Iterator[list[str]]:
    names = [f"snap{os.getpid() % 10000}{n}" for n in range(3)]
    for n, name in enumerate(names):
        ip = f"ip tuntap add dev {name} mode tap && ip addr add 10.77.{n}.1/24 dev {name}"
        subprocess.run(f"{ip} && ip link set {name} up", shell=True, check=True, timeout=SECONDS)
    yield names
    for name in names:
        subprocess.run(["ip", "link", "del", name], check=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def snapshot(guest: Process, folder: Path) -> None:
    guest.client.execute("migrate", {"uri": f"file:{folder}"})
    until = time.monotonic() + BOOT_SECONDS
    while (status := guest.client.execute("query-migrate")["status"]) != "completed":
        assert status == "active"
        assert time.monotonic() < until
        time.sleep(0.05)


class Base:
    """The snapshot, its disk, and when the guest's sleep began."""

    def __init__(self, folder: Path, image: Path, began: int) -> None:
        self.folder = folder
        self.image = image
        self.began = began

    def copy(self, name: str) -> Path:
        """Return a copy of the disk, as it was."""
        path = self.image.with_name(name)
        shutil.copy2(self.image, path)
        return path


@pytest.fixture(scope="module")
def base(words: list[str], folder: Path, taps: list[str]) -> Base:
    image = folder / "disk"
    image.write_bytes(PATTERN)
    os.truncate(image, DISK)
    with started(["run", "-smp", "2", *words], image, taps[0]) as guest:
        guest.ready()
        guest.run("ip addr add 10.77.0.2/24 dev eth0 && ip link set eth0 up")
        guest.run("ping -c 1 -W 10 10.77.0.1 >/dev/null")
        # A port can be opened once, and is at its end while nobody is connected.
        echo = "while :; do read -r line && echo got $line || sleep 0.1; done"
        guest.run(f"({echo}) <>$(ls /dev/vport*p1) >&0 &")
        # As a second begins.
        time.sleep(1 - time.time() % 1)
        guest.run(f"date -s @{int(time.time())} >/dev/null; echo kept >/tmp/file")
        began = int(guest.run("date +%s"))
        guest.run(f"(sleep {SLEEP}; date +%s >/tmp/slept) &")
        snapshot(guest, folder / "snapshot")
        assert guest.client.execute("query-status")["status"] == "paused"
    return Base(folder / "snapshot", image, began)


def check_alive(guest: Process) -> None:
    assert guest.run("cat /tmp/file") == "kept"
    digest = hashlib.md5(PATTERN, usedforsecurity=False).hexdigest()
    guest.run("echo 3 >/proc/sys/vm/drop_caches")
    assert guest.run(f"head -c {MIB} /dev/vda | md5sum").split()[0] == digest
    assert guest.run("nproc") == "2"


def check_time(guest: Process) -> None:
    """The guest tells when its second changes; how long it takes to say so is not the matter."""
    asked = time.time()
    said = guest.run("s=$(date +%s); while [ $(date +%s) = $s ]; do :; done; date +%s")
    assert asked - 1 < int(said) < time.time() + 1


def test_what_was_at_work_goes_on(base: Base, words: list[str], taps: list[str]) -> None:
    """To a reset, which is one like any other."""
    image = base.copy("first")
    command = ["restore", str(base.folder), *words]
    with started(command, image, taps[0]) as guest:
        asked = time.time()
        check_time(guest)
        check_alive(guest)
        assert guest.client.execute("query-migrate") == {"status": "completed"}
        with socket.socket(socket.AF_UNIX) as port:
            port.settimeout(SECONDS)
            port.connect(guest.path.replace("qmp", "port"))
            port.sendall(b"line\n")
            assert port.recv(100) == b"got line\n"
        guest.run("ping -c 1 -W 10 10.77.0.1 >/dev/null")
        guest.run("echo written | dd of=/dev/vda bs=1M seek=2 conv=notrunc,fsync 2>/dev/null")
        guest.run("while [ ! -e /tmp/slept ]; do sleep 0.1; done", SLEEP + SECONDS)
        due = base.began + SLEEP
        # Or as soon as it was there again.
        assert due <= int(guest.run("cat /tmp/slept")) <= max(due, asked) + 5
        guest.run(f"! dmesg | grep -E {LOCKUP!r}")
        guest.client.execute("system_reset")
        guest.ready()
        guest.run("! [ -e /tmp/file ]")
        assert guest.run("nproc") == "2"
    assert image.read_bytes()[2 * MIB : 2 * MIB + 7] == b"written"


# In memory, and on the disk.
NAMES = (
    "cat /tmp/name; echo 3 >/proc/sys/vm/drop_caches; "
    "dd if=/dev/vda bs=1M skip=2 count=1 2>/dev/null | head -n 1"
)


def named(name: str) -> str:
    """Return the command by which a guest gets a name."""
    write = "dd if=/tmp/name of=/dev/vda bs=1M seek=2 conv=notrunc,fsync 2>/dev/null"
    return f"echo {name} >/tmp/name; {write}"


def test_forks_and_one_of_a_fork(
    base: Base, words: list[str], taps: list[str], folder: Path
) -> None:
    """All from one template in memory, on one image, with 2 vCPUs and a sleep that is under way."""
    image = base.copy("forks")
    disk = f"{image},overlay=memory"
    with (
        held(str(base.folder), seconds=BOOT_SECONDS) as first,
        started(["fork", first, *words], disk, taps[0]) as one,
        started(["fork", first], disk, taps[1]) as two,
    ):
        for guest, name in ((one, "one"), (two, "two")):
            guest.run(named(name))
        with (
            held(two.path, seconds=BOOT_SECONDS) as second,
            started(["fork", second], disk, taps[2]) as three,
        ):
            assert three.run(NAMES) == "two\ntwo"
            three.run(named("three"))
            check_alive(three)
            check_time(three)
            two.client.execute("cont")
            for guest, name in ((one, "one"), (two, "two"), (three, "three")):
                assert guest.run(NAMES) == f"{name}\n{name}"
            check_alive(two)
            for guest in (one, two, three):
                guest.run("while [ ! -e /tmp/slept ]; do sleep 0.1; done", SLEEP + SECONDS)
                assert base.began + SLEEP <= int(guest.run("cat /tmp/slept"))
                guest.run(f"! dmesg | grep -E {LOCKUP!r}")
    assert image.read_bytes() == base.image.read_bytes()


def test_a_clone_draws_other_random_numbers(folder: Path) -> None:
    """Linux is told by the VM generation ID, and says so; with a kernel that has the driver."""
    generic, saved = kernel.find("generic"), folder / "generic"
    drawn: set[str] = set()
    for _ in range(2):
        with live(generic, folder, saved=saved) as guest:
            guest.run("until dmesg | grep -q 'virtual machine fork'; do sleep 0.1; done")
            said = guest.run("head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid")
            drawn |= {*said.split()}
    assert len(drawn) == 2 * 2 + 1  # with the "-" of md5sum
