"""Disks and NICs that come and go while a guest runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from . import config

if TYPE_CHECKING:
    from .life import Life


class Hotplug:
    """The verbs of one VM; each boots it if need be."""

    def __init__(self, vm: Life) -> None:
        self._vm = vm

    def disk(
        self, name: str, *, path: Path | str | None = None, size: str = "", readonly: bool = False
    ) -> Path:
        """Plug a disk: the image `path`, or an empty one of `size`; return the image.

        The guest has it at the next free name from /dev/vda on. An empty one is another each
        time, also for a name that was there before, and goes with the VM.
        """
        if (path is None) == (not size):
            raise ConfigError(f"hotplug disk {name}: give either path or size")
        if path is None:
            image = config.scratch(self._vm.folder(), "plugged", size)
        else:
            image = Path(path).absolute()
        backend: dict[str, Any] = {
            "node-name": name,
            "file": {"driver": "file", "filename": str(image)},
            "read-only": readonly,
        }
        self._vm.qmp.execute("blockdev-add", backend)
        self._plug("blockdev-del", "node-name", name, "virtio-blk-mmio")
        return image

    def net(self, name: str, *, ifname: str, mac: str = "") -> None:
        """Plug a NIC on the tap `ifname` of where the VM runs."""
        self._vm.qmp.execute("netdev_add", {"id": name, "ifname": ifname})
        extra = {"mac": mac} if mac else {}
        self._plug("netdev_del", "id", name, "virtio-net-mmio", **extra)

    def _plug(self, undo: str, key: str, name: str, driver: str, **extra: str) -> None:
        try:
            self._vm.qmp.execute("device_add", {"id": name, "driver": driver, **extra})
        except BaseException:
            self._vm.qmp.execute(undo, {key: name})
            raise

    def remove(self, name: str) -> None:
        """Unplug a disk or NIC; nothing uses its image or tap any more."""
        self._vm.qmp.execute("device_del", {"id": name})
