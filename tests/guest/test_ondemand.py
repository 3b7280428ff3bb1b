"""Slots on demand under a distribution's kernel, which is told of each device by ACPI.

All of it in one boot: what a kernel does with a table that comes while it runs is nothing that
another test could show.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.cli.options.plugged import maker
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.harness.guest import kernel
from pyvirt.vmm import layout
from pyvirt.vmm.steps import finish

from ..unit.asking import Asking
from ..unit.namespace import ip, network_namespace
from .live import Live, live

MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console")
MIB = 1 << 20
SECTORS = 8 * MIB // 512
SECONDS = 60.0
DRIVER = "/sys/bus/platform/drivers/virtio-mmio"
# What the guest has of devices: none by ACPI, of the platform, or of virtio.
LEFT = "cd /sys/bus; ls acpi/devices platform/devices virtio/devices | grep -E 'LNRO|virtio[0-9]'"


class Client(Asking):
    """Somebody at the machine's monitor."""

    def __init__(self, guest: Live, folder: Path) -> None:
        super().__init__(guest.machine)
        assert guest.machine.demand
        assert guest.machine.slots
        self.demand = guest.machine.demand
        self.slots = guest.machine.slots
        self._folder = folder

    def disk(self, name: str, *, readonly: bool = False, **more: Any) -> None:
        """Plug a disk of 8 MiB that begins with its name."""
        path = self._folder / name
        path.write_text(name)
        self.register(path, 8 * MIB, readonly=readonly)
        assert self.ask("device_add", id=name, driver="virtio-blk-mmio", **more) == {}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def guest(
    cloud: kernel.Kernel, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    logs = tmp_path_factory.mktemp("ondemand")
    with live(cloud, logs, modules=MODULES, hotplug=True, on_demand=True) as running:
        yield running


@pytest.fixture(scope="module")
def whole_client(guest: Live, folder: Path) -> Client:
    return Client(guest, folder)


@pytest.fixture
def client(guest: Live, whole_client: Client) -> Iterator[Client]:
    """Return the client; what a test plugs is unplugged after it, and nothing of it stays."""
    yield whole_client
    for kind in ("blk", "net"):
        for device in list(whole_client.host.inventory.devices(kind)):
            assert whole_client.ask("device_del", id=device.id) == {}
    whole_client.events.clear()
    assert whole_client.slots.transports == []
    assert guest.run(f"{LEFT}; true") == ""


def wait_for(guest: Live, command: str, answer: str) -> None:
    """Ask until the guest says so: it has the device, its driver may still be at its probe."""
    until = time.monotonic() + SECONDS
    while (said := guest.run(f"({command}) 2>/dev/null; true")) != answer:
        assert time.monotonic() < until, f"{command}: {said} instead of {answer}"


def test_a_guest_begins_with_none(guest: Live, client: Client) -> None:
    assert guest.run("ls /sys/bus/virtio/devices") == ""


def test_a_disk_with_what_no_prepared_slot_has(guest: Live, client: Client) -> None:
    more = {"num-queues": 2, "logical_block_size": 4096, "serial": "number"}
    client.disk("d", readonly=True, **more)
    wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
    assert guest.run("cat /sys/block/vda/ro /sys/block/vda/serial") == "1\nnumber"
    assert guest.run("cat /sys/block/vda/queue/logical_block_size") == "4096"
    assert guest.run("head -c 1 /dev/vda") == "d"


def test_a_disk_is_written_and_unplugged(guest: Live, client: Client, folder: Path) -> None:
    client.disk("w")
    wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
    guest.run("printf written | dd of=/dev/vda conv=fsync 2>/dev/null")
    assert client.ask("device_del", id="w") == {}
    assert client.events == ["DEVICE_DELETED"]
    assert (folder / "w").read_bytes()[:7] == b"written"
    assert guest.run("ls /sys/block") == ""


def test_what_is_unbound_leaves_its_slot_to_another(guest: Live, client: Client) -> None:
    for _ in range(2):
        client.disk("again")
        wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
        name = guest.run(f"cd {DRIVER}; echo LNRO*")
        guest.run(f"echo {name} >{DRIVER}/unbind; ! test -e /sys/block/vda")
        assert client.ask("device_del", id="again") == {}
        assert client.slots.transports == []


def test_a_burst_in_a_paused_guest(guest: Live, client: Client) -> None:
    guest.machine.pause()
    names = [f"burst{index}" for index in range(5)]
    for name in names:
        client.disk(name)
    guest.machine.resume()
    wait_for(guest, "cat /sys/block/vd?/size | wc -l", "5")
    assert sorted(guest.run("for d in /dev/vd?; do head -c 6 $d; echo; done").split()) == names


def test_more_than_there_are_lines(guest: Live, client: Client) -> None:
    """They share them, and each gets its own interrupts."""
    count = layout.SLOTS_MAX + 4
    for index in range(count):
        client.disk(f"many{index:02}")
    wait_for(guest, "ls -d /sys/block/vd? | wc -l", str(count))
    assert guest.run("grep -c 'virtio.*virtio' /proc/interrupts") == "4"
    guest.run("for d in /dev/vd?; do dd if=$d of=$d bs=4k count=64 2>/dev/null & done; wait", 60)
    found = guest.run("for d in /dev/vd?; do head -c 6 $d; echo; done").split()
    assert sorted(found) == [f"many{index:02}" for index in range(count)]


def test_a_nic_with_an_mtu(guest: Live, client: Client) -> None:
    with network_namespace():
        ip("tuntap add odtap0 mode tap vnet_hdr")
        assert client.ask("netdev_add", id="n", ifname="odtap0") == {}
        more = {"host_mtu": 1400, "mac": "52:54:00:12:34:56"}
        assert client.ask("device_add", id="n", driver="virtio-net-mmio", **more) == {}
    wait_for(guest, "cat /sys/class/net/eth0/mtu", "1400")
    assert guest.run("cat /sys/class/net/eth0/address") == "52:54:00:12:34:56"


def test_entropy(guest: Live, client: Client) -> None:
    device = RngConfig("rng0", "src", "/dev/urandom", 0).make()
    finish(client.demand.plug(device))
    wait_for(guest, "cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0")
    guest.run("head -c 100 /dev/hwrng >/dev/null", SECONDS)
    assert finish(client.demand.unplug(device))
    assert client.slots.transports == []
    assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "none"


def test_a_port(guest: Live, client: Client, folder: Path) -> None:
    path = str(folder / "port")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        listening.settimeout(SECONDS)
        members = {"id": "p", "chardev": "c", "name": "org.example"}
        device = maker([])("virtserialport", members, {"c": path}).make()
        finish(client.demand.plug(device))
        guest.run("for n in $(seq 100); do [ -e /dev/vport?p1 ] && break; sleep 0.1; done", SECONDS)
        guest.begin("for port in /dev/vport?p1; do echo hello >$port; done")
        with listening.accept()[0] as connected:
            connected.settimeout(SECONDS)
            assert connected.recv(100) == b"hello\n"
            assert guest.finish(SECONDS)[1] == 0
        assert finish(client.demand.unplug(device))
    assert guest.run("ls /sys/class/virtio-ports") == ""


CYCLES, WARM_UP = 40, 10


def held() -> tuple[int, int]:
    """Return how many descriptors and threads the monitor has, which is this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def test_cycles_leave_a_table_of_each_and_nothing_else(guest: Live, client: Client) -> None:
    def count(what: str) -> int:
        return int(guest.run(what))

    tables = "ls /sys/firmware/acpi/tables/dynamic | wc -l"
    nodes = "ls /sys/devices/platform /sys/bus/acpi/devices | wc -l"
    lines = "wc -l </proc/interrupts"
    for cycle in range(CYCLES):
        if cycle == WARM_UP:
            before = held()
            found = [count(what) for what in (nodes, lines)]
            loaded = count(tables)
        client.disk("cycle")
        if cycle % WARM_UP == 0:
            wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
        assert client.ask("device_del", id="cycle") == {}
    assert held() == before
    assert [count(what) for what in (nodes, lines)] == found
    assert count(tables) - loaded == CYCLES - WARM_UP


def test_nothing_of_it_is_an_error_to_the_kernel(guest: Live, client: Client) -> None:
    wrong = "ACPI Error|ACPI Warning|can't request region|Wrong magic|resource:|BUG"
    assert guest.run(f'dmesg | grep -E "{wrong}"; true') == ""
    assert guest.run("dmesg | grep -c 'Dynamic OEM Table Load'") != "0"
