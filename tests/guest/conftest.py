"""Stock kernels under `pyvirt run`, as a process: what a user starts is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from pyvirt.harness.guest import initramfs, kernel

PYVIRT = Path(sys.prefix, "bin", "pyvirt")
SECONDS = 120


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


@pytest.fixture
def boot(micro: kernel.Kernel) -> Boot:
    """Boot the micro kernel (or `image`) with an initramfs that runs `script`."""

    def run(
        script: str,
        *options: str,
        image: Path | None = None,
        stdin: bytes = b"",
        append: str = "console=ttyS0 quiet panic=-1",
    ) -> Ended:
        initrd = initramfs.build(micro, script=script)
        command = [
            str(PYVIRT),
            "run",
            "-accel",
            "kvm",
            "-kernel",
            str(image or micro.image),
            "-initrd",
            str(initrd),
            *options,
            "-append",
            append,
        ]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=SECONDS,
            env={**os.environ, "PYVIRT_LOG_LEVEL": "warning"},
        )
        return Ended(
            done.returncode,
            done.stdout.decode(errors="replace").replace("\r\n", "\n"),
            done.stderr.decode(errors="replace"),
        )

    return run
