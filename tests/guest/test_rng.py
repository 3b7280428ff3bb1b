"""The entropy device under Linux's own driver."""

from __future__ import annotations

import time
from pathlib import Path

from pyvirt.devices.virtio.rng import Rng, RngConfig
from pyvirt.harness.guest import kernel

from .live import live

RATE = 20_000
BYTES = 60_000


def test_a_limit(micro: kernel.Kernel, tmp_path: Path) -> None:
    config = RngConfig("rng0", "src", "/dev/urandom", RATE)
    with live(micro, tmp_path, devices=(config,)) as guest:
        assert guest.machine.slots
        device = guest.machine.slots.transports[-1].device
        assert isinstance(device, Rng)
        assert guest.run("cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0"
        before, start = device.stats().bytes, time.monotonic()
        assert guest.run(f"head -c {BYTES} /dev/hwrng | wc -c") == str(BYTES)
        moved, took = device.stats().bytes - before, time.monotonic() - start
        print(f"{moved / took:.0f} bytes a second, of {RATE}")
        assert device.stats().throttled > 0
        # What the bucket holds, and a piece, come at once; what the kernel asked for itself, too.
        assert moved <= RATE * (took + 0.3)
