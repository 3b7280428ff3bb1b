"""Firecracker, configured by a file, without its API. It takes ELF kernels, and has no vhost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .peer import ELF, Guest, Launch, named

# Its guest ends by the keyboard controller's reset; there is no PCI to look for.
APPEND = "reboot=k pci=off"


@dataclass(frozen=True)
class Firecracker:
    """`firecracker --no-api --config-file`."""

    name: str = "Firecracker"
    formats: tuple[str, ...] = (ELF,)
    vhost: bool = False

    def program(self) -> str:
        """Return what PYVIRT_BENCH_FIRECRACKER names; AbsentError."""
        return named(self.name)

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return its command line, and the file."""
        config = {
            "boot-source": {
                "kernel_image_path": kernel,
                "initrd_path": guest.initrd,
                "boot_args": f"{guest.append} {APPEND}",
            },
            "machine-config": {"vcpu_count": 1, "mem_size_mib": guest.memory_mib},
            "drives": [
                {
                    "drive_id": f"disk{number}",
                    "path_on_host": disk.path,
                    "is_root_device": False,
                    "is_read_only": disk.readonly,
                    "io_engine": "Async" if disk.direct else "Sync",
                }
                for number, disk in enumerate(guest.disks)
            ],
            "network-interfaces": (
                [{"iface_id": "net", "host_dev_name": guest.tap}] if guest.tap else []
            ),
        }
        path = folder / "firecracker.json"
        words = [self.program(), "--no-api", "--config-file", str(path)]
        return Launch(words, files={str(path): json.dumps(config)})
