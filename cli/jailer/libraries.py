"""The shared objects that this process has, and where its loader found them; dl_iterate_phdr(3)."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from ... import native

# It is loaded when a thread is cancelled.
_LATE = "libgcc_s.so.1"
# What a machine may import that needs libraries.
_MODULES = (
    native.__name__,
    *("_json", "_posixsubprocess", "_socket", "fcntl", "resource", "termios", "zlib"),
)


class _Info(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("name", ctypes.c_char_p))


_LOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_size_t, ctypes.c_void_p)


def loaded() -> list[str]:
    """Return the paths of all that a machine uses, the loader's own among them."""
    for name in _MODULES:
        __import__(name)
    with suppress(OSError):  # a C library that does not need it
        ctypes.CDLL(_LATE)
    found: list[str] = []

    def look(info: ctypes._Pointer[_Info], _size: int, _data: object) -> int:
        name = os.fsdecode(info.contents.name or b"")
        if name.startswith("/"):
            found.append(name)
        return 0

    ctypes.CDLL(None).dl_iterate_phdr(_LOOK(look), None)
    return found
