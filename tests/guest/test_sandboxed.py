"""Every kind of device at work in the sandbox that `pyvirt run` has by default.

A call that is on no list ends the machine, and says so. Guests of `live()` are in no sandbox.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyvirt.harness.guest import kernel
from pyvirt.harness.guest.program import program
from pyvirt.qmp.client import Client

from ..unit.namespace import ip, network_namespace
from .conftest import make
from .live import SCRIPT
from .network import interface, running, until
from .test_cycles import Asked
from .test_qmp_net import make_tap

MIB = 1 << 20
ECHO, BACK = 1, 2  # ports
BYTES = 2 * MIB
SECONDS = 60.0
MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console"),
    *("virtio_balloon", "vmw_vsock_virtio_transport"),
)
# Each engine, in a thread of the disk's own and in one that it shares.
DISKS = ("aio=io_uring", "aio=threads", "iothread=a", "iothread=b,aio=threads")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        for number in range(2):
            make_tap(number)
        yield


def talk(path: Path, first: bytes, answer: bytes) -> None:
    """Say something at a socket, and hear what comes of it."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(SECONDS)
        peer.connect(str(path))
        with peer.makefile("rb") as said:
            peer.sendall(first)
            assert said.readline().endswith(answer)


def resize(client: Client, size: int) -> None:
    """Have the guest have so many bytes, by its balloon."""
    client.execute("balloon", {"value": size})
    until(lambda: bool(client.execute("query-balloon")["actual"] == size))


def test_every_kind_of_device(shm: Path) -> None:
    peer = program("vsock-peer", Path(__file__).with_name("vsock"))
    qmp, port, vsock, other = (shm / name for name in ("qmp", "port", "vsock", "other"))
    options = ["-m", "256", "-qmp", f"unix:{qmp},server,nowait", "-object", "iothread,id=a"]
    options += ["-object", "iothread,id=b"]
    for number, words in enumerate(DISKS):
        options += ["-disk", f"{make(shm / str(number), 4 * MIB)},{words}"]
    options += ["-net", "tap0", "-net", "tap1,iothread=a"]
    options += ["-object", "rng-random,id=src,filename=/dev/urandom"]
    options += ["-device", "virtio-rng-device,rng=src", "-device", "virtio-balloon-device"]
    options += ["-chardev", f"socket,id=c,path={port},server,nowait"]
    options += ["-device", "virtio-serial-device", "-device", "virtserialport,chardev=c,name=p"]
    options += ["-device", f"vsock-device,guest-cid=42,uds={vsock}"]
    image = kernel.find("cloud")
    with running(SCRIPT, *options, image=image, modules=MODULES, files={"/bin/peer": peer}) as run:
        guest = Asked(run)
        for letter in "abcd":
            disk = f"/dev/vd{letter}"
            guest.run(f"until [ -b {disk} ]; do sleep 0.1; done")
            guest.run(f"dd if=/dev/urandom of={disk} bs=64k count=32 conv=fsync 2>/dev/null")
            guest.run(f"echo 3 >/proc/sys/vm/drop_caches; md5sum {disk}")
        for number in range(2):
            guest.run(interface(f"eth{number}", f"10.0.{number}.2/24").strip().replace("\n", "; "))
            guest.run(f"until ping -c 1 -W 1 10.0.{number}.1 >/dev/null; do :; done")
        guest.run("[ $(head -c 64 /dev/hwrng | wc -c) = 64 ]")
        run.say("for port in /dev/vport?p1; do cat <>$port >&0 & done")
        talk(port, b"a line\n", b"a line\n")
        guest.run(f"peer echo vsock:-1:{ECHO} >/tmp/echo & :")
        guest.run("until grep -q ready /tmp/echo; do sleep 0.1; done")
        talk(vsock, b"CONNECT %d\n" % ECHO, b"\n")
        with subprocess.Popen(
            [peer, "sink", f"unix:{vsock}_{BACK}"], stdout=subprocess.PIPE
        ) as sink:
            assert sink.stdout
            assert sink.stdout.readline() == b"ready\n"
            assert "whole" in guest.run(f"peer send vsock:2:{BACK} {BYTES}")
            sink.kill()
        with closing(Client(str(qmp), lambda _: None)) as client:
            for size in (160, 256):
                resize(client, size * MIB)
            file = {"driver": "file", "filename": str(make(other, 4 * MIB))}
            client.execute("blockdev-add", {"node-name": "other", "file": file})
            client.execute("device_add", {"id": "other", "driver": "virtio-blk-mmio"})
            guest.run("until dd if=/dev/vde of=/dev/null bs=1M count=1 2>/dev/null; do :; done")
            client.execute("device_del", {"id": "other"})
        run.say("exit")
        ended = run.end()
    assert (ended.status, ended.messages) == (0, "")
