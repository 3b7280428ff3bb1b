"""StratoVirt's microVM. Its serial port wants a terminal; a pipe is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .peer import BZIMAGE, Guest, Launch, named

APPEND = "reboot=t"


@dataclass(frozen=True)
class Stratovirt:
    """`stratovirt -machine microvm`."""

    name: str = "StratoVirt"
    formats: tuple[str, ...] = (BZIMAGE,)
    vhost: bool = True

    def program(self) -> str:
        """Return what PYVIRT_BENCH_STRATOVIRT names; AbsentError."""
        return named(self.name)

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line; its output must be a terminal."""
        command = [self.program(), "-machine", "microvm", "-smp", "1"]
        command += ["-m", f"{guest.memory_mib}m", "-kernel", kernel, "-initrd", guest.initrd]
        command += ["-append", f"{guest.append} {APPEND}", "-serial", "stdio"]
        for number, disk in enumerate(guest.disks):
            drive = f"id=disk{number},file={disk.path}"
            drive += f",readonly={'on' if disk.readonly else 'off'}"
            drive += ",direct=on,aio=io_uring" if disk.direct else ",direct=off,aio=off"
            command += ["-drive", drive]
            command += ["-device", f"virtio-blk-device,drive=disk{number},id=disk{number}"]
        if guest.tap:
            vhost = ",vhost=on" if guest.vhost else ""
            command += ["-netdev", f"tap,id=net,ifname={guest.tap}{vhost}"]
            command += ["-device", "virtio-net-device,netdev=net,id=net"]
        return Launch(command, terminal=True)
