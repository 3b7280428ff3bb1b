"""Fixtures for tests with tiny guests: what is made here ends with the test, nothing is left."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.vmm import demand
from pyvirt.vmm.config import MachineConfig

from .ondemand import Client
from .support import GUESTS, MEMORY, PATIENCE, Guest, build


@pytest.fixture(scope="session")
def uncaptured_stderr(pytestconfig: pytest.Config) -> Iterator[int]:
    """Return a descriptor of the real stderr."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        fd = os.dup(2)
    yield fd
    os.close(fd)


@pytest.fixture(autouse=True)
def in_time(uncaptured_stderr: int) -> Iterator[None]:
    """End the whole run when a test hangs, in C as well, with the stack of every thread."""
    faulthandler.dump_traceback_later(4 * PATIENCE, exit=True, file=uncaptured_stderr)
    yield
    faulthandler.cancel_dump_traceback_later()


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
def nothing_leaks(in_time: None) -> Iterator[None]:
    """Fail a test after which descriptors or threads are there that were not before."""
    files, threads = _open_files(), _threads()
    yield
    patience = time.monotonic() + PATIENCE / 10
    while _threads() - threads and time.monotonic() < patience:
        time.sleep(0.001)  # a thread is there a little longer than its work
    assert _threads() - threads == set()
    assert _open_files() - files == set()


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


@pytest.fixture
def make(kernel: Callable[[str], Path], tmp_path: Path) -> Iterator[Make]:
    """Return a function that makes a machine for hot-plug with a guest of guests/*.S."""
    made: list[Guest] = []

    def make(name: str, **words: Any) -> Guest:
        config = MachineConfig(str(kernel(name)), memory=MEMORY, hotplug=True, **words)
        guest = Guest(config, tmp_path / f"log{len(made)}")
        made.append(guest)
        guest.load()
        return guest

    yield make
    for guest in made:
        guest.close()


@pytest.fixture
def on_demand(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Guest, Client]]]:
    """Return a function that makes a machine with slots on demand, and its client."""
    monkeypatch.setattr(demand, "LIMIT_S", 30.0)
    clients = []

    def make_one(name: str = "plug", **config: Any) -> tuple[Guest, Client]:
        guest = make(name, on_demand=True, **config)
        clients.append(Client(guest, tmp_path))
        return guest, clients[-1]

    yield make_one
    for one in clients:
        one.host.close()
