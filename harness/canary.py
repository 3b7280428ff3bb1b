"""The first guest of a session in the lab: it tells whether this boot of the lab is of use."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Limits, VmConfig
from .guest import kernel
from .vm import VM

if TYPE_CHECKING:
    from .place import Place

_LIMITS = Limits(boot=12.0, call=6.0)  # several times what it takes on a busy host


def canary(place: Place) -> None:
    """Let a guest sleep; VerdictError when it does not wake up (docs/lab.md tells why)."""
    with (
        tempfile.TemporaryDirectory(prefix="pyvirt-canary-") as folder,
        VM(kernel.find("micro"), VmConfig(limits=_LIMITS), place, Path(folder)) as vm,
    ):
        vm.tries = 1
        vm.succeed("sleep 0.5")
