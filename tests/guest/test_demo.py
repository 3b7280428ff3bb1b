"""`pyvirt demo` where stock kernels run: what a stranger sees first."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

from pyvirt.harness.guest import default

from .conftest import PYVIRT, SECONDS


def test_demo(shm: Path) -> None:
    done = subprocess.run(
        [str(PYVIRT), "demo"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=os.environ | {"TMPDIR": str(shm)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(shm.iterdir()) == []
    console = done.stdout.replace("\r\n", "\n")
    plugged, gone = (console.index(line) for line in (default.DEMO_SEEN, default.DEMO_GONE))
    # The kernel's own word, and the disks by sysfs.
    assert "[vdb] new size: 131072 512-byte logical blocks" in console[:plugged]
    assert "vdb   64M disk" in console[plugged:gone]
    assert default.DEMO_TEXT in console[plugged:gone].splitlines()
    assert "[vdb] new size: 0 512-byte logical blocks" in console[plugged:gone]
    assert "vdb   64M disk" not in console[gone:]
    assert "init: script ended with status 0" in console
    messages = [line for line in done.stderr.splitlines() if line[:3] in {"-> ", "<- "}]
    assert [line[:2] for line in messages] == ["->", "<-", "->", "<-", "->", "<-", "<-"]
    assert all(isinstance(json.loads(line[3:]), dict) for line in messages)
    assert re.search(r"^first KVM_RUN +\d", done.stderr, re.MULTILINE)
    assert done.stderr.endswith(f"of the image begins what the guest wrote: {default.DEMO_TEXT}\n")
