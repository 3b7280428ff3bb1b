"""An initramfs that boots a folder of the host: what its kernel needs for that.

The folder is a file system by virtiofs that nobody can write, below a tmpfs of the guest's.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import ConfigError
from . import initramfs, modules
from .kernel import Kernel

INIT = Path(__file__).with_name("hostboot.sh")
INSIDE = Path(__file__).with_name("hostboot-inside.sh")
# Modules, and the kernel's options for them.
NEEDS = {
    "virtio_mmio": "CONFIG_VIRTIO_MMIO",
    "virtiofs": "CONFIG_VIRTIO_FS",
    "overlay": "CONFIG_OVERLAY_FS",
}
# For what is plugged, and for the power button; a kernel may lack them.
_WELCOME = ("virtio_blk", "virtio_net", "button", "evdev")


def check_kernel(option: str, kernel: Kernel) -> None:
    """Refuse a kernel that cannot have such a root; ConfigError names the `option`."""
    config = kernel.config
    if config is None:
        return  # the guest will tell
    for module, name in NEEDS.items():
        value = config.get(name, "n")
        if value == "n":
            raise ConfigError(
                f"{option}: the kernel {kernel.name} was built without {name}; "
                "take another, such as $(pyvirt guest kernel cloud)"
            )
        if value == "m" and kernel.modules is None:
            raise ConfigError(
                f"{option}: the kernel {kernel.name} has {module} as a module, and no "
                f"lib/modules/{kernel.release} is beside it or in /; install its modules there"
            )


def build(kernel: Kernel) -> Path:
    """Return an initramfs that makes the root and runs a shell, a command or an init there.

    Raises what `initramfs.build` does.
    """
    wanted: tuple[str, ...] = ()
    if kernel.modules is not None:
        wanted = (*NEEDS, *modules.known(kernel.modules, _WELCOME))
    return initramfs.build(
        kernel,
        modules=wanted,
        init=INIT.read_text(),
        files={"/inside": INSIDE.read_bytes()},
    )
