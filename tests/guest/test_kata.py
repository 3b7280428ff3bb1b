"""Kata's StratoVirt driver: its command line, under the name that it starts, and its requests."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.tap import Tap, TapConfig
from pyvirt.devices.vhost_user.virtiofsd import PROGRAM as VIRTIOFSD
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.lab import module

from ..compat.govmm import Govmm
from ..unit.namespace import ip, network_namespace
from .conftest import PYVIRT, SECONDS, make

MIB = 1 << 20
CID = 1234
# The words that Kata gives its kernel: there is neither ACPI nor a serial port.
APPEND = (
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 reboot=k panic=1 net.ifnames=0 pci=off "
    "iommu=off acpi=off quiet 8250.nr_uarts=0 agent.log_vport=1025"
)
# Here a script stands for the image with Kata's agent. Its console is Kata's of debugging.
SCRIPT = """
exec >/dev/hvc0 2>&1
echo "devices: $(cat /sys/bus/virtio/devices/*/device | sort | tr '\\n' ' ')"
while :; do echo "size: $(cat /sys/block/vdb/size)"; sleep 0.2; done
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until, f"not within {SECONDS} s: {what}"
        time.sleep(0.05)


class Console:
    """What comes out of Kata's console socket."""

    def __init__(self, path: str) -> None:
        wait_for(lambda: os.path.exists(path), "the console's socket")
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(SECONDS)
        self._socket.connect(path)
        self._lines = self._socket.makefile("r", errors="replace")

    def expect(self, text: str) -> str:
        """Return the first line that begins so."""
        for line in self._lines:
            if line.startswith(text):
                return line.strip()
        raise AssertionError(f"it ended without {text}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        for name in ("tap0", "tap1"):
            ip(f"tuntap add {name} mode tap")
            ip(f"link set {name} up")
        yield


def tap_fd(name: str) -> int:
    """Return an open tap, as Kata hands one over."""
    tap = Tap(TapConfig(ifname=name))
    (fd,) = tap.fds
    return fd


def connect(path: str) -> socket.socket:
    wait_for(lambda: os.path.exists(path), "the monitor's socket")
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(path)
    return client


def test_a_sandbox(micro: kernel.Kernel, shm: Path, tmp_path: Path) -> None:
    module.load("vhost_vsock")
    program = shm / "stratovirt"
    program.symlink_to(PYVIRT)
    image, other = make(shm / "image", 8 * MIB), make(shm / "other", 4 * MIB)
    initrd = initramfs.build(micro, script=SCRIPT)
    qmp, console, fs = (str(shm / name) for name in ("qmp.sock", "console.sock", "vhost-fs.sock"))
    daemon = subprocess.Popen([VIRTIOFSD, f"--socket-path={fs}", "-o", f"source={tmp_path}"])
    vhost, tap = os.open("/dev/vhost-vsock", os.O_RDWR), tap_fd("tap0")
    wait_for(lambda: os.path.exists(fs), "virtiofsd")
    words = [
        *("-name", "sandbox-1f2e", "-uuid", "9f1c3e0a-1f1e-4b7e-8a43-2f0f4c1d2e3b"),
        *("-smp", "1", "-m", "256", "-kernel", str(micro.image), "-initrd", str(initrd)),
        *("-append", APPEND, "-qmp", f"unix:{qmp},server,nowait", "-D", str(shm / "log")),
        "-disable-seccomp",
        *("-machine", "type=microvm,dump-guest-core=off,mem-share=on"),
        *("-object", "rng-random,id=objrng0,filename=/dev/urandom"),
        *("-device", "virtio-rng-device,rng=objrng0,id=virtio-rng0"),
        *("-drive", f"id=rootfs,file={image},readonly=on,direct=off"),
        *("-device", "virtio-blk-device,drive=rootfs,id=virtio-blk0"),
        *("-device", f"vhost-vsock-device,id=vsock-id,guest-cid={CID},vhostfd={vhost}"),
        *("-netdev", f"tap,id=tap0_kata,fds={tap}"),
        *("-device", "virtio-net-device,netdev=tap0_kata,id=tap0_kata,mac=02:42:ac:11:00:02"),
        *("-chardev", f"socket,id=virtio_fs,path={fs},server,nowait"),
        *("-device", "vhost-user-fs-device,chardev=virtio_fs,tag=kataShared,id=virtio-fs0"),
        *("-device", "virtio-serial-device,id=virtio-serial0"),
        *("-chardev", f"socket,id=charconsole0,path={console},server,nowait"),
        *("-device", "virtconsole,chardev=charconsole0,id=virtio-console0,nr=0"),
    ]
    monitor = subprocess.Popen(
        ["timeout", "-k", "5", str(SECONDS), program, *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[vhost, tap],
    )
    os.close(vhost)
    os.close(tap)
    try:
        screen = Console(console)
        # Eight slots for disks and NICs, then a console, entropy, sockets, a file system.
        expected = ["0x0001"] * 2 + ["0x0002"] * 6 + ["0x0003", "0x0004", "0x0013", "0x001a"]
        assert screen.expect("devices:") == f"devices: {' '.join(expected)}"
        with connect(qmp) as client:
            plug(Govmm(client), screen, other)
        screen.close()
        assert monitor.wait(SECONDS) == 0
        assert monitor.stderr is not None
        assert monitor.stderr.read() == b""
        assert (shm / "log").read_text() == ""
    finally:
        monitor.terminate()
        monitor.wait(SECONDS)
        assert monitor.stderr is not None
        monitor.stderr.close()
        daemon.terminate()
        daemon.wait(SECONDS)


def plug(govmm: Govmm, screen: Console, image: Path) -> None:
    """Ask what Kata asks of a sandbox in its life, to its end."""
    assert govmm.do("query-status")["status"] == "running"
    file = {"driver": "file", "filename": str(image), "aio": "", "discard": "unmap"}
    govmm.do("blockdev-add", node_name="drive-1", file=file, read_only=False)
    govmm.do("device_add", id="drive-1", driver="virtio-blk-mmio", addr="1", romfile="")
    size = image.stat().st_size // 512
    assert screen.expect(f"size: {size}")
    tap = tap_fd("tap1")
    govmm.do("getfd", tap, fdname="tap1")
    os.close(tap)
    govmm.do("netdev_add", type="tap", id="eth1", fds="tap1")
    govmm.do("device_add", id="eth1", driver="virtio-net-mmio", netdev="eth1", addr="1", romfile="")
    govmm.do("device_del", id="drive-1")
    assert screen.expect("size: 0")
    govmm.do("device_del", id="eth1")
    govmm.do("quit")
    govmm.close()
