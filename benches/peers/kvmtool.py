"""kvmtool: `lkvm run`, whose devices on x86 are on PCI. It takes no ELF kernels there.

Its PCI host has no routing that ACPI would tell, and its interrupts want no I/O APIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .peer import BZIMAGE, Guest, Launch, named

APPEND = "noapic noacpi"


@dataclass(frozen=True)
class Kvmtool:
    """`lkvm run --nodefaults --console serial`."""

    name: str = "kvmtool"
    formats: tuple[str, ...] = (BZIMAGE,)
    vhost: bool = True

    def program(self) -> str:
        """Return what PYVIRT_BENCH_KVMTOOL names; AbsentError."""
        return named(self.name)

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line."""
        command = [self.program(), "run", "--nodefaults", "--console", "serial"]
        command += ["--cpus", "1", "--mem", str(guest.memory_mib), "--kernel", kernel]
        command += ["--initrd", guest.initrd, "--params", f"{guest.append} {APPEND}"]
        for disk in guest.disks:
            kind = ",ro" if disk.readonly else ",direct" if disk.direct else ""
            command += ["--disk", disk.path + kind]
        if guest.tap:
            vhost = ",vhost=1" if guest.vhost else ""
            command += ["--network", f"mode=tap,tapif={guest.tap},script=none{vhost}"]
        else:
            command += ["--network", "mode=none"]
        return Launch(command)
