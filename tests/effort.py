"""How much is tried where inputs are drawn at random, or where what may happen is left to chance.

`make quick` has a tenth of it.
"""

from __future__ import annotations

import os

QUICK = "PYVIRT_TESTS_QUICK"  # the variable that `python -m tests --quick` sets for its tests


def tries(full: int) -> int:
    """Return how many of `full` examples, streams, kills or cycles to go through."""
    return max(1, full // 10) if os.environ.get(QUICK) else full
