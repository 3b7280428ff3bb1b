"""Which pyvirt a process runs, and whether its files are still those that it has loaded."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ... import __version__

if TYPE_CHECKING:
    from .connection import Caller

_PACKAGE = __package__.partition(".")[0]


class Code:
    """The package's modules that are loaded when this is made, as files; keeps its folder open."""

    def __init__(self) -> None:
        modules = [sys.modules[name] for name in sys.modules if name.partition(".")[0] == _PACKAGE]
        self._folder = os.path.dirname(sys.modules[_PACKAGE].__file__ or "")
        # Each start looks at all of them: from the folder it takes half as long.
        self._fd = os.open(self._folder, os.O_PATH | os.O_CLOEXEC)
        self._place = _identity(self._folder)[:2]
        files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
        names = [path.removeprefix(f"{self._folder}/") for path in files if path]
        self._loaded = {name: _identity(name, self._fd) for name in names}

    def difference(self, caller: Caller) -> str:
        """Return why a caller's machines are not to be made of this code, "" where they may."""
        mine = f"{__version__} in {self._folder}"
        if caller.version != __version__ or _identity(caller.package)[:2] != self._place:
            theirs = f"{caller.version} in {caller.package}"
            return f"its pyvirt is another, {mine}, and this is {theirs}"
        for name, before in self._loaded.items():
            if _identity(name, self._fd) != before:
                path = os.path.join(self._folder, name)
                return f"pyvirt has changed since the server was started ({path})"
        return ""


def _identity(path: str, folder: int | None = None) -> tuple[int, ...]:
    try:
        status = os.stat(path, dir_fd=folder)
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
