"""The examples of pyvirt-run(1) do what the page says, typed as they stand there."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.cli.man import EXAMPLES

from .support import PATIENCE
from .test_run import PYVIRT, STATUS, TEXT, wait_for

pytestmark = pytest.mark.any_kvm
# The tiny guest is not for the nested lab, wherever pyvirt would run a real one.
SHELL = (
    f'pyvirt() {{ if [ "$1" = run ]; then shift; set -- run -accel kvm "$@"; fi; {PYVIRT} "$@"; }}'
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that takes sockets: not every file system of the lab does."""
    with tempfile.TemporaryDirectory(prefix="pyvirt-") as name:
        yield Path(name)


@pytest.mark.parametrize("typed", [typed for _, typed in EXAMPLES], ids=lambda one: one[-1][:40])
def test_an_example(typed: tuple[str, ...], kernel: Callable[[str], Path], folder: Path) -> None:
    is_background = any("-daemonize" in line for line in typed)
    (folder / "vmlinux").symlink_to(kernel("halt" if is_background else "console"))
    (folder / "root.img").write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["sh", "-c", "\n".join([SHELL, *typed])], capture_output=True, timeout=PATIENCE,
        check=False, cwd=folder, env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip
    assert done.stderr == b""
    if is_background:
        assert done.returncode == 0
        assert b'"status": "running"' in done.stdout
        # The answer comes first, and then the end.
        wait_for(lambda: not (folder / "web.pid").exists(), "the end of the machine")
        assert not (folder / "web.sock").exists()
    else:
        assert (done.returncode, done.stdout) == (STATUS, TEXT)
