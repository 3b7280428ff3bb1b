"""One target at work: its process, what it says of itself, and the processor time that it had."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from .corpus import read, unpack
from .target import FOLDER, ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path

    from .target import Target

# Of one input; a busy machine is slow, which is no finding.
LIMITS = ("-timeout=60", "-report_slow_units=60", "-rss_limit_mb=2048")
_TICKS = os.sysconf("SC_CLK_TCK")
_WALL = 40  # seconds that may go by for one of processor time
_TAIL = 20_000  # bytes kept of what it says
_STEP = re.compile(r"#(\d+)\t\w+ +cov: (\d+) ft: \d+ corp: (\d+)/")
_FINAL = re.compile(r"stat::(\w+): +(\d+)")


def places(target: Target) -> tuple[Path, Path, Path]:
    """Return the folders of inputs that are new, of those that are kept, and of findings."""
    mine, kept, found = (FOLDER / target.name / name for name in ("new", "kept", "found"))
    shutil.rmtree(kept, ignore_errors=True)
    unpack(read(target.corpus), kept)
    for folder in (mine, found):
        folder.mkdir(parents=True, exist_ok=True)
    return mine, kept, found


class Run:
    """A target that runs for so many seconds of processor time; `close` ends it."""

    def __init__(self, target: Target, seconds: int) -> None:
        """Start it; RuntimeError where it cannot be built."""
        self.target = target
        self.seconds = seconds
        self.used = 0.0
        self.runs = self.edges = self.inputs = self.new = 0
        mine, kept, self._found = places(target)
        self._before = set(self._found.iterdir())
        self._known = set(mine.iterdir())
        self._mine = mine
        self._until = time.monotonic() + seconds * _WALL + 120
        self._asked = False
        self._said = ""
        options = [*LIMITS, f"-max_len={target.length}", "-print_final_stats=1"]
        self._process = subprocess.Popen(
            [*target.command(), *options, f"-artifact_prefix={self._found}/", str(mine), str(kept)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
        )
        assert self._process.stderr is not None
        self.fd = self._process.stderr.fileno()

    def hear(self) -> bool:
        """Take what it says; False: it has ended."""
        data = os.read(self.fd, 1 << 16)
        self._said = (self._said + data.decode(errors="replace"))[-_TAIL:]
        for step in _STEP.finditer(self._said):
            self.runs, self.edges, self.inputs = map(int, step.groups())
        if not data:
            self._process.wait()
            final = dict(_FINAL.findall(self._said))
            self.runs = int(final.get("number_of_executed_units", self.runs))
        return bool(data)

    def look(self) -> None:
        """See what time it has had, and ask it to end when that is enough."""
        try:
            with open(f"/proc/{self._process.pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            return
        self.used = (int(words[11]) + int(words[12])) / _TICKS or self.used
        if time.monotonic() > self._until:
            self._process.kill()
        elif self.used >= self.seconds and not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGUSR1)

    def findings(self) -> list[str]:
        """Return the files of inputs that it has ended with, or what else was wrong."""
        files = sorted(str(path) for path in set(self._found.iterdir()) - self._before)
        if self._process.returncode in {0, -signal.SIGKILL} and not files:
            return []
        log = FOLDER / self.target.name / "log"
        log.write_text(self._said, encoding="utf-8")
        return files or [f"status {self._process.returncode}: {log}"]

    def line(self) -> str:
        """Return how far it is."""
        return (
            f"{self.target.name}: {self.used:.0f} of {self.seconds} s, {self.runs} runs, "
            f"{self.edges} edges, {self.inputs} inputs"
        )

    def close(self) -> None:
        """End it now."""
        self.new = len(set(self._mine.iterdir()) - self._known)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
