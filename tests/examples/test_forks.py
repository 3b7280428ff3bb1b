"""Thirty tests, each with a guest of its own that has booted, and been prepared, before.

One guest boots for all of them; each test begins where that one stood, in a copy of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyvirt.harness.vm.vm import VM

NUMBERS = [pytest.param(n, id=f"{'few' if n < 5 else 'many'}-{n}") for n in range(30)]
# What tells a guest's boots apart; the kernel makes it when it is first read.
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Not what the kernel remembers of it.
DISK = "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda"
DRAW = "head -c 16 /dev/urandom | md5sum"


def prepare(vm: VM) -> None:
    vm.succeed(f"cat {BOOT_ID} >/tmp/prepared")
    write(vm, "prepared")


def write(vm: VM, text: str) -> None:
    vm.succeed(f"echo {text} | dd of=/dev/vda conv=fsync")


pytestmark = pytest.mark.vm(fork=True, prepare=prepare, disks=["scratch:8M,overlay=memory"])


@pytest.fixture(scope="module")
def boots() -> dict[str, set[str]]:
    """The boots that the guests of this module came from, by kernel."""
    return {}


@pytest.fixture(scope="module")
def drawn() -> set[str]:
    """The random numbers that the guests have drawn."""
    return set()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_guest_of_its_own(
    vm: VM, number: int, boots: dict[str, set[str]], drawn: set[str]
) -> None:
    look = (f"cat /tmp/prepared {BOOT_ID}", "hostname", "ls /tmp", DISK, DRAW)
    prepared, boot, *found, random = vm.succeed("; ".join(look)).splitlines()
    assert prepared == boot
    of_kernel = boots.setdefault(vm.kernel.name, set())
    of_kernel.add(boot)
    assert len(of_kernel) == 1, "this guest has booted by itself"
    assert random not in drawn
    drawn.add(random)

    assert found == ["(none)", "prepared", "prepared"]
    vm.succeed(f"hostname test{number}; echo {number} >/tmp/left; rm /tmp/prepared")
    write(vm, f"test{number}")


@pytest.mark.vm(nets=["link:wire"], modules=["virtio_net"])
def test_two_guests_on_a_wire(vm_factory: Callable[..., VM]) -> None:
    one, two = vm_factory("one"), vm_factory("two")
    for number, guest in enumerate((one, two), 1):
        guest.succeed(f"ip addr add 10.0.0.{number}/24 dev eth0", "ip link set eth0 up")
    one.wait_until_succeeds("ping -c 1 -W 1 10.0.0.2")


@pytest.mark.vm(vcpus=2)
def test_more_processors(vm: VM) -> None:
    assert vm.succeed("grep -c ^processor /proc/cpuinfo") == "2\n"


def test_back_to_where_it_stood(vm: VM) -> None:
    assert "Linux version" in vm.log()
    vm.succeed("echo 1 >/tmp/state")
    write(vm, "first")
    point = vm.snapshot()
    for _ in range(2):
        vm.succeed("echo 2 >/tmp/state")
        write(vm, "second")
        vm.restore(point)
        assert vm.succeed("cat /tmp/state", DISK) == "1\nfirst\n"
