"""What a benchmark asks of another monitor: its command line for a guest, and how that ends."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyvirt.harness.guest import vmlinux
from pyvirt.harness.guest.kernel import Kernel

ELF, BZIMAGE = "ELF", "bzImage"
CONSOLE = "console=ttyS0 quiet panic=-1"
VARIABLE = "PYVIRT_BENCH_"


# What a guest's script ends with: its monitor's process ends by it.
POWEROFF = "last=poweroff"
LAST = f"grep -q {POWEROFF} /proc/cmdline && poweroff -f\nreboot -f\n"
Image = dict[str, str]  # a kernel's file by its format


def image(guest: Kernel) -> Image:
    """Return a kernel in each of its formats."""
    return {BZIMAGE: str(guest.image), ELF: str(guest.vmlinux or vmlinux.cached(guest.image))}


@dataclass(frozen=True)
class Disk:
    """A raw image or block device; `direct` is direct I/O, by io_uring if the monitor can."""

    path: str
    readonly: bool = False
    direct: bool = True


@dataclass(frozen=True)
class Guest:
    """A guest; the serial port is its console.

    More than one vCPU, and a NIC with as many pairs of queues, is for pyvirt and QEMU alone.
    """

    image: Image
    initrd: str
    memory_mib: int = 256
    disks: tuple[Disk, ...] = ()
    tap: str = ""
    vhost: bool = False
    append: str = CONSOLE
    vcpus: int = 1


@dataclass(frozen=True)
class Launch:
    """How to run a guest that ends as LAST has it, and its monitor's process with it.

    `files` are written before it, by path. Its console is its output; `terminal` says that this
    has to be one.
    """

    argv: list[str]
    files: dict[str, str] = field(default_factory=dict)
    terminal: bool = False


class Peer(Protocol):
    """A monitor."""

    @property
    def name(self) -> str:
        """What the report calls it."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of kernels that it takes, the usual one first."""

    @property
    def vhost(self) -> bool:
        """Whether a NIC of its own can be the kernel's vhost-net."""

    def program(self) -> str:
        """Return the path of its program, "" if none was named; AbsentError if it is not there."""

    def launch(self, guest: Guest, kernel: str, folder: Path) -> Launch:
        """Return how to run a guest; `folder` is for files of its own, which are gone after."""


class AbsentError(Exception):
    """A monitor was named and cannot take part; the text says why."""


def named(name: str) -> str:
    """Return the program that PYVIRT_BENCH_NAME names, "" if nothing is; AbsentError."""
    variable = VARIABLE + name.upper().replace(" ", "_")
    path = os.environ.get(variable, "")
    if path and shutil.which(path) is None:
        raise AbsentError(f"{variable}={path} is no program")
    return path
