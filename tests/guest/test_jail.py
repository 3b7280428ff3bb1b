"""A jail's cgroup, which takes a host that leaves controllers to version 2: the lab's does."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.cli.jailer import cgroup

from ..kvm.support import GUESTS, build
from ..kvm.test_jail import Jailed, left, words
from ..kvm.test_run import is_running, run, wait_for

LIMITS = ("memory.max=300M", "pids.max=40", "cpu.max=50000 100000")


@pytest.fixture(scope="module")
def top() -> Iterator[Path]:
    """Return where cgroups can be made."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        found = cgroup.find()
        if found is None:
            subprocess.run(["mount", "-t", "cgroup2", "none", folder], check=True, timeout=60)
            found = cgroup.find()
        assert found is not None
        try:
            yield Path(found.path)
        finally:
            if found.path == folder:
                subprocess.run(["umount", folder], check=True, timeout=60)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(GUESTS / "spin.S", tmp_path_factory.mktemp("kernel") / "spin")


@pytest.fixture
def base() -> Iterator[Path]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        os.chmod(folder, 0o711)
        yield Path(folder)


def test_a_machine_is_in_its_cgroup(top: Path, kernel: Path, base: Path) -> None:
    group = top / "pyvirt/a"

    def told(name: str) -> str:
        return (group / name).read_text(encoding="ascii").strip()

    with Jailed(kernel, base, ("-cgroup", *LIMITS), ()) as guest:
        assert told("memory.max") == str(300 << 20)
        assert told("pids.max") == "40"
        assert told("cpu.max") == "50000 100000"
        # KVM puts threads of its own (kvm-pit) beside them.
        assert {str(guest.first), str(guest.pid)} <= set(told("cgroup.procs").split())
        assert int(told("memory.current")) > 0
        guest.process.terminate()
        assert guest.ended() == 0
    assert not (top / "pyvirt").exists()
    with Jailed(kernel, base, ("-cgroup", *LIMITS), ()) as guest:
        guest.process.send_signal(signal.SIGKILL)
        wait_for(lambda: not is_running(guest.pid), "the machine's end")
    assert group.exists()
    assert run(*words(base, "-clean-resource")) == (0, b"", "")
    assert not (top / "pyvirt").exists()
    assert left(base) == ["disk.img"]


def test_a_limit_that_cannot_be(top: Path, kernel: Path, base: Path) -> None:
    limit = ("-uid", "1", "-gid", "1", "-cgroup", "memory.max=lots")
    status, _, error = run(*words(base, *limit, "--", "-kernel", "spin"))
    assert (status, error.count("\n")) == (2, 1)
    assert "jail: -cgroup memory.max=lots: Invalid argument" in error
    assert not (top / "pyvirt").exists()
    assert left(base) == []
