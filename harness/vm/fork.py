"""What of a VM can go on in processes of their own, and which VMs may do so from one place."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from . import link
from .config import Limits, VmConfig

if TYPE_CHECKING:
    from collections.abc import Hashable


def obstacle(config: VmConfig) -> str:
    """Return what of a VM stays with one process, "" for nothing."""
    if config.root:
        return f"root={config.root!r}"
    if config.share:
        return f"share={list(config.share)!r}"
    written = [disk for disk in config.disks if not _keeps_image(disk)]
    if written:
        return f"disks={written!r}, which can be written, and have no overlay=memory"
    return ""


def _keeps_image(disk: str) -> bool:
    members = disk.replace(",,", "").split(",")[1:]
    return any(member == "readonly=on" or member.startswith("overlay=") for member in members)


def shows(config: VmConfig) -> bool:
    """Say whether a test may see by more than the time that its VM is a fork.

    Networks of the host and options of the user's are no business of ours.
    """
    private = all(net.startswith(link.PREFIX) for net in config.nets)
    return bool(config.options) or not private


def likeness(config: VmConfig) -> Hashable:
    """Return what is the same for VMs that may begin in one place."""
    files = tuple((name, _content(content)) for name, content in sorted(config.files.items()))
    return replace(config, files=MappingProxyType({}), fork=None, limits=Limits()), files


def _content(content: Path | bytes) -> Hashable:
    if isinstance(content, Path):
        with contextlib.suppress(OSError):
            status = content.stat()
            return content, status.st_size, status.st_mtime_ns
    return content
