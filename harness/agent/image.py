"""The initramfs of a guest under test: its /init is the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ..guest import initramfs as builder
from ..guest.kernel import Kernel
from ..guest.program import program

# What the agent's port needs.
MODULES = ("virtio_mmio", "virtio_console")
HERE = Path(__file__).parent


def agent() -> Path:
    """Return the agent's program, compiled on first use. Raises BackendError."""
    return program("agent", HERE)


def initramfs(
    kernel: Kernel,
    *,
    files: Mapping[str, Path | bytes] = MappingProxyType({}),
    modules: Sequence[str] = (),
) -> Path:
    """Return an initramfs for `kernel` that serves a client over the port pyvirt.agent.

    It holds busybox, `files` (see guest/initramfs.py) and `modules`, which are loaded at boot with
    those of the port; a kernel without modules has to have these built in. Raises as the
    builder does.
    """
    wanted = (*MODULES, *modules) if kernel.modules is not None else modules
    # poweroff, halt and reboot: there is no init daemon to ask.
    init_files = builder.INIT_FILES.items()
    scripts = {path: file.read_bytes() for path, file in init_files if path != "/init"}
    return builder.build(kernel, modules=wanted, init=agent(), files={**scripts, **files})
