"""The modules of a start, from one file: none of them is searched for and read by itself.

bundle.py puts the code of this module and of those into the file, and the start script executes it.
A module whose source is not what it was then is left to Python, which finds it as ever.
"""

from __future__ import annotations

import sys

# What importlib.machinery has, without what its import takes.
from _frozen_importlib_external import (
    ExtensionFileLoader,
    SourceFileLoader,
    spec_from_file_location,
)
from marshal import load, loads
from posix import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from io import BufferedReader
    from types import CodeType, ModuleType

    # Of a module: its file, that one's st_mtime_ns and st_size, whether it is a package, and where
    # the code is, by marshal, and its length; 0 for an extension, which is where it is.
    Entry = tuple[str, int, int, bool, int, int]


class _Loader(SourceFileLoader):
    """Has the code of one module, once; else it is what Python's own loader is."""

    def __init__(self, name: str, path: str, code: memoryview | None) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType | None:
        code, self._code = self._code, None
        if code is None:
            return super().get_code(fullname)
        found: CodeType = loads(code)  # noqa: S302  (as trustworthy as what is beside the sources)
        return found


class Finder:
    """Finds the modules of the file, each once; first in sys.meta_path."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        """Know of the modules; `codes` has the code of all but extensions."""
        self._entries = entries
        self.codes = memoryview(b"")

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a module is, None where the file does not have it as it is now."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return None
        path, mtime_ns, size, is_package, at, length = entry
        try:
            status = stat(path)
        except OSError:
            return None
        if status.st_mtime_ns != mtime_ns or status.st_size != size:
            return None
        if not length:
            return spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
        return spec_from_file_location(
            name,
            path,
            loader=_Loader(name, path, self.codes[at : at + length]),
            submodule_search_locations=[path.rpartition("/")[0]] if is_package else None,
        )


def install(file: BufferedReader) -> None:
    """Have modules come from the file.

    It is read as far as this module's code. A dict of entries by names follows, by marshal, and
    then the codes.
    """
    finder = Finder(load(file))  # noqa: S302
    sys.meta_path.insert(0, finder)
    # One of those that are found so. The pages are all processes', and only what is used is read.
    from mmap import ACCESS_READ, mmap

    finder.codes = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))[file.tell() :]
