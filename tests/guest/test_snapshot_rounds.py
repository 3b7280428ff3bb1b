"""A guest is saved and goes on elsewhere, over and over, at moments that nobody chose.

Its disk is written and verified by fio all the time, and bytes come from it by one connection, in
the middle of which it is paused as well. One boot: what counts is what a kernel's drivers do.
PYVIRT_ROUNDS in the environment asks for another number of rounds.
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
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.devices.nic import NicConfig
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.harness.guest import kernel

from . import root
from .live import SECONDS, Live, live, reporting, save
from .network import TOOLS

MIB = 1 << 20
ROUNDS = int(os.environ.get("PYVIRT_ROUNDS", "5"))
SHARE = 64 << 10  # bytes that come in each round
HOST, PORT = "10.79.0.1", 5000
FIO = (
    "chroot /m fio --name=v --filename=/dev/vdb --size=2m --rw=randwrite --bs=4k --direct=1 "
    "--ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --output=/tmp/fio"
)
LOCKUP = "soft lockup|hung_task|rcu.*stall|blocked for more than|I/O error"


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"rnd{os.getpid() % 10000}"
    made = f"ip tuntap add dev {name} mode tap && ip addr add {HOST}/24 dev {name}"
    subprocess.run(f"{made} && ip link set {name} up", shell=True, check=True, timeout=SECONDS)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True, timeout=SECONDS)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


class Rounds:
    """The machine of each round: the same devices, and the memory of the one before."""

    def __init__(self, image: kernel.Kernel, folder: Path, tap: str) -> None:
        self._image = image
        self._folder = folder
        self._tap = tap

    @contextmanager
    def run(self, number: int) -> Iterator[Live]:
        """Run the guest from where round `number` - 1 left it; then save it."""
        before = self._folder / str(number - 1)
        disks = (
            BlockConfig("root", str(root.image()), readonly=True),
            BlockConfig("data", str(self._folder / "data")),
        )
        nics = (NicConfig("net0", TapConfig(self._tap)),)
        with (
            live(
                self._image,
                self._folder,
                saved=before if number else None,
                disks=disks,
                nics=nics,
                memory=256 * MIB,
            ) as guest,
            reporting(guest.machine),
        ):
            yield guest
            save(guest.machine, self._folder / str(number))
        if number:
            shutil.rmtree(before)


def receive(stream: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        got = stream.recv(count - len(data))
        assert got, "the guest has ended the connection"
        data += got
    return bytes(data)


def prepare(guest: Live, server: socket.socket) -> socket.socket:
    """Set everything going; return the connection from the guest."""
    guest.run(TOOLS.replace("\n", ";").strip(";").replace("do;", "do"))
    guest.run(
        f"ip addr add 10.79.0.2/24 dev eth0 && ip link set eth0 up && date -s @{time.time():.0f}"
    )
    guest.run(f"head -c {SHARE * ROUNDS} /dev/urandom >/tmp/data")
    guest.run(f"(nc {HOST} {PORT} </tmp/data; echo $? >/tmp/sent) &")
    loop = f"while [ ! -e /tmp/stop ]; do {FIO} || touch /tmp/bad; echo >>/tmp/count; done"
    guest.run(f"({loop}; touch /tmp/stopped) >/dev/null 2>&1 &")
    stream, _ = server.accept()
    stream.settimeout(10 * SECONDS)
    return stream


def test_nothing_is_lost(micro: kernel.Kernel, folder: Path, tap: str) -> None:
    (folder / "data").touch()
    os.truncate(folder / "data", 4 * MIB)
    rounds, moments = Rounds(micro, folder, tap), random.Random(ROUNDS)
    received = bytearray()
    began = time.monotonic()
    with socket.create_server((HOST, PORT)) as server:
        server.settimeout(10 * SECONDS)
        for number in range(ROUNDS):
            with rounds.run(number) as guest:
                if number == 0:
                    stream = prepare(guest, server)
                received += receive(stream, SHARE // 2)
                guest.machine.pause()
                guest.machine.resume()
                received += receive(stream, SHARE // 2)
                time.sleep(moments.uniform(0, 0.5))
        with rounds.run(ROUNDS) as guest:
            guest.run(
                "touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.1; done", 10 * SECONDS
            )
            assert guest.run("ls /tmp/bad 2>/dev/null; cat /m/tmp/fio | grep -c 'err= 0'") == "1"
            assert guest.run("wc -l </tmp/count") != "0"
            stream.close()
            guest.run("until [ -e /tmp/sent ]; do sleep 0.1; done", SECONDS)
            summed = guest.run("md5sum </tmp/data").split()[0]
            guest.run(f"! dmesg | grep -E {LOCKUP!r}")
    print(f"{ROUNDS} rounds: {time.monotonic() - began:.1f} s")
    assert hashlib.md5(received).hexdigest() == summed
