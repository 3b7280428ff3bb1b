"""Where pyvirt keeps files of its own."""

from __future__ import annotations

import os


def cache_folder() -> str:
    """Return the cache folder, absolute; it may not exist yet.

    It is $PYVIRT_CACHE, else $XDG_CACHE_HOME/pyvirt, else ~/.cache/pyvirt. A relative
    XDG_CACHE_HOME is ignored, as the XDG base directory specification asks.
    """
    if own := os.environ.get("PYVIRT_CACHE"):
        return os.path.abspath(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return os.path.join(base if base.startswith("/") else os.path.expanduser("~/.cache"), "pyvirt")
