"""Long runs of what `make test` has a short one of.

    python -m tests.long kill --count 1000      a machine that is killed at random moments
    python -m tests.long qmp --count 100000     streams of hostile clients of a monitor

A failure names the seed, with which --seed repeats the draws (what the kernel does is not drawn).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from ..kvm.kill import rounds
from ..kvm.support import GUESTS, build
from ..unit.qmp.fake_machine import running
from ..unit.qmp.hostile_clients import converse


def tell(done: int) -> None:
    """Say now and then how far it has come."""
    if done % 100 == 0:
        print(f"\r{done}", end="", flush=True)


def kill(folder: Path, count: int, seed: int) -> str:
    """Kill a machine so often."""
    kernel = build(GUESTS / "writer.S", folder / "writer.elf")
    (folder / "machine").mkdir()
    blocks = rounds(kernel, folder / "machine", count, seed, tell)
    return f"{count} machines were killed; of {blocks} blocks that were flushed none is lost"


def qmp(folder: Path, count: int, seed: int) -> str:
    """Have so many conversations with a monitor."""
    image = folder / "image"
    image.write_bytes(bytes(1 << 20))
    with running(folder, throttled=False) as server:
        converse(server, str(image), count, seed, tell)
    return f"{count} streams"


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("kill", "qmp"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 1 << 32))
    words = parser.parse_args()
    print(f"--seed {words.seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pyvirt-long-") as folder:
        said = {"kill": kill, "qmp": qmp}[words.what](Path(folder), words.count, words.seed)
    print(f"\r{said}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
