"""Processes that end with who has started them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ... import __main__ as suite

PATIENCE_S = 30
# One that the signal ends, after a word; its end closes the pipe.
CHILD = "trap 'echo ended; exit' TERM INT; echo begun; while :; do sleep 0.05; done"
PARENT = f"""
import subprocess
from pyvirt.harness.parent import dying_with_parent
subprocess.run([*dying_with_parent("TERM"), "sh", "-c", {CHILD!r}])
"""


def read(fd: int) -> bytes:
    assert select.select([fd], [], [], PATIENCE_S)[0]
    return os.read(fd, 4096)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_comes_when_the_parent_has_ended(number: int) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert read(parent.stdout.fileno()) == b"begun\n"
        parent.send_signal(number)
        assert parent.wait(PATIENCE_S) == -number
        assert read(parent.stdout.fileno()) == b"ended\n"
        assert read(parent.stdout.fileno()) == b""


@pytest.mark.parametrize("lab", [False, True])
def test_a_run_of_the_suite_takes_its_processes_along(lab: bool, tmp_path: Path) -> None:
    group = suite.Group("some", ["tests/unit"], lab=lab)
    words = suite.command(group, tmp_path, [])
    assert words[1:4] == ["--pdeathsig", "TERM" if lab else "INT", "--"]
