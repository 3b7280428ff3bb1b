"""Modules of the running kernel, for what a test or a benchmark needs beyond the lab's own."""

from __future__ import annotations

import os
from pathlib import Path

from ..guest import kernel
from ..guest import modules as dependency
from ..guest.tool import run

_TIMEOUT_S = 60.0


def load(name: str) -> None:
    """Load a module and what it needs, unless they are there; root only.

    In the lab, whose file system is the host's, they come from the generic kernel in the cache;
    elsewhere from where modprobe finds them. Raises BackendError.
    """
    modules = kernel.find("generic").modules
    if modules is None or modules.name != os.uname().release:
        run(["modprobe", name], timeout=_TIMEOUT_S)
        return
    loaded = {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}
    for module in dependency.order(modules, [name]):
        if Path(module.path).name.split(".")[0].replace("-", "_") not in loaded:
            run(["insmod", str(modules / module.path)], timeout=_TIMEOUT_S)
