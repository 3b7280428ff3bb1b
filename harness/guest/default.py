"""The guest that runs when none is named: Debian's cloud kernel, and busybox in an initramfs."""

from __future__ import annotations

from pathlib import Path

from . import initramfs
from .kernel import Kernel, find

KERNEL = "cloud"
CMDLINE = "console=ttyS0 quiet panic=-1"
# What a guest of any monitor that speaks virtio-mmio may meet.
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")

# Shows that a guest's userspace runs, and on what.
demo_script = """\
uname -a
grep -m 1 '^model name' /proc/cpuinfo
"""


def default() -> tuple[Path, Path]:
    """Return kernel image and initramfs, fetched and made the first time.

    The guest runs a shell on its console, after a line that says what it is and how to leave.
    Raises what `kernel.find` and `initramfs.build` do.
    """
    kernel = find(KERNEL)
    files = {"/etc/motd": greeting(kernel).encode()}
    return kernel.image, initramfs.build(kernel, modules=MODULES, files=files)


def greeting(kernel: Kernel) -> str:
    """Return the line that the guest's shell begins with."""
    return f"Linux {kernel.release} under pyvirt; poweroff or Ctrl-A X leaves.\n"
