"""Stock kernels under `pyvirt run`, as a process: what a user starts is what is tested."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from pyvirt.harness.guest import initramfs, kernel

from . import root

PYVIRT = Path(sys.prefix, "bin", "pyvirt")
SECONDS = 120
APPEND = "console=ttyS0 quiet panic=-1"
SHM = Path("/dev/shm")  # a tmpfs: fast, and it can punch holes


def make(path: Path, size: int, data: bytes = b"") -> Path:
    """Make an image of `size` bytes that begins with `data`."""
    path.write_bytes(data)
    os.truncate(path, size)
    return path


@dataclass(frozen=True)
class Ended:
    """How a guest ended: exit status of pyvirt, the guest's console, pyvirt's messages."""

    status: int
    console: str
    messages: str


class Boot(Protocol):
    """Boots a guest to its end."""

    def __call__(
        self,
        script: str,
        *options: str,
        image: Path | None = None,
        stdin: bytes = b"",
        append: str = "",
    ) -> Ended: ...


@pytest.fixture(scope="session")
def cloud() -> kernel.Kernel:
    return kernel.find("cloud")


@pytest.fixture(scope="session")
def micro() -> kernel.Kernel:
    return kernel.find("micro")


def command(image: Path, *options: str, append: str) -> list[str]:
    """Return the command that runs the kernel `image`."""
    kernel_options = ["-accel", "kvm", "-kernel", str(image), "-append", append]
    return [str(PYVIRT), "run", *kernel_options, *options]


@pytest.fixture(scope="session")
def boot(micro: kernel.Kernel) -> Boot:
    """Boot the micro kernel (or `image`) with an initramfs that runs `script`."""

    def run(
        script: str,
        *options: str,
        image: Path | None = None,
        stdin: bytes = b"",
        append: str = APPEND,
    ) -> Ended:
        initrd = initramfs.build(micro, script=script)
        try:
            done = subprocess.run(
                command(image or micro.image, "-initrd", str(initrd), *options, append=append),
                input=stdin,
                capture_output=True,
                check=False,
                timeout=SECONDS,
                env={**os.environ, "PYVIRT_LOG_LEVEL": "warning"},
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"the guest runs for {SECONDS} s: {error.stdout!r} {error.stderr!r}")
        return Ended(
            done.returncode,
            done.stdout.decode(errors="replace").replace("\r\n", "\n"),
            done.stderr.decode(errors="replace"),
        )

    return run


class Running:
    """A guest whose console is read, and typed at, while it runs."""

    def __init__(self, image: Path, *options: str, append: str = APPEND) -> None:
        self._process = subprocess.Popen(
            ["timeout", "-k", "5", str(SECONDS), *command(image, *options, append=append)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.console = ""

    def lines(self) -> Iterator[str]:
        """Yield the lines that are still to come, to the guest's end."""
        assert self._process.stdout
        for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip("\r\n")
            self.console += f"{text}\n"
            yield text

    def expect(self, text: str) -> None:
        """Read until `text` comes."""
        assert self._process.stdout
        found = ""
        while not found.endswith(text):
            data = self._process.stdout.read(1)
            assert data, f"the guest ended: {self.console}"
            found += data.decode(errors="replace")
            self.console += found[-1]

    def type(self, text: str) -> None:
        """Type at the console."""
        assert self._process.stdin
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the monitor."""
        # It is the one child of `timeout`.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        os.kill(int(children.read_text()), number)

    def end(self) -> int:
        """Read what is still to come; return the monitor's status."""
        for _ in self.lines():
            pass
        return self._process.wait(SECONDS)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with self._process:
            pass


@pytest.fixture(scope="session")
def measure() -> Path:
    """A root file system with fio in it, of the cache's: for reading only."""
    return root.image()


@pytest.fixture
def shm() -> Iterator[Path]:
    """A folder in memory."""
    with tempfile.TemporaryDirectory(prefix="pyvirt-test-", dir=SHM) as folder:
        yield Path(folder)
