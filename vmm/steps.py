"""What waits for the guest, a step at a time: a generator that yields while there is nothing to do.

Who runs one goes on with other things meanwhile, and looks again soon. Closing it takes all back.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import TypeVar

    T = TypeVar("T")
    Steps = Generator[None, None, T]

LOOK_S = 0.01  # from one step to the next of who has nothing else to do


def finish(steps: Steps[T]) -> T:
    """Do them all on this thread, and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        time.sleep(LOOK_S)
