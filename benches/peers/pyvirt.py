"""pyvirt itself, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyvirt.harness.parent import dying_with_parent

from .peer import BZIMAGE, ELF, Guest, Launch

PROGRAM = Path(sys.prefix, "bin", "pyvirt")


@contextmanager
def serving(*words: str) -> Iterator[None]:
    """Run a command of pyvirt that says when it is ready, from then to the block's end."""
    command = [*dying_with_parent("TERM"), str(PROGRAM), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield
        finally:
            process.terminate()


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
        command += ["-smp", str(guest.vcpus)] if guest.vcpus > 1 else []
        for disk in guest.disks:
            words = [disk.path]
            words += ["readonly=on"] if disk.readonly else []
            words += ["aio=io_uring"] if disk.direct else ["direct=off"]
            command += ["-disk", ",".join(words)]
        if guest.tap:
            net = f"{guest.tap},vhost={'on' if guest.vhost else 'off'}"
            command += ["-net", f"{net},queues={guest.vcpus}" if guest.vcpus > 1 else net]
        return Launch(command)
