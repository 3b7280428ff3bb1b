"""Back ends, and what makes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.virtio import turn

from .back_end import BackEnd
from .bench import wait

Make = Callable[..., BackEnd]
Hurry = Callable[..., None]


def _files() -> list[str]:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(name) for name in names if os.path.lexists(name)]


@pytest.fixture
def path() -> Iterator[Path]:
    """Return where back ends listen: a short path."""
    with tempfile.TemporaryDirectory(prefix="vu-", dir="/tmp") as folder:
        yield Path(folder, "s")


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Return what makes back ends, one after the other dies; nothing of them may be left."""
    made: list[BackEnd] = []
    before = _files()

    def one(*arguments: object, **options: object) -> BackEnd:
        made.append(BackEnd(path, *arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    yield one
    if path.exists():
        made[-1].die()
    wait(lambda: len(_files()) == len(before), f"left open: {before} {_files()}")


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> Hurry:
    """Return what lets nobody wait long from then on, or again as long as ever."""

    def hurry(on: bool = True) -> None:
        if on:
            monkeypatch.setattr(turn, "LIMIT_S", 0.3)
        else:
            monkeypatch.undo()

    return hurry
