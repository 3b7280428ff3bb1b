"""What a monitor holds of the host, for tests that nothing stays behind."""

from __future__ import annotations

import os
import re
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
    names = [(task / "comm").read_text() for task in (process / "task").iterdir()]
    return Usage(
        sorted(re.sub(r"\d+", "N", os.readlink(fd)) for fd in (process / "fd").iterdir()),
        # The kernel starts and ends workers of io_uring as it sees fit.
        sum(not name.startswith("iou-") for name in names),
        int(anonymous[1]),
    )
