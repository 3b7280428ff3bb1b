"""Processes that are to end with the one that starts them, however that ends."""

from __future__ import annotations

import shutil


def dying_with_parent(number: str = "KILL") -> list[str]:
    """Return the words before a command that gets signal `number` when its parent has ended.

    That is the thread that starts it, which has to live as long (PR_SET_PDEATHSIG). The words are
    none where setpriv is not installed.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", number, "--"] if setpriv else []
