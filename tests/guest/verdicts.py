"""A suite whose tests end in every way that there is; test_harness.py runs it and reads of it.

It runs in a network namespace of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs
from pyvirt.harness.guest.kernel import Kernel
from pyvirt.harness.judge.verdict import Verdict
from pyvirt.harness.vm.vm import VM

from ..unit.namespace import ip

Make = Callable[..., VM]
DIRECT = "/sys/kernel/debug/provoke-crash/DIRECT"
pytestmark = pytest.mark.vm_timeout(boot=40, call=40, quiet=8)


def provoke(vm: VM, what: str) -> None:
    vm.run(f"echo {what} >{DIRECT}")


def test_passed(vm: VM, kernel: Kernel) -> None:
    assert vm.run("uname -r").stdout.strip() == kernel.release
    assert vm.verdict is None


def test_failed(vm: VM) -> None:
    vm.succeed("cat /none")


def test_assertion(vm: VM) -> None:
    assert vm.run("echo one").stdout == "two\n"


def test_panicked(vm: VM) -> None:
    provoke(vm, "PANIC")


def test_oopsed(vm: VM) -> None:
    provoke(vm, "EXCEPTION")


def test_bug(vm: VM) -> None:
    provoke(vm, "BUG")


def test_warned(vm: VM) -> None:
    provoke(vm, "WARNING")


def test_hung(vm: VM) -> None:
    provoke(vm, "HARDLOCKUP")


@pytest.mark.vm(cmdline="reboot=t")
def test_triple_fault(vm: VM) -> None:
    vm.run("echo b >/proc/sysrq-trigger; sleep 60")


def test_boot_failed_with_garbage(vm_factory: Make, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"garbage" * 1000)
    vm_factory(initrd=tmp_path / "garbage").start()


@pytest.mark.vm_timeout(boot=8)
def test_boot_failed_without_agent(vm_factory: Make, kernel: Kernel) -> None:
    vm_factory(initrd=initramfs.build(kernel, script="sleep 100")).start()


def test_monitor_died(vm: VM) -> None:
    vm.start()
    assert vm.pid is not None
    os.kill(vm.pid, 9)
    vm.run("sleep 60")


def test_timeout(vm: VM) -> None:
    vm.run("sleep 60", timeout=1)


def test_powered_off(vm: VM) -> None:
    vm.run("poweroff -f; sleep 60")


@pytest.mark.expects_panic("dumptest")
def test_panic_expected(vm: VM) -> None:
    provoke(vm, "PANIC")


@pytest.mark.expects_panic("dumptest")
@pytest.mark.vm_timeout(call=2)
def test_panic_missing(vm: VM) -> None:
    vm.run("true")


@pytest.mark.allow_splat("lkdtm_WARNING")
def test_warning_allowed(vm: VM) -> None:
    provoke(vm, "WARNING")


def test_hotplug(vm: VM) -> None:
    ip("tuntap add tap0 mode tap")
    ip("addr add 10.0.0.1/24 dev tap0")
    ip("link set tap0 up")
    vm.hotplug.net("nic", ifname="tap0")
    vm.succeed("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up")
    vm.wait_until_succeeds("ping -c 1 -W 1 10.0.0.1")
    image = vm.hotplug.disk("disk", size="16M")
    vm.wait_until_succeeds("[ $(cat /sys/block/vda/size) = 32768 ]")
    vm.succeed("echo written >/dev/vda; sync")
    vm.hotplug.remove("nic")
    vm.hotplug.remove("disk")
    vm.wait_until_succeeds("[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
    vm.wait_until_succeeds("[ $(cat /sys/block/vda/size) = 0 ]")
    assert image.read_bytes().startswith(b"written\n")
    assert [event["data"]["device"] for event in vm.events("DEVICE_DELETED")] == ["nic", "disk"]


@pytest.mark.vm(disks=["scratch:16M"])
def test_power(vm: VM) -> None:
    vm.succeed("echo kept >/dev/vda")
    vm.reboot()
    assert vm.succeed("head -n 1 /dev/vda") == "kept\n"
    vm.poweroff()
    assert vm.end is not None
    assert vm.end.reason == "the guest powered off"


def test_crash(vm: VM, tmp_path: Path) -> None:
    vm.crash()
    assert vm.end is not None
    assert vm.end.verdict == Verdict.PANICKED
    assert "panic" in "\n".join(vm.backtrace())
    core = vm.dump_memory(tmp_path / "core")
    assert core.stat().st_size > 256 << 20


def test_pause(vm: VM) -> None:
    mark = vm.start().console.mark()
    process = vm.spawn("while :; do echo tick >/dev/kmsg; sleep 0.05; done")
    vm.wait_for_console("tick", mark=mark)
    vm.pause()
    assert vm.regs()["rip"] == vm.regs()["rip"]
    assert vm.events("STOP")
    mark = vm.console.mark()
    vm.resume()
    vm.wait_for_console("tick", mark=mark)
    process.kill()


def test_leaves_work_behind(vm: VM) -> None:
    vm.spawn("while :; do :; done")
