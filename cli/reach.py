"""What `pyvirt run -sandbox-path` leaves in reach: what it names, and other options do."""

from __future__ import annotations

import os

from ..devices.chardev import PTY, SOCKET
from ..devices.virtio.vsock import VsockConfig
from ..vmm.landlock import READ, REMOVE, WRITE, Place
from ..vmm.sandbox import OPTION
from . import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .options.parsed import Options


def places(options: Options) -> Iterator[Place]:
    """Yield what the machine of these options may reach while it runs."""
    for path, is_readonly in options.sandbox_paths:
        yield Place(path, READ if is_readonly else READ | WRITE, f"{OPTION} {path}")
    for disk in options.disks:
        # To be plugged again.
        yield Place(disk.path, READ if disk.readonly else READ | WRITE)
        if os.path.isdir(disk.overlay):
            yield Place(disk.overlay, READ | WRITE)
    for path in _removed(options):
        yield Place(_folder(path), REMOVE)
    if options.timeline:
        yield Place(_folder(options.timeline), WRITE)
    if options.incoming is not None:
        yield Place(options.incoming.path, READ)
    yield from _registry()


def _removed(options: Options) -> Iterator[str]:
    """Yield the files that are made at the start, and removed at the end."""
    yield from (one.path for one in options.monitors if one.path)
    for chardev in (options.serial, *options.chardevs):
        if chardev.path and (chardev.kind == PTY or (chardev.kind == SOCKET and chardev.listens)):
            yield chardev.path
    yield from (one.path for one in options.devices if isinstance(one, VsockConfig))
    if options.pidfile:
        yield options.pidfile


def _folder(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _registry() -> Iterator[Place]:
    """Yield where the machine is listed for `pyvirt ps`, made if need be."""
    for path in (registry.folder(), os.environ.get("PYVIRT_LAB_MACHINES", "")):
        if path:
            os.makedirs(path, 0o700, exist_ok=True)
            yield Place(path, READ | WRITE)
