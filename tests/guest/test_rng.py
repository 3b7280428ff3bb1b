"""The entropy device under Linux's own driver."""

from __future__ import annotations

import time
from pathlib import Path

from pyvirt.devices.virtio.rng import Rng, RngConfig
from pyvirt.harness.guest import kernel

from .conftest import Boot
from .live import live

RATE = 20_000
BYTES = 60_000


def test_by_command_line(boot: Boot) -> None:
    ended = boot(
        "cat /sys/class/misc/hw_random/rng_current; head -c 100000 /dev/hwrng | wc -c",
        *("-object", "rng-random,id=src,filename=/dev/urandom"),
        *("-device", "virtio-rng-device,rng=src"),
        "-stats",
    )
    assert ended.status == 0
    assert {"virtio_rng.0", "100000"} <= set(ended.console.splitlines())
    assert "virtio-rng rng0: register exits" in ended.messages
    assert ", errors 0, kicks" in ended.messages


def test_a_limit(micro: kernel.Kernel, tmp_path: Path) -> None:
    config = RngConfig("rng0", "src", "/dev/urandom", RATE)
    with live(micro, tmp_path, devices=(config,)) as guest:
        assert guest.machine.slots
        device = guest.machine.slots.transports[-1].device
        assert isinstance(device, Rng)
        before, start = device.stats().bytes, time.monotonic()
        guest.run(f"head -c {BYTES} /dev/hwrng >/dev/null")
        moved, took = device.stats().bytes - before, time.monotonic() - start
        print(f"{moved / took:.0f} bytes a second, of {RATE}")
        assert device.stats().throttled > 0
        # What the bucket holds, and a piece, come at once; what the kernel asked for itself, too.
        assert moved <= RATE * (took + 0.3)
