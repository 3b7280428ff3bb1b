"""Machines whose slots come on demand, and somebody at their monitors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyvirt.devices.virtio import registers as r

from ..unit.asking import Asking
from .support import MAILBOX, Guest

SECTORS = 16


class Client(Asking):
    """Somebody at a machine's monitor, who has images in a folder."""

    def __init__(self, guest: Guest, folder: Path) -> None:
        super().__init__(guest)
        self._folder = folder

    def image(self, name: str, *, readonly: bool = False) -> None:
        """Make an image, and its backend."""
        self.register(self._folder / name, 512 * SECTORS, readonly=readonly)

    def plug(self, name: str, **more: Any) -> Any:
        """Register a disk and plug it."""
        self.image(name)
        return self.ask("device_add", id=name, driver="virtio-blk-mmio", **more)


def start(guest: Guest, *, adds: int = 0) -> None:
    guest.write_words(MAILBOX, 0, adds, 0)
    guest.start()


def transports(guest: Guest) -> int:
    assert guest.slots
    return len(guest.slots.transports)


def bind(transport: Any) -> None:
    """Do what a driver does first."""
    for status in (r.ACKNOWLEDGE, r.ACKNOWLEDGE | r.DRIVER):
        transport.write(r.STATUS, 4, status)
