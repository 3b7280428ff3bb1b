"""pyvirt itself, as a user starts it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .peer import BZIMAGE, ELF, Guest, Launch

PROGRAM = Path(sys.prefix, "bin", "pyvirt")


@dataclass(frozen=True)
class Pyvirt:
    """`pyvirt run`."""

    name: str = "pyvirt"
    formats: tuple[str, ...] = (BZIMAGE, ELF)
    vhost: bool = True

    def program(self) -> str:
        """Return this checkout's."""
        return str(PROGRAM)

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line."""
        command = [str(PROGRAM), "run", "-accel", "kvm", "-m", str(guest.memory_mib)]
        command += ["-kernel", kernel, "-initrd", guest.initrd, "-append", guest.append]
        for disk in guest.disks:
            words = [disk.path]
            words += ["readonly=on"] if disk.readonly else []
            words += ["aio=io_uring"] if disk.direct else ["direct=off"]
            command += ["-disk", ",".join(words)]
        if guest.tap:
            command += ["-net", f"{guest.tap},vhost={'on' if guest.vhost else 'off'}"]
        return Launch(command)
