"""Modules of the running kernel, for what a test or a benchmark needs beyond the lab's own."""

from __future__ import annotations

from ..guest.tool import run

_TIMEOUT_S = 60.0


def load(name: str) -> None:
    """Load a module and what it needs, unless they are there; root only. BackendError."""
    run(["modprobe", name], timeout=_TIMEOUT_S)
