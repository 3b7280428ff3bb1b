"""A machine that is killed at random moments; `python -m tests.long kill` goes on for longer."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from ..effort import tries
from .kill import rounds

pytestmark = pytest.mark.any_kvm
KILLS = tries(20)


def test_what_was_flushed_is_there_and_nothing_is_in_the_way(
    kernel: Callable[[str], Path],
) -> None:
    seed = random.randrange(1, 1 << 32)
    print(f"seed {seed}")
    with TemporaryDirectory() as folder:
        assert rounds(kernel("writer"), Path(folder), KILLS, seed) >= KILLS // 2
