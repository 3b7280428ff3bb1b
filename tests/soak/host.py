"""What the lives of a soak share of the host, and what came of them."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

from pyvirt.harness.vm.fork_server import Template

KEPT = 4  # snapshots, at most


class Host:
    """Any thread. Owns what is kept of snapshots until `close`."""

    def __init__(self, folder: Path, hostile: Path, taps: list[str]) -> None:
        """Lives have folders below `folder`; `hostile` is their kernel. No taps, no NICs."""
        self.folder = folder
        self.hostile = hostile
        self.image = folder / "image"
        self.image.write_bytes(bytes(1 << 20))
        self.server = ""  # where the fork server is
        self.template: Template | None = None
        self.ends: Counter[str] = Counter()
        self._taps = list(taps)
        self._saved: list[tuple[Path, list[str]]] = []
        self._numbers = 0
        self._lock = threading.Lock()

    def tap(self) -> str:
        """Return one that is nobody else's until it is given back; "": there is none."""
        with self._lock:
            return self._taps.pop() if self._taps else ""

    def give_back(self, tap: str) -> None:
        """Take a tap back, or the "" that stood for none."""
        with self._lock:
            self._taps += [tap] if tap else []

    def keep(self, snapshot: Path, words: list[str]) -> None:
        """Take over a snapshot, for one that begins later with these options; the oldest may go."""
        with self._lock:
            self._numbers += 1
            self._saved.append((snapshot.rename(self.folder / f"saved{self._numbers}"), words))
            surplus = self._saved.pop(0)[0] if len(self._saved) > KEPT else None
        if surplus:
            shutil.rmtree(surplus)

    def snapshot(self) -> tuple[Path, list[str]] | None:
        """Hand over a snapshot that is kept."""
        with self._lock:
            return self._saved.pop() if self._saved else None

    def count(self, life: str) -> None:
        """Count a life by how it began and ended."""
        with self._lock:
            self.ends[life] += 1

    def close(self) -> None:
        """Remove what nobody wanted."""
        while found := self.snapshot():
            shutil.rmtree(found[0])
        self.image.unlink()
