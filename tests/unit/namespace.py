"""A network namespace for a test: what is made in it is nobody else's, and goes with it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put this thread, and what it starts, into an empty one; skip where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace takes root")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun; run: modprobe tun")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.unshare(_CLONE_NEWNET))
        try:
            yield
        finally:
            _call(_libc.setns(before, _CLONE_NEWNET))
    finally:
        os.close(before)


def ip(words: str) -> str:
    """Run iproute2's tool on `words`; return what it prints."""
    done = subprocess.run(
        ["ip", *words.split()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
