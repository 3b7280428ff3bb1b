"""The monitor ends or is killed while its guest writes: what the guest was told stays."""

from __future__ import annotations

import random
import re
import signal
import time
from pathlib import Path

import pytest
from pyvirt.harness.guest import initramfs, kernel

from .conftest import Running, make

MIB = 1 << 20
KILLS = 6  # for each engine
BLOCK = 4096
WRITER = """
i=0
while :; do
  i=$((i + 1))
  printf 'block %06d' $i | dd of=/dev/vda bs=4k seek=$i conv=sync,fsync 2>/dev/null
  echo "ack $i"
done
"""


def end_while_writing(
    micro: kernel.Kernel, disk: str, number: signal.Signals, least: int, seconds: float
) -> tuple[int, int]:
    """End the monitor `seconds` after `least` blocks were acknowledged.

    Return its status and how many were acknowledged in the end.
    """
    initrd = initramfs.build(micro, script=WRITER)
    acknowledged = 0
    with Running(micro.image, "-initrd", str(initrd), "-disk", disk) as guest:
        for line in guest.lines():
            # A line that was cut off names no block.
            if found := re.fullmatch(r"ack (\d+)", line):
                acknowledged = int(found[1])
                if acknowledged == least:
                    time.sleep(seconds)
                    guest.signal(number)
        return guest.end(), acknowledged


def check(image: Path, acknowledged: int) -> None:
    data = image.read_bytes()
    for i in range(1, acknowledged + 1):
        found = data[i * BLOCK : (i + 1) * BLOCK]
        assert found == f"block {i:06}".encode().ljust(BLOCK, b"\0")


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_a_told_monitor_loses_nothing(micro: kernel.Kernel, shm: Path, aio: str) -> None:
    image = make(shm / "disk.img", 64 * MIB)
    disk = f"{image},aio={aio}"
    status, acknowledged = end_while_writing(micro, disk, signal.SIGTERM, 20, 0)
    assert status == 0
    assert acknowledged >= 20
    check(image, acknowledged)


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_a_killed_monitor_loses_nothing(micro: kernel.Kernel, shm: Path, aio: str) -> None:
    chance = random.Random(aio)
    for _ in range(KILLS):
        image = make(shm / "disk.img", 64 * MIB)
        least = chance.randint(1, 12)
        status, acknowledged = end_while_writing(
            micro, f"{image},aio={aio}", signal.SIGKILL, least, chance.uniform(0, 0.02)
        )
        assert status == -signal.SIGKILL
        assert acknowledged >= least
        check(image, acknowledged)
        image.unlink()
