"""A suite whose tests end in every way that there is; test_verdicts.py runs it and reads of it.

Most go on from one boot, as forks, and are judged as if they had booted; some do boot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs
from pyvirt.harness.guest.kernel import Kernel
from pyvirt.harness.judge.verdict import Verdict
from pyvirt.harness.vm.vm import VM

Make = Callable[..., VM]
DIRECT = "/sys/kernel/debug/provoke-crash/DIRECT"
BOOTS = pytest.mark.vm(fork=False)
pytestmark = [pytest.mark.vm_timeout(boot=40, call=40, quiet=8), pytest.mark.vm(fork=True)]


def provoke(vm: VM, what: str) -> None:
    vm.run(f"echo {what} >{DIRECT}")


@BOOTS
def test_passed(vm: VM, kernel: Kernel) -> None:
    assert vm.run("uname -r").stdout.strip() == kernel.release
    assert vm.verdict is None


def test_failed(vm: VM) -> None:
    vm.succeed("cat /none")


def test_assertion(vm: VM) -> None:
    assert vm.run("echo one").stdout == "two\n"


@BOOTS
def test_panicked(vm: VM) -> None:
    provoke(vm, "PANIC")


def test_panicked_for_an_oops(vm: VM) -> None:
    vm.run(f"sysctl -w kernel.panic_on_oops=1; echo EXCEPTION >{DIRECT}")


def test_panicked_for_a_warning(vm: VM) -> None:
    vm.run(f"sysctl -w kernel.panic_on_warn=1; echo WARNING >{DIRECT}")


def test_oopsed(vm: VM) -> None:
    provoke(vm, "EXCEPTION")


def test_bug(vm: VM) -> None:
    provoke(vm, "BUG")


def test_warned(vm: VM) -> None:
    provoke(vm, "WARNING")


def test_hung(vm: VM) -> None:
    provoke(vm, "HARDLOCKUP")


def test_hung_with_interrupts_on(vm: VM) -> None:
    vm.run(f"sysctl -w kernel.watchdog_thresh=1; echo SOFTLOCKUP >{DIRECT}")


def test_triple_fault(vm: VM) -> None:
    vm.run("echo triple >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger; sleep 60")


@BOOTS
def test_boot_failed_with_garbage(vm_factory: Make, tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(b"garbage" * 1000)
    vm_factory(initrd=tmp_path / "garbage").start()


@BOOTS
@pytest.mark.vm_timeout(boot=8)
def test_boot_failed_without_agent(vm_factory: Make, kernel: Kernel) -> None:
    vm_factory(initrd=initramfs.build(kernel, script="sleep 100")).start()


def test_monitor_died(vm: VM) -> None:
    boot = vm.start()._boot
    assert boot is not None
    # What the process ID names may be in a lab.
    boot.process.kill()
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
    image = vm.hotplug.disk("disk", size="16M")
    vm.wait_until_succeeds("[ $(cat /sys/block/vda/size) = 32768 ]")
    vm.succeed("echo written >/dev/vda; sync")
    with vm.expect_event("DEVICE_DELETED", device="disk"):
        vm.hotplug.remove("disk")
    vm.wait_until_succeeds("[ $(cat /sys/block/vda/size) = 0 ]")
    assert image.read_bytes().startswith(b"written\n")


def test_power(vm: VM) -> None:
    vm.succeed("touch /tmp/here")
    vm.reboot()
    vm.succeed("! [ -e /tmp/here ]")
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
