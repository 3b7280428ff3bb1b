"""What an operator does to a running guest, its power button and its reset, and how Linux ends.

The guest boots once; each test has it as it was then.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.virtio.block import BlockConfig, Image
from pyvirt.harness.guest import kernel
from pyvirt.vmm.end import Actions
from pyvirt.vmm.execution import RUNNING

from ..kvm.support import wait_readable
from .live import Live, live

MIB = 1 << 20
# Type, code and value of the next input event; the file is open before the button is pressed.
OPEN = "exec 4</dev/input/event0"
EVENT = "dd bs=24 count=1 <&4 2>/dev/null | od -An -tu2 -j16 -N6"
KIND: dict[str, Any] = {"hotplug": True, "vcpus": 2}
EV_KEY, EV_SYN, KEY_POWER = "1", "0", "116"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


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
    with live(micro, tmp_path, saved=saved, **KIND) as guest:
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


def test_a_reset_boots_the_guest_anew(guest: Live, image: BlockConfig) -> None:
    """Under load, from which nothing is left."""
    before = guest.run(BOOT_ID)
    guest.machine.attach("block", 2, Image(image))
    guest.run("echo kept >/tmp/file")
    guest.run("(while :; do dd if=/dev/vdc of=/dev/null bs=4k iflag=direct 2>&-; done) & :")
    guest.run("(while :; do :; done) & :")
    guest.machine.reset()
    guest.ready()
    assert guest.run(BOOT_ID) != before
    guest.run("! [ -e /tmp/file ]")
    assert guest.run("nproc") == "2"
    assert guest.run("cat /sys/block/vd?/size").split() == ["0", "0", "2048", "0", "0", "0"]
    assert guest.run("dd if=/dev/vdc bs=11 count=1 2>/dev/null") == "on the disk"
    # Time goes by: interrupts of the timer and the console come.
    guest.run("sleep 0.2")
    assert guest.events == [("RESET", {"guest": False})]
    assert guest.machine.state == RUNNING
    assert guest.log.read_text() == ""


def test_a_reset_in_the_middle_of_the_boot(guest: Live) -> None:
    for _ in range(3):
        guest.machine.reset()
    guest.ready()
    assert guest.run("echo alive") == "alive"


def test_a_reboot_that_begins_anew(micro: kernel.Kernel, tmp_path: Path, saved: Path) -> None:
    actions = Actions(reboot="reset")
    with live(micro, tmp_path, saved=saved, actions=actions, **KIND) as guest:
        before = guest.run(BOOT_ID)
        guest.begin("reboot -f")
        guest.ready()
        assert guest.run(BOOT_ID) != before
        assert guest.events == [("RESET", {"guest": True})]


def reboot(how: str) -> str:
    return f"echo {how} >/sys/kernel/reboot/type; reboot -f"


@pytest.mark.parametrize(
    ("words", "reason", "status"),
    [
        ("poweroff -f", "guest-shutdown", 0),
        (reboot("acpi"), "guest-reset", 0),
        (reboot("kbd"), "guest-reset", 0),
        (reboot("triple"), "triple-fault", 1),
        (
            "printf '\\052' | dd of=/dev/port bs=1 seek=244 count=1 conv=notrunc; sleep 60",
            *("debug-exit", 42),
        ),
    ],
)
def test_a_guest_ends_itself(guest: Live, words: str, reason: str, status: int) -> None:
    guest.begin(words)
    wait_readable(guest.machine.ended_fd, "the guest's end")
    guest.machine.stop()
    assert guest.machine.end is not None
    assert (guest.machine.end.reason, guest.machine.end.status) == (reason, status)
    text = guest.log.read_text()
    assert ("the guest triple-faulted" in text) == (reason == "triple-fault")
    assert bool(text) == (reason == "triple-fault")


def test_a_panic_is_shown_and_ends_the_run(guest: Live) -> None:
    guest.begin("echo c >/proc/sysrq-trigger")
    guest.expect("Kernel panic - not syncing: sysrq triggered crash")
    wait_readable(guest.machine.ended_fd, "the guest's end")
    assert guest.machine.end is not None
    assert (guest.machine.end.reason, guest.machine.end.status) == ("guest-reset", 0)
