"""Fixtures of the tests of QMP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .fake_machine import Bench, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .fake_machine import Running


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Return a monitor of a machine with nothing plugged."""
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """Return a server whose clients may ask as often as they like."""
    with running(tmp_path, throttled=False) as server:
        yield server


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Return the name of an image of 1 MiB."""
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return str(path)
