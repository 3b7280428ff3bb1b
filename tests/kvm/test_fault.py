"""Faults of a machine's devices: who is meant, and when they end. On any KVM."""

from __future__ import annotations

import socket
import tempfile
from typing import TYPE_CHECKING, cast

import pytest
from pyvirt.cli.stats import table
from pyvirt.devices.nic import NicConfig
from pyvirt.devices.stream import StreamConfig
from pyvirt.devices.virtio.fault import Fault
from pyvirt.devices.virtio.python import PythonDevice
from pyvirt.errors import ConfigError, QmpError
from pyvirt.qmp.machine import MachineHost
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.steps import finish

from .support import MEMORY, Guest
from .test_hotplug import Make, disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyvirt.devices.virtio.net import Net


pytestmark = pytest.mark.any_kvm


class Other(PythonDevice):
    """A device that nobody can plug, with an ID and a word of others."""

    device_id = 2
    stats = "mine"


def counts(host: MachineHost) -> dict[str, int]:
    """Return how many faults each device has that has any."""
    names = [name for name, _ in host.faults(None)]
    return {name: names.count(name) for name in names}


@pytest.fixture
def guest(make: Make, tmp_path: Path) -> Guest:
    """A machine with a disk that is called `root`."""
    config = disk(tmp_path / "root", 8)
    return make("spin", disks=(config,))


def test_a_device_goes_by_its_id_or_its_place(guest: Guest) -> None:
    host = MachineHost(guest)
    for name in ("root", "vda", "root"):
        host.add_fault(name, Fault("fail"))
    assert counts(host) == {"root": 3}
    assert [name for name, _ in host.faults("vda")] == ["root"] * 3
    host.clear_faults("vda", 2)
    assert [state.id for _, state in host.faults("root")] == [1, 3]
    for name in ("vdb", "eth0", "disk slot 1"):
        with pytest.raises(QmpError) as info:
            host.add_fault(name, Fault("drop"))
        assert str(info.value) == f"Device {name} not found; there are root"
    with pytest.raises(ConfigError, match="disk root: no driver is at work on it"):
        host.break_device("root")
    host.clear_faults(None, None)
    assert counts(host) == {}


def test_a_machines_reset_ends_them(guest: Guest) -> None:
    host = MachineHost(guest)
    host.add_fault("root", Fault("fail"))
    guest.start()
    guest.reset()
    assert counts(host) == {}


def test_unplugging_ends_them(guest: Guest) -> None:
    host = MachineHost(guest)
    host.add_fault("root", Fault("fail"))
    finish(host.inventory.unplug("root", host.detach))
    assert guest.slot("block", 0).faults().states() == []


def test_sizes(guest: Guest, tmp_path: Path) -> None:
    host = MachineHost(guest)
    (device,) = host.inventory.devices("blk")
    host.resize(device, 1 << 20)
    assert (tmp_path / "root").stat().st_size == 1 << 20
    assert host.image(device.backend.resource).size == 1 << 20


def test_links(make: Make) -> None:
    # Not every file system of the lab takes sockets.
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        socket.socket(socket.AF_UNIX) as switch,
    ):
        switch.bind(path := f"{folder}/switch")
        switch.listen()
        guest = make("spin", nics=(NicConfig("nic", StreamConfig(path)),))
    host = MachineHost(guest)
    (device,) = host.inventory.devices("net")
    nic = cast("Net", guest.slot("net", 0))
    for up in (False, True):
        host.set_link(device, up=up)
        assert nic.link == up
    host.add_fault("eth0", Fault("drop", every=10))
    assert [(name, state.fault.ops) for name, state in host.faults(None)] == [("nic", ("rx", "tx"))]


def test_a_device_that_is_there_for_good(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    device = Other()
    device.prepare("other")
    config = MachineConfig(str(kernel("spin")), memory=MEMORY)
    guest = Guest(config, tmp_path / "log", [device])
    try:
        host = MachineHost(guest)
        host.add_fault("other", Fault("drop"))
        assert [(name, s.fault.ops) for name, s in host.faults(None)] == [("other", ("interrupt",))]
        with pytest.raises(ConfigError, match="other: no fault delay; there are drop, double"):
            host.add_fault("other", Fault("delay"))
        host.clear_faults(None, None)
        assert host.faults(None) == []
        assert {one.name for one in host.counters()} == {"vm", "vcpu0", "other"}
        assert "other: register exits 0" in table(guest)
    finally:
        guest.close()
