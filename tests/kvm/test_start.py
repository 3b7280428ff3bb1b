"""What a start takes, by what no machine's speed changes: system calls, files and KVM's calls.

Of a plain guest, up to its first KVM_RUN, by strace. The limits are what it takes today and a
little: who needs more says what for, and raises them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvirt
from pyvirt.cli import bundle, launcher

from .support import PATIENCE

CALLS, FILES, KVM_CALLS = 660, 37, 33
SITE = Path(sysconfig.get_path("platlib"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a start script with a bundle of what the modules are now."""
    parent = tmp_path_factory.mktemp("parent")
    (parent / "pyvirt").symlink_to(Path(pyvirt.__file__).parent)
    made = [sys.executable, bundle.__file__, str(parent / launcher.BUNDLE)]
    subprocess.run(made, check=True, timeout=4 * PATIENCE)
    script = parent / "start"
    script.write_text(launcher.script(Path(sys.executable), SITE, parent), encoding="utf-8")
    script.chmod(0o755)
    return script


def calls(start: Path, trace: Path, *words: str) -> list[str]:
    """Return the system calls of `pyvirt run WORDS` up to the first KVM_RUN."""
    command = ["strace", "-f", "-qq", "-o", str(trace), str(start), "run", "-accel", "kvm", *words]
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=2 * PATIENCE,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )
    found: list[str] = []
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        call = line.partition(" ")[2].strip()
        if "KVM_RUN" in call:
            return found
        # How often threads wait for one another is chance.
        if re.match(r"\w+\(", call) and not call.startswith("futex("):
            found.append(call)
    raise AssertionError("the guest did not run")


@pytest.mark.any_kvm
def test_a_start_takes_no_more_than_it_did(
    start: Path, kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(4096))
    words = ("-kernel", str(kernel("console")), "-initrd", str(initrd))
    found = calls(start, tmp_path / "trace", *words)
    files = [call for call in found if call.startswith("openat(")]
    assert len(files) <= FILES, "\n".join(files)
    of_kvm = [call for call in found if call.startswith("ioctl(") and "KVM_" in call]
    assert len(of_kvm) <= KVM_CALLS, "\n".join(of_kvm)
    assert len(found) <= CALLS, "\n".join(found)
    beside = (str(Path(pyvirt.__file__).parent), str(start.parent))
    assert [call for call in files if ".py" in call and any(one in call for one in beside)] == []
