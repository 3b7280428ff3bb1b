"""A Debian root file system on the first disk, written to: to the login prompt, and back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pyvirt.harness.guest import kernel, rootboot

from .conftest import Running

APPEND = "root=/dev/vda rw console=ttyS0"
COPY = (
    "cp -a /usr/sbin /root/copy; sync; echo 3 >/proc/sys/vm/drop_caches; "
    "diff -r --no-dereference /usr/sbin /root/copy && uname -r\n"
)


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


@pytest.mark.parametrize("name", ["micro", "cloud"])
def test_a_root_file_system(name: str, disk: Path) -> None:
    """Directly with the micro kernel; the cloud kernel has its drivers in an initramfs."""
    chosen = kernel.find(name)
    initrd = ["-initrd", str(rootboot.build(chosen))] if name == "cloud" else []
    with Running(
        chosen.image,
        *(*initrd, "-drive", f"id=rootfs,file={disk}"),
        *("-device", "virtio-blk-device,drive=rootfs,id=blk0"),
        append=APPEND,
    ) as guest:
        guest.expect("guest login: ")
        guest.type("root\n")
        guest.expect("# ")
        guest.type(COPY)
        guest.expect(f"\n{chosen.release}")
        guest.type("cp /proc/mounts /root/mounts; poweroff\n")
        assert guest.end() == 0
    checked = tool("e2fsck", "-fn", str(disk))
    assert "recovery" not in checked
    mounts = tool("debugfs", "-R", "cat /root/mounts", str(disk))
    assert "/ ext4 rw" in mounts
