"""What the lab boots: Debian's generic kernel, and an initramfs with modules and the agent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from ...errors import BackendError
from ..guest import initramfs, kernel
from ..guest.program import program

# The transports, the root file system and the agent's port; KVM; what networks need. All else is
# modprobe's to load.
MODULES = (
    *("virtio_pci", "virtio_console", "9pnet_virtio", "9p"),
    *("kvm-amd",),
    *("tun", "vhost_net", "bridge"),
    "virtio_net",
)
_HERE = Path(__file__).parent


class Image(NamedTuple):
    """Two files of the cache: an ELF kernel and its initramfs.

    `modprobe` are the options with which modprobe finds all the modules of that kernel.
    """

    kernel: Path
    initramfs: Path
    modprobe: str = ""


def prepare() -> Image:
    """Return what to boot, made on first use. Raises BackendError, ConfigError."""
    found = kernel.find("generic")
    if found.vmlinux is None:
        raise BackendError(f"lab: {found.image}: the kernel's ELF file is not in the cache")
    if found.modules is None:
        raise BackendError(f"lab: {found.image}: the kernel's modules are not in the cache")
    init = (_HERE / "init.sh").read_text()
    modprobe = f"-d {shlex.quote(str(found.modules.parents[2]))}"
    files = {"/bin/agent": agent()}
    return Image(
        found.vmlinux,
        initramfs.build(found, modules=MODULES, init=init, files=files),
        modprobe,
    )


def agent() -> Path:
    """Return the agent, compiled on first use and again when its sources change."""
    return program("lab-agent", _HERE)
