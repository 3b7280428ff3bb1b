"""Cloud Hypervisor. A guest's reset starts it again, so its guests power themselves off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .peer import BZIMAGE, ELF, POWEROFF, Guest, Launch, named


@dataclass(frozen=True)
class CloudHypervisor:
    """`cloud-hypervisor --serial tty --console off`; its vhost devices are others' processes."""

    name: str = "Cloud Hypervisor"
    formats: tuple[str, ...] = (ELF, BZIMAGE)
    vhost: bool = False

    def program(self) -> str:
        """Return what PYVIRT_BENCH_CLOUD_HYPERVISOR names; AbsentError."""
        return named(self.name)

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line; one --disk has all of them."""
        command = [self.program(), "--cpus", "boot=1", "--memory", f"size={guest.memory_mib}M"]
        command += ["--kernel", kernel, "--initramfs", guest.initrd, "--cmdline"]
        command += [f"{guest.append} {POWEROFF}"]
        command += ["--serial", "tty", "--console", "off"]
        disks = [
            f"path={disk.path},readonly={'on' if disk.readonly else 'off'}"
            f",direct={'on' if disk.direct else 'off'}"
            for disk in guest.disks
        ]
        command += ["--disk", *disks] if disks else []
        command += ["--net", f"tap={guest.tap}"] if guest.tap else []
        return Launch(command)
