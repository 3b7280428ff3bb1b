"""What the processes of a soak hold of the host, all together, at one moment.

They are known by a word in their environment, which outlives their parents: a process that nobody
waits for any more is found as well.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

VARIABLE = "PYVIRT_SOAK"


class Held(NamedTuple):
    """Of all processes: memory is what is no file's, a page that several share counted once."""

    processes: int
    threads: int
    descriptors: int
    memory_kib: int
    files: int  # and folders, below that of the run


def own(pid: int) -> Held:
    """Return what one process holds; OSError when it has ended."""
    folder = f"/proc/{pid}"
    threads = 0
    for task in os.listdir(f"{folder}/task"):
        # The kernel starts and ends workers of io_uring as it sees fit.
        name = Path(f"{folder}/task/{task}/comm").read_text(encoding="utf-8", errors="replace")
        threads += not name.startswith("iou-")
    rollup = Path(f"{folder}/smaps_rollup").read_text(encoding="ascii")
    shares = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB$", rollup, re.MULTILINE)
    return Held(1, threads, len(os.listdir(f"{folder}/fd")), sum(map(int, shares)), 0)


class Family:
    """The processes that are started while it is joined, with their children; and a folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and of a short name."""
        self.folder = folder
        self._word = secrets.token_hex(8)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Have what this process starts be of the family, with its files in the folder."""
        words = {VARIABLE: self._word, "TMPDIR": str(self.folder)}
        words["XDG_RUNTIME_DIR"] = str(self.folder)
        before = {name: os.environ.get(name) for name in words}
        os.environ.update(words)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def pids(self) -> Iterator[int]:
        """Yield those that run."""
        wanted = f"{VARIABLE}={self._word}".encode()
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            try:
                environment = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue  # it has ended, or is another user's
            if wanted in environment.split(b"\0"):
                yield int(name)

    def held(self) -> Held:
        """Return what they hold now."""
        total = [0] * len(Held._fields)
        for pid in self.pids():
            try:
                one = own(pid)
            except OSError:
                continue
            total = [a + b for a, b in zip(total, one, strict=True)]
        return Held(*total)._replace(files=len(self.files()))

    def files(self) -> list[str]:
        """Return what is in the folder, sorted."""
        found = []
        for place, folders, files in os.walk(self.folder):
            found += [os.path.relpath(f"{place}/{name}", self.folder) for name in folders + files]
        return sorted(found)
