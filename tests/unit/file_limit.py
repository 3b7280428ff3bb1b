"""What a host has no more of: storage, in files that cannot grow, and descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Return a context in which no file is written beyond so many bytes (EFBIG).

    That is of this process, and those that it starts.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def descriptor_limit(room: int) -> Iterator[None]:
    """Return a context in which this process opens no more than so many descriptors (EMFILE)."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = os.listdir("/proc/self/fd")
    taken = {int(name) for name in names if os.path.exists(f"/proc/self/fd/{name}")}
    limit = 0
    while room or limit in taken:
        room -= limit not in taken
        limit += 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
