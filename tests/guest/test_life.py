"""What an operator does to a running guest: its power button, and its reset.

The guest boots once; most tests have it as it was then.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyvirt.devices.virtio.block import BlockConfig, Image
from pyvirt.errors import PyvirtError
from pyvirt.harness.guest import kernel
from pyvirt.vmm.execution import ENDED, PAUSED, RUNNING

from ..kvm.support import wait_readable
from .live import Live, live

MIB = 1 << 20
# Type, code and value of the next input event; the file is open before the button is pressed.
OPEN = "exec 4</dev/input/event0"
EVENT = "dd bs=24 count=1 <&4 2>/dev/null | od -An -tu2 -j16 -N6"
EV_KEY, EV_SYN, KEY_POWER = "1", "0", "116"


@pytest.fixture
def image(tmp_path: Path) -> BlockConfig:
    path = tmp_path / "disk"
    path.write_bytes(b"on the disk")
    os.truncate(path, MIB)
    return BlockConfig("disk", str(path))


@pytest.fixture(scope="module")
def saved() -> Iterator[Path]:
    """Where the first of the next fixture's guests is saved when it has booted."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name) / "guest"


@pytest.fixture
def guest(micro: kernel.Kernel, tmp_path: Path, saved: Path) -> Iterator[Live]:
    with live(micro, tmp_path, saved=saved, hotplug=True, vcpus=2) as guest:
        yield guest


def test_the_power_button_is_a_key_that_the_guest_sees(guest: Live) -> None:
    guest.run(OPEN)
    for _ in range(2):
        guest.machine.power_button()
        for value in "10":
            assert guest.run(EVENT).split() == [EV_KEY, KEY_POWER, value]
            assert guest.run(EVENT).split() == [EV_SYN, "0", "0"]
    assert guest.events == [("POWERDOWN", {})] * 2


def test_a_guest_that_heeds_the_button_switches_itself_off(guest: Live) -> None:
    guest.run(OPEN)
    guest.begin(f"{EVENT}; poweroff -f")
    guest.machine.power_button()
    wait_readable(guest.machine.ended_fd, "the guest's end")
    guest.machine.stop()
    assert guest.events == [
        ("POWERDOWN", {}),
        ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}),
    ]


def uptime(guest: Live) -> float:
    return float(guest.run("cat /proc/uptime").split()[0])


@pytest.fixture
def booted(micro: kernel.Kernel, tmp_path: Path) -> Iterator[Live]:
    with live(micro, tmp_path, hotplug=True, vcpus=2) as guest:
        yield guest


def test_a_reset_boots_the_guest_anew(booted: Live, image: BlockConfig) -> None:
    guest = booted
    guest.run("echo kept >/tmp/file")
    guest.machine.attach("block", 2, Image(image))
    for life in range(2):
        before = uptime(guest)
        guest.machine.reset()
        guest.ready()
        assert uptime(guest) < before + 5 * life + 10
        guest.run("! [ -e /tmp/file ]")
        assert guest.run("nproc") == "2"
        assert guest.run("cat /sys/block/vd?/size").split() == ["0", "0", "2048", "0", "0", "0"]
        assert guest.run("dd if=/dev/vdc bs=11 count=1 2>/dev/null") == "on the disk"
        # Time goes by: interrupts of the timer and the console come.
        guest.run("sleep 0.2")
        guest.run("echo here >/tmp/file")
    assert guest.events == [("RESET", {"guest": False})] * 2
    assert guest.log.read_text() == ""


def test_a_reset_in_the_middle_of_the_boot(guest: Live) -> None:
    for _ in range(3):
        guest.machine.reset()
    guest.ready()
    assert guest.run("echo alive") == "alive"


def test_a_paused_guest_stays_paused(guest: Live) -> None:
    guest.machine.pause()
    guest.machine.reset()
    assert guest.machine.state == PAUSED
    guest.machine.resume()
    guest.ready()
    assert [name for name, _ in guest.events] == ["STOP", "RESET", "RESUME"]


def test_a_reset_under_load(guest: Live, image: BlockConfig) -> None:
    guest.machine.attach("block", 0, Image(image))
    for _ in range(3):
        guest.run("(while :; do dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>&-; done) & :")
        guest.run("(while :; do :; done) & :")
        guest.machine.reset()
        guest.ready()
    assert guest.machine.state == RUNNING
    assert guest.log.read_text() == ""


def test_a_reset_without_a_kernel_ends_the_machine(guest: Live) -> None:
    guest.machine.config.kernel = "/nonexistent/kernel"
    with pytest.raises(PyvirtError, match="/nonexistent/kernel"):
        guest.machine.reset()
    assert guest.machine.state == ENDED


def test_the_end_comes_during_a_reset(micro: kernel.Kernel, tmp_path: Path, saved: Path) -> None:
    for delay in (0.0, 0.002, 0.01, 0.05):
        folder = tmp_path / str(delay)
        folder.mkdir()
        with live(micro, folder, saved=saved, hotplug=True, vcpus=2) as guest:
            ender = threading.Timer(delay, guest.machine.stop)
            ender.start()
            # It may be over before, or after.
            with suppress(PyvirtError):
                guest.machine.reset()
            ender.join()
            assert guest.machine.state == ENDED


def test_a_stock_kernel_tells_of_its_panic(cloud: kernel.Kernel, tmp_path: Path) -> None:
    """Debian's has the driver as a module, which finds the device by ACPI."""
    with live(cloud, tmp_path, modules=("pvpanic_mmio",), cmdline="console=ttyS0 quiet") as guest:
        guest.begin("echo c >/proc/sysrq-trigger")
        until = time.monotonic() + 60
        while not guest.events:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert guest.events == [("GUEST_PANICKED", {"action": "run"})]
        assert guest.machine.state == RUNNING
        guest.machine.reset()
        guest.ready()
        assert guest.run("echo alive") == "alive"
