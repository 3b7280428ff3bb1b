"""What tests of a kernel look like; docs/testing.md explains them.

pytest tests/examples --vm-kernel micro --vm-kernel cloud
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyvirt.harness.guest.kernel import Kernel
from pyvirt.harness.vm.faults import Faults
from pyvirt.harness.vm.vm import VM


def test_boots(vm: VM, kernel: Kernel) -> None:
    assert vm.succeed("uname -r").strip() == kernel.release


def test_result_is_a_number_and_bytes(vm: VM) -> None:
    done = vm.run("cat; echo oops >&2; exit 3", input=b"\0\xff")
    assert (done.code, done.output, done.stderr) == (3, b"\0\xff", "oops\n")


@pytest.mark.vm(disks=["scratch:64M"], modules=["ext4"])
def test_file_system_survives_a_reboot(vm: VM) -> None:
    vm.succeed("mke2fs -q -F -I 256 /dev/vda", "mount -t ext4 /dev/vda /mnt")
    vm.put("/mnt/file", b"x" * 100_000)
    vm.succeed("umount /mnt")
    vm.reboot()
    vm.succeed("mount -t ext4 -o ro /dev/vda /mnt")
    assert vm.get("/mnt/file") == b"x" * 100_000


@pytest.mark.vm(vcpus=2)
def test_processors(vm: VM) -> None:
    assert vm.succeed("grep -c ^processor /proc/cpuinfo") == "2\n"


def test_disk_comes_and_goes(vm: VM) -> None:
    size = "cat /sys/block/vda/size"
    vm.hotplug.disk("disk1", size="16M")
    vm.wait_until_succeeds(f"test $({size}) = 32768")
    with vm.expect_event("DEVICE_DELETED", device="disk1"):
        vm.hotplug.remove("disk1")
    vm.wait_until_succeeds(f"test $({size}) = 0")


@pytest.mark.vm(disks=["scratch:16M"])
def test_a_disk_that_fails(vm: VM, faults: Faults) -> None:
    read = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct"
    with faults.block("vda").fail("read", errno="EIO") as disk:
        assert "Input/output error" in vm.run(read).stderr
    assert disk.hits
    vm.succeed(read)


@pytest.mark.expects_panic("sysrq triggered crash")
def test_panic_is_wanted(vm: VM) -> None:
    vm.run("echo c >/proc/sysrq-trigger")


@pytest.mark.kernel(config=["CONFIG_LKDTM=y"])
@pytest.mark.allow_splat("lkdtm_WARNING")
def test_warning_is_wanted(vm: VM) -> None:
    vm.run("echo WARNING >/sys/kernel/debug/provoke-crash/DIRECT")
    vm.wait_for_console("lkdtm_WARNING")


def test_two_guests(vm_factory: Callable[..., VM]) -> None:
    names = ("one", "two")
    for name, guest in [(name, vm_factory(name)) for name in names]:
        guest.succeed(f"hostname {name}")
        assert guest.succeed("hostname").strip() == name
