"""The monitor ends or is killed while its guest writes: what the guest was told stays.

That this holds at any moment is shown by tests/unit/devices/virtio/test_block_kill.py.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel

from .conftest import Running, make

MIB = 1 << 20
BLOCK = 4096
# Both engines are at work at once.
ENGINES = {"vda": "io_uring", "vdb": "threads"}
WRITER = """
for disk in vda vdb; do
  (
    i=0
    while :; do
      i=$((i + 1))
      printf 'block %06d' $i | dd of=/dev/$disk bs=4k seek=$i conv=sync,fsync 2>/dev/null
      echo "ack $disk $i"
    done
  ) &
done
wait
"""


class Writing:
    """A guest that writes to its two disks, which are made for it."""

    def __init__(self, micro: kernel.Kernel, folder: Path) -> None:
        self._images = {disk: make(folder / disk, 64 * MIB) for disk in ENGINES}
        self._acknowledged = dict.fromkeys(ENGINES, 0)
        disks = [f"-disk={self._images[disk]},aio={aio}" for disk, aio in ENGINES.items()]
        self._kernel = micro.image
        self._options = ["-initrd", str(initramfs.build(micro, script=WRITER)), *disks]

    def end(self, number: signal.Signals, least: int) -> int:
        """End the monitor when `least` blocks of each disk are acknowledged; return its status."""
        is_told = False
        with Running(self._kernel, *self._options) as guest:
            for line in guest.lines():
                # A line that was cut off names no block.
                if found := re.fullmatch(r"ack (vd[ab]) (\d+)", line):
                    self._acknowledged[found[1]] = int(found[2])
                    if not is_told and min(self._acknowledged.values()) >= least:
                        guest.signal(number)
                        is_told = True
            return guest.end()

    def check(self, least: int) -> None:
        """See that every block is there that was acknowledged, so many at least of each disk."""
        for disk, image in self._images.items():
            data, acknowledged = image.read_bytes(), self._acknowledged[disk]
            assert acknowledged >= least
            for i in range(1, acknowledged + 1):
                found = data[i * BLOCK : (i + 1) * BLOCK]
                assert found == f"block {i:06}".encode().ljust(BLOCK, b"\0")
            image.unlink()


def test_a_told_monitor_loses_nothing(micro: kernel.Kernel, shm: Path) -> None:
    guest = Writing(micro, shm)
    assert guest.end(signal.SIGTERM, 8) == 0
    guest.check(8)


def test_a_killed_monitor_loses_nothing(micro: kernel.Kernel, shm: Path) -> None:
    guest = Writing(micro, shm)
    assert guest.end(signal.SIGKILL, 8) == -signal.SIGKILL
    guest.check(8)
