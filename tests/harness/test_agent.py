"""The agent as process 1 of real guests.

What it makes of commands, files and clients in general is tried on the host, in tests/unit.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pyvirt.errors import PyvirtError
from pyvirt.harness.agent import image
from pyvirt.harness.agent.protocol import AgentError
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.vm.config import VmConfig
from pyvirt.harness.vm.end import VerdictError
from pyvirt.harness.vm.place import Place
from pyvirt.harness.vm.vm import VM

MIB = 1 << 20
SECONDS = 60
Make = Callable[..., VM]


@pytest.fixture(scope="module", params=["micro", "cloud"])
def guest(
    request: pytest.FixtureRequest, vm_place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VM]:
    """A guest of each kernel, which has a folder of the host."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "shared").mkdir()
    (folder / "shared/seen").write_text("from the host")
    config = VmConfig(share=(str(folder / "shared"),))
    with VM(kernel.find(request.param), config, vm_place, folder) as vm:
        yield vm.start()


def lines(guest: VM, script: str) -> list[str]:
    result = guest.run(script)
    assert (result.code, result.stderr) == (0, ""), result
    return result.stdout.splitlines()


def test_a_folder_of_the_host_is_mounted(guest: VM) -> None:
    assert lines(guest, "cat /mnt/share0/seen") == ["from the host"]


def test_hello_names_the_kernel(guest: VM) -> None:
    hello = guest.agent.wait_ready(SECONDS)
    assert hello.release == guest.kernel.release
    assert hello.taint == guest.agent.taint() == 0
    assert lines(guest, "uname -r") == [guest.kernel.release]


def test_the_console_is_the_kernels_alone(guest: VM) -> None:
    said = lines(guest, "echo by a program; cat /proc/1/comm; echo from the kernel >/dev/kmsg")
    assert said == ["by a program", "init"]
    guest.wait_for_console("from the kernel")
    assert "by a program" not in guest.console.text()


def test_what_programs_expect_is_there(guest: VM) -> None:
    mounted = lines(guest, "cut -d' ' -f2 /proc/mounts")
    assert {"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"} <= set(mounted)
    assert "/sys/kernel/debug" in mounted
    assert lines(guest, "readlink /dev/fd; readlink /dev/stderr; cat <<E\nhere\nE") == [
        "/proc/self/fd",
        "fd/2",
        "here",
    ]
    assert ",UP" in lines(guest, "ip link show lo")[0]
    assert lines(guest, "echo $HOME; pwd; id -u") == ["/root", "/", "0"]


def test_a_process_that_loses_its_parent_leaves_no_zombie(guest: VM) -> None:
    guest.run("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; exit 0")
    guest.wait_until_succeeds("! ps -o stat,args | grep -q '[Z] \\|[s]leep 0.1'")


def test_files_both_ways(guest: VM) -> None:
    data = random.Random(1).randbytes(2 * MIB)
    guest.put("/tmp/a folder/bulk\n", data, 0o750)
    assert lines(guest, "md5sum <'/tmp/a folder/bulk\n'; stat -c %a /tmp/a*/*") == [
        f"{hashlib.md5(data).hexdigest()}  -",
        "750",
    ]
    assert guest.get("/tmp/a folder/bulk\n") == data


def test_files_of_the_kernel(guest: VM) -> None:
    symbols = guest.get("/proc/kallsyms")
    assert b" T start_kernel\n" in symbols
    assert symbols.endswith(b"\n")
    guest.put("/proc/sys/kernel/hostname", "named\n")
    assert lines(guest, "hostname") == ["named"]
    assert guest.agent.exists("/dev/null")
    assert not guest.agent.exists("/dev/none")


def test_a_guest_that_ends_takes_its_commands_with_it(vm: VM) -> None:
    running = vm.spawn(["sleep", "1000"])
    vm.poweroff()
    with suppress(AgentError):  # or its end is told, as everything is killed before the power goes
        assert running.wait(SECONDS).code != 0
    with pytest.raises(VerdictError, match="the guest powered off"):
        vm.run("true")


@pytest.mark.parametrize(("mode", "created"), [("", 0), (",ro", 1)])
def test_another_root_and_the_end(
    vm_factory: Make, tmp_path: Path, mode: str, created: int
) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    for folder in ("proc", "sys", "dev", "run", "tmp"):
        (tree / folder).mkdir()
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 64 * MIB)
    subprocess.run(["mke2fs", "-qt", "ext4", "-d", tree, disk], timeout=SECONDS, check=True)
    vm = vm_factory(cmdline=f"pyvirt.root=/dev/vda{mode}", disks=[str(disk)])
    assert vm.succeed("busybox ls /") == "bin\ndev\nlost+found\nproc\nrun\nsys\ntmp\n"
    assert vm.run(">/bin/new").code == created
    vm.succeed("busybox test -c /dev/null && >/tmp/x")
    vm.spawn(["busybox", "sleep", "1000"])
    vm.poweroff()
    subprocess.run(["e2fsck", "-fn", disk], timeout=SECONDS, check=True)


def test_a_root_that_is_none_is_told(vm_place: Place, tmp_path: Path) -> None:
    config = VmConfig(cmdline="pyvirt.root=/dev/null")
    with VM(kernel.find("micro"), config, vm_place, tmp_path) as vm:
        with pytest.raises(PyvirtError):
            vm.start()
        assert vm._boot is not None
        assert "gave up: pyvirt.root=/dev/null: Block device" in vm._boot.agent.why


def test_an_init_of_the_users_starts_it(vm_factory: Make, kernel: kernel.Kernel) -> None:
    init = """#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
/bin/pyvirt-agent &
exec sleep 1000
"""
    initrd = initramfs.build(kernel, init=init, files={"/bin/pyvirt-agent": image.agent()})
    vm = vm_factory(initrd=initrd)
    assert lines(vm, "cat /proc/1/comm /proc/$PPID/comm") == ["sleep", "pyvirt-agent"]
    vm.poweroff()
