"""What a monitor holds of the host, for tests that nothing stays behind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What a monitor holds of the host, but for the guest's memory, which is shared."""

    descriptors: list[str]
    threads: int
    memory_kib: int


def usage(pid: int) -> Usage:
    """Return what the process holds now."""
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text(encoding="ascii")
    anonymous = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    assert anonymous
    names = _each(process / "task", lambda task: (task / "comm").read_text())
    return Usage(
        sorted(re.sub(r"\d+", "N", target) for target in _each(process / "fd", os.readlink)),
        # The kernel starts and ends workers of io_uring as it sees fit.
        sum(not name.startswith("iou-") for name in names),
        int(anonymous[1]),
    )


def _each(folder: Path, read: Callable[[Path], str]) -> Iterator[str]:
    """Yield what `read` says of all that is still there when it is its turn."""
    for one in folder.iterdir():
        # What ends while it is looked at is not held.
        with suppress(FileNotFoundError, ProcessLookupError):
            yield read(one)
