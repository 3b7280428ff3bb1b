"""The balloon under Linux's own driver: whose memory it is shows in what this process takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from pyvirt.devices.virtio.balloon import Auto, Balloon, BalloonConfig
from pyvirt.harness.guest import kernel
from pyvirt.qmp.machine import MachineHost

from .live import Live, live, reporting

MIB = 1 << 20
MEMORY = 256 * MIB
LEFT = 160 * MIB
FILL = "dd if=/dev/zero of=/dev/shm/x bs=1M count=80 2>/dev/null"
SECONDS = 60.0


@pytest.fixture(scope="module")
def guest(micro: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    config = BalloonConfig("balloon0", deflate_on_oom=True, free_page_reporting=True)
    folder = tmp_path_factory.mktemp("balloon")
    modules = ("virtio_mmio", "virtio_balloon")
    with live(micro, folder, modules=modules, memory=MEMORY, devices=(config,)) as running:
        yield running


@pytest.fixture(scope="module")
def device(guest: Live) -> Balloon:
    assert guest.machine.slots
    found = guest.machine.slots.transports[-1].device
    assert isinstance(found, Balloon)
    return found


@pytest.fixture(scope="module")
def host(guest: Live) -> MachineHost:
    return MachineHost(guest.machine)


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def pss() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("Pss:"))
    return int(line.split()[1]) << 10


def test_free_memory_is_reported(guest: Live, device: Balloon) -> None:
    guest.run(FILL, SECONDS)
    full = pss()
    before = device.stats().released
    guest.run("rm /dev/shm/x")
    # Linux reports a few seconds after the fact, and memory that it never had as well.
    wait_for(lambda: full - pss() > 30 * MIB)
    assert device.stats().released - before > 30 * MIB >> 12


def test_the_guest_makes_do_with_less_and_takes_it_back(
    guest: Live, device: Balloon, host: MachineHost
) -> None:
    assert host.guest_memory() == MEMORY
    # Every page is the guest's own, or else the host would have nothing to get back.
    guest.run(FILL, SECONDS)
    full = pss()
    guest.run("rm /dev/shm/x")
    inflated = device.stats().inflated
    start = time.monotonic()
    host.set_guest_memory(LEFT)
    wait_for(lambda: host.guest_memory() == LEFT)
    stats = device.stats()
    print(
        f"{(MEMORY - LEFT) / MIB:.0f} MiB in {time.monotonic() - start:.2f} s, "
        f"{stats.releases} calls, {(full - pss()) / MIB:.0f} MiB less"
    )
    assert stats.inflated - inflated == (MEMORY - LEFT) >> 12
    assert (stats.kept, stats.refused) == (0, 0)
    assert full - pss() > 40 * MIB
    guest.machine.report()
    names = [name for name, _ in guest.events]
    assert "BALLOON_CHANGED" in names
    assert guest.events[-1] == ("BALLOON_CHANGED", {"actual": LEFT})

    host.set_guest_memory(MEMORY)
    wait_for(lambda: host.guest_memory() == MEMORY)
    guest.run(FILL, SECONDS)
    guest.run("rm /dev/shm/x")


def test_statistics(guest: Live, device: Balloon) -> None:
    count = device.statistics().count
    device.poll(1)
    wait_for(lambda: device.statistics().count >= count + 2)
    device.poll(0)
    assert time.time() - device.statistics().updated < SECONDS
    total = int(guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")) << 10
    values = device.statistics().values
    assert values[5] == total
    assert 0 < values[6] < total


def test_a_driver_that_comes_again(guest: Live, host: MachineHost) -> None:
    host.set_guest_memory(MEMORY - 16 * MIB)
    wait_for(lambda: host.guest_memory() == MEMORY - 16 * MIB)
    driver = "/sys/bus/virtio/drivers/virtio_balloon"
    guest.run(f"cd {driver}; echo virtio0 >unbind", SECONDS)
    assert host.guest_memory() == MEMORY
    guest.run("echo virtio0 >bind; cd /", SECONDS)
    wait_for(lambda: host.guest_memory() == MEMORY - 16 * MIB)


def test_it_follows_what_the_guest_uses(
    guest: Live, device: Balloon, host: MachineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.set_guest_memory(MEMORY)
    wait_for(lambda: host.guest_memory() == MEMORY)
    monkeypatch.setattr(device, "_auto", Auto(20, 5))
    with reporting(guest.machine):
        device.poll(1)
        wait_for(lambda: 0 < device.target == device.ballooned)
    used = (MEMORY - device.target) / 1.2
    print(f"{used / MIB:.0f} MiB used, {host.guest_memory() / MIB:.0f} MiB left")
    guest.run("true")
