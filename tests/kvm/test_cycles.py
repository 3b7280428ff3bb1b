"""A thousand disks and NICs that come and go by QMP leave nothing behind in the monitor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ..effort import tries
from ..unit.namespace import ip, network_namespace
from ..unit.usage import usage
from .test_qmp_run import Monitored

pytestmark = [pytest.mark.any_kvm, pytest.mark.long]
MIB = 1 << 20
# The lab is slow; tests/guest has more for it, under load.
CYCLES = 20 if os.environ.get("PYVIRT_LAB") else tries(500)  # of disks, and as many of NICs
WARM_UP = CYCLES // 5  # cycles, after which all is allocated that is kept

GROWTH_KIB = 256


def cycle(guest: Monitored, image: Path) -> None:
    do = guest.client.execute
    do("blockdev-add", {"node-name": "disk", "file": {"driver": "file", "filename": str(image)}})
    do("device_add", {"id": "disk", "driver": "virtio-blk-mmio", "addr": "0x1"})
    do("netdev_add", {"id": "nic", "ifname": "tap0"})
    do("device_add", {"id": "nic", "driver": "virtio-net-mmio", "addr": "0x1"})
    do("device_del", {"id": "disk"})
    do("device_del", {"id": "nic"})


def test_a_thousand_cycles_leave_nothing(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(MIB))
    with network_namespace():
        ip("tuntap add tap0 mode tap")
        options = ("-machine", "microvm,mem-share=on")
        with Monitored(kernel("spin"), *options, throttle=False) as guest:
            for _ in range(WARM_UP):
                cycle(guest, image)
            before = usage(guest.process.pid)
            for _ in range(CYCLES - WARM_UP):
                cycle(guest, image)
            after = usage(guest.process.pid)
            runs = guest.mailbox()
            assert guest.client.execute("query-status")["running"]
            assert guest.names().count("DEVICE_DELETED") == 2 * CYCLES
    assert runs
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads
    assert after.memory_kib - before.memory_kib < GROWTH_KIB
