"""Devices under the drivers of a distribution's kernel, where other tests have a smaller one."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.virtiofsd import Virtiofsd
from pyvirt.devices.virtio.balloon import BalloonConfig
from pyvirt.devices.virtio.console import ConsoleConfig, PortConfig
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.devices.virtio.vsock import VsockConfig
from pyvirt.harness.guest import kernel
from pyvirt.harness.guest.program import program
from pyvirt.qmp.machine import MachineHost
from pyvirt.vmm.execution import RUNNING

from .live import Live, live

MIB = 1 << 20
MODULES = (
    *("virtio_mmio", "virtio_console", "virtio_rng", "virtio_balloon", "virtiofs"),
    *("vmw_vsock_virtio_transport", "pvpanic_mmio"),
)
SECONDS = 60.0


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def guest(
    cloud: kernel.Kernel, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    (folder / "shared").mkdir()
    console = PortConfig(0, ChardevConfig("console", path=f"{folder}/hvc0"), is_console=True)
    devices = (
        ConsoleConfig("serial0", (console,), 2),
        RngConfig("rng0", "src", "/dev/urandom", 0),
        BalloonConfig("balloon0"),
        VsockConfig("vsock0", 42, f"{folder}/vsock"),
        FsConfig("share0", b"share0", Virtiofsd(str(folder / "shared"))),
    )
    peer = program("vsock-peer", Path(__file__).with_name("vsock"))
    logs = tmp_path_factory.mktemp("stock")
    files = {"/bin/peer": peer}
    cmdline = "console=ttyS0 quiet"  # a panic does not reboot
    with live(
        cloud, logs, modules=MODULES, files=files, cmdline=cmdline, devices=devices
    ) as running:
        yield running


def test_a_console(guest: Live, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{folder}/hvc0")
        client.settimeout(SECONDS)
        guest.run("echo said >/dev/hvc0")
        assert client.recv(6, socket.MSG_WAITALL) == b"said\r\n"


def test_entropy(guest: Live) -> None:
    guest.run("head -c 1000 /dev/hwrng >/dev/null", SECONDS)


def test_a_balloon(guest: Live) -> None:
    host = MachineHost(guest.machine)
    left = host.guest_memory() - 4 * MIB
    host.set_guest_memory(left)
    until = time.monotonic() + SECONDS
    while host.guest_memory() != left:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_sockets(guest: Live, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/vsock_7")
        listener.listen()
        listener.settimeout(SECONDS)
        guest.run("peer trips vsock:2:7 0 >/dev/null &")
        client, _ = listener.accept()
        client.close()


def test_a_shared_folder(guest: Live, folder: Path) -> None:
    (folder / "shared/seen").write_text("from the host")
    guest.run("mount -t virtiofs share0 /mnt && cp /mnt/seen /mnt/copy", SECONDS)
    assert (folder / "shared/copy").read_text() == "from the host"


def test_a_panic_is_told(guest: Live) -> None:
    """Debian's has the driver as a module, which finds the device by ACPI."""
    guest.begin("echo c >/proc/sysrq-trigger")
    until = time.monotonic() + SECONDS
    while ("GUEST_PANICKED", {"action": "run"}) not in guest.events:
        assert time.monotonic() < until, guest.events
        time.sleep(0.05)
    assert guest.machine.state == RUNNING
