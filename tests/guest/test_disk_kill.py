"""The monitor ends or is killed while its guest writes: what the guest was told stays."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

from pyvirt.harness.guest import initramfs, kernel

from .conftest import Running, make

MIB = 1 << 20
KILLS = 6
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

    def end(self, number: signal.Signals, least: int, seconds: float) -> int:
        """End the monitor `seconds` after `least` blocks of each disk were acknowledged.

        Return its status.
        """
        is_told = False
        with Running(self._kernel, *self._options) as guest:
            for line in guest.lines():
                # A line that was cut off names no block.
                if found := re.fullmatch(r"ack (vd[ab]) (\d+)", line):
                    self._acknowledged[found[1]] = int(found[2])
                    if not is_told and min(self._acknowledged.values()) >= least:
                        time.sleep(seconds)
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
    assert guest.end(signal.SIGTERM, 20, 0) == 0
    guest.check(20)


def test_a_killed_monitor_loses_nothing(micro: kernel.Kernel, shm: Path) -> None:
    chance = random.Random("kill")
    for _ in range(KILLS):
        guest, least = Writing(micro, shm), chance.randint(1, 12)
        assert guest.end(signal.SIGKILL, least, chance.uniform(0, 0.02)) == -signal.SIGKILL
        guest.check(least)
