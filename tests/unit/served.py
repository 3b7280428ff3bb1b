"""A `pyvirt serve` for tests, and commands whose machines it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from .fork_server import PATIENCE, PYVIRT

Process = subprocess.Popen[str]


class Served:
    """A server at `path`, which ends with the test."""

    def __init__(self, path: str, process: Process) -> None:
        self.path = path
        self.process = process

    def end(self, how: int = signal.SIGTERM) -> int:
        """End it by a signal; return the exit status."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)


@contextmanager
def served() -> Iterator[Served]:
    """Start one, and see that it says nothing and leaves nothing."""
    with TemporaryDirectory() as folder:
        path = f"{folder}/s"
        with subprocess.Popen(
            [PYVIRT, "serve", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                assert process.stdout.readline() == f"ready: pyvirt run -via {path}\n"
                yield Served(path, process)
            finally:
                process.terminate()
                assert process.wait(PATIENCE) in {0, -signal.SIGKILL}
            assert process.stdout.read() == ""
            assert process.stderr.read() == ""
        if process.returncode == 0:
            assert os.listdir(folder) == []


def run(
    *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `pyvirt run WORDS` to its end, with `env` beside this process's environment."""
    return subprocess.run(
        [PYVIRT, "run", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=cwd,
        env=os.environ | (env or {}),
    )


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until it holds."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.01)


def state(pid: int) -> str:
    """Return the state of a process, as proc(5) has it; Z, too, of one that is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def children(pid: int) -> list[int]:
    """Return the children of a process of one thread."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def vcpus(pid: int) -> int:
    """Return how many vCPUs a process has open."""
    found = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += "kvm-vcpu" in os.readlink(fd)
    return found
