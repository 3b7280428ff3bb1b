"""Slots on demand under a distribution's kernels, which are told of each device by ACPI.

All of it in one boot of each kernel: what a kernel does with a table that comes while it runs is
nothing that another test could show.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.cli.options.plugged import maker
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import kernel
from pyvirt.harness.guest.program import program
from pyvirt.vmm import demand, layout
from pyvirt.vmm.machine import Machine
from pyvirt.vmm.steps import finish

from ..unit.asking import Asking
from ..unit.namespace import ip, network_namespace
from . import root
from .live import BOOT_SECONDS, SCRIPT, Live, live
from .test_vhost_user import Daemon

KERNELS = ("cloud", "cloud-6.12")
# What kernels do not differ in.
in_one_kernel = pytest.mark.parametrize("guest", KERNELS[:1], indirect=True, scope="module")
DRIVERS = ("virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon")
MODULES = ("virtio_mmio", *DRIVERS, "vmw_vsock_virtio_transport", "virtiofs", "ext4")
QUEUES = 4
CID = 42
ECHO = 1  # a port
GIVEN = [("object", "rng-random,id=src,filename=/dev/urandom")]
MIB = 1 << 20
SECTORS = 8 * MIB // 512
SECONDS = 60.0
DRIVER = "/sys/bus/platform/drivers/virtio-mmio"
# What the guest has of devices: none by ACPI, of the platform, or of virtio.
LEFT = "cd /sys/bus; ls acpi/devices platform/devices virtio/devices | grep -E 'LNRO|virtio[0-9]'"
# What has the guest go on from its initramfs as one of systemd, on a disk that was plugged: what
# process 1 runs when it is told to reboot, and a unit that carries out a test's lines.
SYSTEMD = {
    "/systemd/reboot": b"""#!/bin/sh
exec switch_root /new /lib/systemd/systemd --unit=live.service
""",
    "/systemd/live.service": b"""[Unit]
DefaultDependencies=no
Requires=systemd-udevd.service
After=systemd-udevd.service
[Service]
ExecStart=/bin/sh /run/live
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
""",
    "/systemd/live": SCRIPT.encode(),
}


class Client(Asking):
    """Somebody at the machine's monitor."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        super().__init__(machine)
        assert machine.demand
        assert machine.slots
        self.demand = machine.demand
        self.slots = machine.slots
        self.host._maker = maker(GIVEN)
        self.early = ""
        self._folder = folder

    def disk(self, name: str, *, readonly: bool = False, **more: Any) -> None:
        """Plug a disk of 8 MiB that begins with its name."""
        path = self._folder / name
        path.write_text(name)
        self.register(path, 8 * MIB, readonly=readonly)
        assert self.ask("device_add", id=name, driver="virtio-blk-mmio", **more) == {}

    def other(self, name: str, driver: str, **members: Any) -> None:
        """Plug a device that is neither disk nor NIC."""
        assert self.ask("device_add", id=name, driver=driver, **members) == {}

    def clear(self, guest: Live) -> None:
        """Unplug all; nothing of it stays."""
        for kind in ("blk", "net"):
            for device in list(self.host.inventory.devices(kind)):
                assert self.ask("device_del", id=device.id) == {}
        for name in list(self.host._others):
            assert self.ask("device_del", id=name) == {}
        self.events.clear()
        assert self.slots.transports == []
        assert guest.run(f"{LEFT}; true") == ""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module", params=KERNELS)
def guest(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A guest of one kernel."""
    try:
        image = kernel.find(request.param)
    except PyvirtError as error:
        pytest.skip(str(error))
    with live(
        image,
        tmp_path_factory.mktemp("ondemand"),
        modules=MODULES,
        files={"/bin/peer": program("vsock-peer", Path(__file__).with_name("vsock")), **SYSTEMD},
        at_start=lambda machine: plug_early(machine, folder, reset=image.name != KERNELS[0]),
        vcpus=1 if image.name == KERNELS[0] else 2,
        share=True,
        hotplug=True,
        on_demand=True,
    ) as running:
        yield running


def plug_early(machine: Machine, folder: Path, *, reset: bool) -> None:
    """Plug a disk before the guest has its ACPI; it may be reset before it answers."""
    client = Client(machine, folder)
    plug = threading.Thread(target=lambda: client.disk("early"))
    assert client.demand
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demand, "LIMIT_S", BOOT_SECONDS)
        plug.start()
        until = time.monotonic() + SECONDS
        while not client.demand.port.is_waiting:
            assert time.monotonic() < until
            time.sleep(0.01)
        if reset:
            machine.reset()
        plug.join()


@pytest.fixture(scope="module")
def whole_client(guest: Live, folder: Path) -> Client:
    """Return the client; what it reads from the disk that was there first is its `early`."""
    client = Client(guest.machine, folder)
    wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
    client.early = guest.run("head -c 5 /dev/vda")
    client.clear(guest)
    return client


@pytest.fixture
def client(guest: Live, whole_client: Client) -> Iterator[Client]:
    """Return the client; what a test plugs is unplugged after it."""
    yield whole_client
    whole_client.clear(guest)


def wait_for(guest: Live, command: str, answer: str) -> None:
    """Ask until the guest says so: it has the device, its driver may still be at its probe."""
    until = time.monotonic() + SECONDS
    while (said := guest.run(f"({command}) 2>/dev/null; true")) != answer:
        assert time.monotonic() < until, f"{command}: {said} instead of {answer}"


def test_what_was_plugged_before_the_guest_had_acpi(client: Client) -> None:
    """It was told when it had; or it was reset first, and found it where it began anew."""
    assert client.early == "early"


def test_a_guest_begins_with_none(guest: Live, client: Client) -> None:
    assert guest.run("ls /sys/bus/virtio/devices") == ""


def test_a_disk_with_what_no_prepared_slot_has(guest: Live, client: Client) -> None:
    more = {"num-queues": QUEUES, "logical_block_size": 4096, "serial": "number"}
    client.disk("d", readonly=True, **more)
    wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
    assert guest.run("cat /sys/block/vda/ro /sys/block/vda/serial") == "1\nnumber"
    assert guest.run("cat /sys/block/vda/queue/logical_block_size") == "4096"
    assert guest.run("ls /sys/block/vda/mq | wc -l") == str(guest.machine.config.vcpus)
    assert guest.run("cut -c13 /sys/block/vda/device/features") == "1"  # VIRTIO_BLK_F_MQ
    (transport,) = client.slots.transports
    assert len(transport.device.queue_sizes) == QUEUES
    assert guest.run("head -c 1 /dev/vda") == "d"


@in_one_kernel
def test_a_disk_is_written_and_unplugged(guest: Live, client: Client, folder: Path) -> None:
    client.disk("w")
    wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
    guest.run("printf written | dd of=/dev/vda conv=fsync 2>/dev/null")
    assert client.ask("device_del", id="w") == {}
    assert client.events == ["DEVICE_DELETED"]
    assert (folder / "w").read_bytes()[:7] == b"written"
    assert guest.run("ls /sys/block") == ""


@in_one_kernel
def test_what_is_unbound_leaves_its_slot_to_another(guest: Live, client: Client) -> None:
    for _ in range(2):
        client.disk("again")
        wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
        name = guest.run(f"cd {DRIVER}; echo LNRO*")
        guest.run(f"echo {name} >{DRIVER}/unbind; ! test -e /sys/block/vda")
        assert client.ask("device_del", id="again") == {}
        assert client.slots.transports == []


@in_one_kernel
def test_a_burst_in_a_paused_guest(guest: Live, client: Client) -> None:
    guest.machine.pause()
    names = [f"burst{index}" for index in range(5)]
    for name in names:
        client.disk(name)
    guest.machine.resume()
    wait_for(guest, "cat /sys/block/vd?/size | wc -l", "5")
    assert sorted(guest.run("for d in /dev/vd?; do head -c 6 $d; echo; done").split()) == names


@in_one_kernel
def test_more_than_there_are_lines(guest: Live, client: Client) -> None:
    """They share them, and each gets its own interrupts."""
    count = layout.SLOTS_MAX + 2
    for index in range(count):
        client.disk(f"many{index:02}")
    wait_for(guest, "ls -d /sys/block/vd? | wc -l", str(count))
    assert guest.run("grep -c 'virtio.*virtio' /proc/interrupts") == "2"
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
    client.other("r", "virtio-rng-device", rng="src")
    wait_for(guest, "cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0")
    guest.run("head -c 100 /dev/hwrng >/dev/null", SECONDS)
    assert client.ask("device_del", id="r") == {}
    assert client.slots.transports == []
    assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "none"


def test_a_balloon(guest: Live, client: Client) -> None:
    client.other("b", "virtio-balloon-device")
    whole = client.host.memory
    wait_for(guest, "ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio* | wc -l", "1")
    for size in (whole - 4 * MIB, whole):
        assert client.ask("balloon", value=size) == {}
        until = time.monotonic() + SECONDS
        while client.ask("query-balloon") != {"actual": size}:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_socket(guest: Live, client: Client, folder: Path) -> None:
    client.other("v", "vsock-device", **{"guest-cid": CID, "uds": str(folder / "v")})
    guest.run(f"peer echo vsock:-1:{ECHO} >/tmp/echo &")
    guest.run("until grep -q ready /tmp/echo; do sleep 0.01; done")
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(SECONDS)
        stream.connect(str(folder / "v"))
        stream.sendall(f"CONNECT {ECHO}\n".encode())
        with stream.makefile("rb") as answers:
            assert answers.readline().startswith(b"OK ")
            stream.sendall(b"heard\n")
            assert answers.readline() == b"heard\n"
    guest.run("killall peer")


def test_a_folder(guest: Live, client: Client, folder: Path) -> None:
    (folder / "file").write_text("shared")
    daemon = Daemon(str(folder / "fs"), folder)
    try:
        address = {"type": "unix", "data": {"path": daemon.socket}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        assert client.ask("chardev-add", id="c", backend=backend) == {}
        client.other("f", "vhost-user-fs-device", chardev="c", tag="tag")
        wait_for(guest, "mount -t virtiofs tag /mnt; cat /mnt/file", "shared")
        guest.run("umount /mnt")
        assert client.ask("device_del", id="f") == {}
        assert client.ask("chardev-remove", id="c") == {}
    finally:
        daemon.kill()


@in_one_kernel
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


CYCLES, WARM_UP = 12, 4


def held() -> tuple[int, int]:
    """Return how many descriptors and threads the monitor has, which is this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@in_one_kernel
def test_cycles_leave_a_table_of_each_and_nothing_else(guest: Live, client: Client) -> None:
    def count(what: str) -> int:
        return int(guest.run(what))

    tables = "ls /sys/firmware/acpi/tables/dynamic | wc -l"
    nodes = "ls /sys/devices/platform /sys/bus/acpi/devices | wc -l"
    for cycle in range(CYCLES):
        if cycle == WARM_UP:
            before = held()
            found, loaded = count(nodes), count(tables)
        client.disk("cycle")
        if cycle % WARM_UP == 0:
            wait_for(guest, "cat /sys/block/vda/size", str(SECTORS))
        assert client.ask("device_del", id="cycle") == {}
    assert held() == before
    assert count(nodes) == found
    assert count(tables) - loaded == CYCLES - WARM_UP


def test_nothing_of_it_is_an_error_to_the_kernel(guest: Live, client: Client) -> None:
    client.disk("told")
    wrong = "ACPI Error|ACPI Warning|can't request region|Wrong magic|resource:|BUG"
    assert guest.run(f'dmesg | grep -E "{wrong}"; true') == ""
    assert guest.run("dmesg | grep -c 'Dynamic OEM Table Load'") != "0"


@in_one_kernel
def test_a_disk_that_goes_while_it_is_probed(guest: Live, client: Client) -> None:
    for _ in range(2):
        client.disk("gone")
        assert client.ask("device_del", id="gone") == {}
    client.disk("stays")
    wait_for(guest, f"grep -lx {SECTORS} /sys/block/*/size | wc -l", "1")
    name = guest.run(f"grep -lx {SECTORS} /sys/block/*/size").split("/")[3]
    assert guest.run(f"head -c 5 /dev/{name}") == "stays"


@in_one_kernel
def test_udev_sees_it_come_and_go(guest: Live, whole_client: Client) -> None:
    """In a guest of systemd: the last of its kernel, which has no other way back."""
    file = {"driver": "file", "filename": str(root.image())}
    whole_client.ask("blockdev-add", **{"node-name": "root", "file": file, "read-only": True})
    assert whole_client.ask("device_add", id="root", driver="virtio-blk-mmio") == {}
    wait_for(guest, "cat /sys/block/vda/ro", "1")
    guest.run("mkdir /new && mount -t ext4 -o ro /dev/vda /new && mount -t tmpfs tmpfs /new/run")
    guest.run("mount -t tmpfs tmpfs /new/lib/systemd/system-generators")  # they take their time
    guest.run("mkdir -p /new/run/systemd/system && cp /systemd/live /new/run")
    guest.run("cp /systemd/live.service /new/run/systemd/system && cp /systemd/reboot /sbin")
    guest.run("chmod 755 /sbin/reboot")
    guest.begin("kill -TERM 1; exit")
    guest.ready()
    assert guest.run("cat /proc/1/comm") == "systemd"

    guest.run("udevadm monitor --udev --subsystem-match=block >/run/seen 2>&1 &")
    guest.run("until grep -q 'UDEV - ' /run/seen; do sleep 0.01; done", SECONDS)
    whole_client.disk("d", serial="number")
    wait_for(guest, "readlink /dev/disk/by-id/virtio-number", "../../vdb")
    assert whole_client.ask("device_del", id="d") == {}
    wait_for(guest, "grep -c ' remove .*/vdb' /run/seen", "1")
    wait_for(guest, "readlink /dev/disk/by-id/virtio-number", "")
    seen = guest.run("cat /run/seen")
    print(seen)
    events = [line.split()[2:4] for line in seen.splitlines() if line.startswith("UDEV  ")]
    assert [(what, path.rpartition("/")[2]) for what, path in events] == [
        ("add", "vdb"), ("remove", "vdb")
    ]  # fmt: skip
