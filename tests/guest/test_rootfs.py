"""A Debian root file system on the first disk, written to, and back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pyvirt.harness.guest import kernel, rootboot

from .conftest import Running

APPEND = "root=/dev/vda rw console=ttyS0 quiet"


@pytest.fixture
def disk(shm: Path, measure: Path) -> Path:
    """A copy of the root file system that a guest may write."""
    image = shm / "root.img"
    # Not every file system tells where a file has holes.
    command = ["cp", "--sparse=always", "--no-preserve=mode", str(measure), str(image)]
    subprocess.run(command, check=True, timeout=120)
    return image


def tool(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={"PATH": "/sbin"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def words(disk: Path | str) -> tuple[str, ...]:
    return "-drive", f"id=rootfs,file={disk}", "-device", "virtio-blk-device,drive=rootfs,id=blk0"


def test_to_the_login_prompt_and_back(cloud: kernel.Kernel, disk: Path) -> None:
    """A stock kernel, which has its drivers in an initramfs."""
    initrd = ("-initrd", str(rootboot.build(cloud)))
    with Running(cloud.image, *initrd, *words(disk), append=APPEND) as guest:
        guest.expect("guest login: ")
        guest.type("root\n")
        guest.expect("# ")
        guest.type("cp /proc/mounts /root/mounts; uname -r >/root/release; poweroff\n")
        assert guest.end() == 0
    assert "recovery" not in tool("e2fsck", "-fn", str(disk))
    assert "/ ext4 rw" in tool("debugfs", "-R", "cat /root/mounts", str(disk))
    assert cloud.release in tool("debugfs", "-R", "cat /root/release", str(disk))


def test_the_kernel_mounts_it_by_itself(micro: kernel.Kernel, measure: Path) -> None:
    """Without an initramfs; what is written is what is read."""
    disk = words(f"{measure},overlay=memory")
    with Running(micro.image, *disk, append=f"{APPEND} init=/bin/sh") as guest:
        guest.expect("# ")
        guest.type(
            "cp -a /usr/sbin /root/copy; sync; mount -t proc proc /proc; "
            "echo 3 >/proc/sys/vm/drop_caches; "
            "diff -r --no-dereference /usr/sbin /root/copy && echo equal: $((40 + 2)); "
            "echo o >/proc/sysrq-trigger\n"
        )
        guest.expect("equal: 42")
        assert guest.end() == 0
