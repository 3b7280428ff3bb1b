"""`pyvirt demo`: Debian's own kernel, unmodified, from power-on to power-off."""

from __future__ import annotations

import sys

from ..harness.guest import default, initramfs, kernel
from . import run

_USAGE = """\
usage: pyvirt demo

Boots Debian's cloud kernel, lets it say what it is, and shows where the time went.
"""


def main(argv: list[str]) -> int:
    """Run the demo; return the exit status of `pyvirt run`."""
    if argv:
        sys.stdout.write(_USAGE)
        return 0 if argv[0].lstrip("-") in ("h", "help") else 2
    guest = kernel.find("cloud")
    archive = initramfs.build(guest, script=default.demo_script)
    sys.stderr.write(f"pyvirt: booting Debian's kernel {guest.release}\n")
    sys.stderr.flush()
    words = ["-kernel", str(guest.image), "-initrd", str(archive), "-smp", "2", "-timeline"]
    return run.main([*words, "-append", default.CMDLINE])
