"""QEMU's microvm, in its best configuration for such guests.

PIT, PIC and RTC spare the guest its calibrations without them; qboot is the machine's firmware. Its
guest, without ACPI, can end only by a triple fault.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .peer import BZIMAGE, ELF, AbsentError, Guest, Launch

PROGRAM = "qemu-system-x86_64"
MACHINE = "microvm,pit=on,pic=on,rtc=on,acpi=off"
APPEND = "reboot=t"
MICROVM = (
    *(PROGRAM, "-M", MACHINE, "-accel", "kvm", "-cpu", "host"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
    *("-global", "virtio-mmio.force-legacy=false"),
)


@dataclass(frozen=True)
class Qemu:
    """`qemu-system-x86_64 -M microvm`."""

    name: str = "QEMU microvm"
    formats: tuple[str, ...] = (BZIMAGE, ELF)
    vhost: bool = True

    def program(self) -> str:
        """Return the one of the path; AbsentError."""
        if shutil.which(PROGRAM) is None:
            raise AbsentError(f"{PROGRAM} is not installed")
        return PROGRAM

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line; a direct disk has a thread, as has pyvirt's."""
        command = [*MICROVM, "-m", str(guest.memory_mib), "-smp", str(guest.vcpus)]
        command += ["-kernel", kernel]
        command += ["-initrd", guest.initrd, "-append", f"{guest.append} {APPEND}"]
        for number, disk in enumerate(guest.disks):
            drive = f"if=none,id=disk{number},file={disk.path},format=raw"
            device = f"virtio-blk-device,drive=disk{number}"
            drive += ",readonly=on" if disk.readonly else ""
            if disk.direct:
                command += ["-object", f"iothread,id=thread{number}"]
                drive += ",cache=none,aio=io_uring"
                device += f",iothread=thread{number}"
            command += ["-drive", drive, "-device", device]
        if guest.tap:
            tap = f"tap,id=net,ifname={guest.tap},script=no,downscript=no"
            tap += f",queues={guest.vcpus}" if guest.vcpus > 1 else ""
            command += ["-netdev", f"{tap},vhost={'on' if guest.vhost else 'off'}"]
            mq = ",mq=on" if guest.vcpus > 1 else ""
            command += ["-device", f"virtio-net-device,netdev=net{mq}"]
        return Launch(command)
