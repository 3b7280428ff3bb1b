"""Fixtures for tests with tiny guests: what is made here ends with the test, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.vmm.config import MachineConfig

from .support import GUESTS, MEMORY, PATIENCE, Guest, build


def _open_files() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return found


def _threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test after which descriptors or threads are there that were not before."""
    files, threads = _open_files(), _threads()
    yield
    patience = time.monotonic() + PATIENCE / 10
    while _threads() - threads and time.monotonic() < patience:
        time.sleep(0.001)  # a thread is there a little longer than its work
    assert _threads() - threads == set()
    assert _open_files() - files == set()


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Fail a test that hangs, and its clean-up if that hangs too."""

    def give_up(*_: object) -> None:
        raise TimeoutError("the test hangs")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 4 * PATIENCE, PATIENCE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the ELF kernel of a guest by name, built on first use."""
    folder = tmp_path_factory.mktemp("guests")

    def get(name: str) -> Path:
        target = folder / f"{name}.elf"
        return target if target.exists() else build(GUESTS / f"{name}.S", target)

    return get


Make = Callable[..., Guest]


@pytest.fixture
def machine(kernel: Callable[[str], Path], tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a machine with a guest, loaded; it is closed at the end."""
    made: list[Guest] = []

    def make(
        name: str,
        *,
        vcpus: int = 1,
        memory: int = MEMORY,
        cmdline: str = "",
        initrd: str = "",
        frozen: bool = False,
    ) -> Guest:
        config = MachineConfig(
            str(kernel(name)),
            initrd=initrd,
            cmdline=cmdline,
            vcpus=vcpus,
            memory=memory,
            frozen=frozen,
        )
        guest = Guest(config, tmp_path / f"log{len(made)}")
        made.append(guest)
        guest.load()
        return guest

    yield make
    for guest in made:
        guest.close()
