"""An initramfs that boots a root file system, for kernels that have their drivers as modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from . import initramfs
from .kernel import Kernel

INIT = Path(__file__).with_name("rootboot.sh")
# A disk by virtio-mmio, and what `rootfs.build` makes.
MODULES = ("virtio_mmio", "virtio_blk", "ext4")


def build(
    kernel: Kernel,
    *,
    modules: Sequence[str] = (),
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
) -> Path:
    """Return an initramfs for `kernel` that mounts root= of its command line and runs the init.

    `modules` are loaded after MODULES. Raises what `initramfs.build` does.
    """
    chosen = [*MODULES, *modules]
    return initramfs.build(kernel, modules=chosen, init=INIT.read_text(), files=files)
