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
    """The package's modules that are loaded when this is made, as files."""

    def __init__(self) -> None:
        modules = [sys.modules[name] for name in sys.modules if name.partition(".")[0] == _PACKAGE]
        self._folder = os.path.dirname(sys.modules[_PACKAGE].__file__ or "")
        files = [module.__file__ for module in modules if getattr(module, "__file__", None)]
        self._loaded = {path: _identity(path) for path in files if path}

    def difference(self, caller: Caller) -> str:
        """Return why a caller's machines are not to be made of this code, "" where they may."""
        mine = f"{__version__} in {self._folder}"
        if caller.version != __version__ or not _is_same(caller.package, self._folder):
            theirs = f"{caller.version} in {caller.package}"
            return f"its pyvirt is another, {mine}, and this is {theirs}"
        for path, before in self._loaded.items():
            if _identity(path) != before:
                return f"pyvirt has changed since the server was started ({path})"
        return ""


def _identity(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_same(path: str, other: str) -> bool:
    return _identity(path)[:2] == _identity(other)[:2]
