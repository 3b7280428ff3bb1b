"""The root file system that guests are tested with."""

from __future__ import annotations

from pathlib import Path

from pyvirt.harness.guest import rootfs

SIZE = 512 * rootfs.MIB
# It boots with sysvinit; systemd is there for who asks for it by init=/lib/systemd/systemd.
SYSTEMD = ("systemd", "udev")


def image() -> Path:
    """Return the image in the cache: for reading only. Made on first use, best not in the lab."""
    return rootfs.build((*rootfs.MEASURE, *SYSTEMD), size=SIZE)
