"""The C side, as cffi shows it: `lib`, `ffi`, and how its errors become exceptions.

Every function of `lib` returns 0 (or a documented value >= 0) or a negative errno, never
calls back into Python, and runs without the GIL. This module is the only importer of the
compiled extension.
"""

import os

from ..errors import BackendError
from ._native import ffi, lib

__all__ = ["check", "ffi", "lib"]


def check(result: int, what: str) -> int:
    """Return `result`; raise BackendError "`what`: reason" when it is a negative errno."""
    if result < 0:
        raise BackendError(f"{what}: {os.strerror(-result)}")
    return result
