"""The guest that runs when none is named: Debian's cloud kernel, and busybox in an initramfs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import initramfs
from .kernel import Kernel, find

KERNEL = "cloud"
CMDLINE = "console=ttyS0 quiet panic=-1"
SHARES = "pyvirt.share="
# What a guest of any monitor that speaks virtio-mmio may meet.
# The last two are for the power button, which init.sh heeds.
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4", "button", "evdev")
_OF_SHARES = ("virtiofs",)

# The demo's disk is plugged as vdb; these lines of its script say how far it is.
DEMO_MODULES = ("virtio_mmio", "virtio_blk", "ext4")
DEMO_READY = "guest: ready for a disk"
DEMO_SEEN = "guest: vdb is there"
DEMO_USED = "guest: vdb is written and read"
DEMO_GONE = "guest: vdb is gone"
DEMO_TEXT = "Hello from a guest that has just got a disk."

demo_script = f"""\
within_a_minute() {{
    for _ in $(seq 600); do
        "$@" && return
        sleep 0.1
    done
    echo "guest: not within a minute: $*"
    exit 1
}}
plugged() {{ [ "$(cat /sys/block/vdb/size)" != 0 ]; }}
unplugged() {{ ! plugged; }}
disks() {{
    echo "NAME SIZE TYPE"
    for disk in /sys/block/vd?; do
        mib=$(($(cat $disk/size) / 2048))
        [ $mib = 0 ] || echo "${{disk##*/}} ${{mib}}M disk"
    done | awk '{{ printf "%-4s %4s %s\\n", $1, $2, $3 }}'
}}

uname -a
grep -m 1 '^model name' /proc/cpuinfo
# A disk's new size is news to the kernel, but not such that a quiet one shows.
dmesg -n 6
echo '{DEMO_READY}'
within_a_minute plugged
echo '{DEMO_SEEN}'
disks
mke2fs -F -I 256 -i 65536 /dev/vdb >/dev/null 2>&1 && mount -t ext4 /dev/vdb /mnt || exit 1
echo '{DEMO_TEXT}' >/mnt/hello && umount /mnt || exit 1
mount -t ext4 -o ro /dev/vdb /mnt && cat /mnt/hello && umount /mnt || exit 1
echo '{DEMO_USED}'
within_a_minute unplugged
echo '{DEMO_GONE}'
disks
"""


def default(*, shares: bool = False) -> tuple[Path, Path]:
    """Return kernel image and initramfs, fetched and made the first time.

    The guest runs a shell on its console, after a line that says what it is and how to leave; with
    `shares` it can mount folders of the host. Raises what `kernel.find` and `initramfs.build` do.
    """
    kernel = find(KERNEL)
    modules = MODULES + _OF_SHARES if shares else MODULES
    files = {"/etc/motd": greeting(kernel).encode()}
    return kernel.image, initramfs.build(kernel, modules=modules, files=files)


def cmdline(text: str, tags: Sequence[str]) -> str:
    """Return a kernel command line that has init.sh mount folders of the host at /mnt/TAG."""
    return f"{text} {SHARES}{','.join(tags)}" if tags else text


def greeting(kernel: Kernel) -> str:
    """Return the line that the guest's shell begins with."""
    return f"Linux {kernel.release} under pyvirt; poweroff or Ctrl-A X leaves.\n"
