"""`pyvirt demo` and `pyvirt run` where stock kernels run: what a stranger sees first."""

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


def test_the_default_guest_heeds_the_power_button(shm: Path) -> None:
    """In its shell, with what runs there; its monitor is found as a user finds it."""
    monitor = shm / "monitor"
    options = ["-accel", "kvm", "-name", shm.name, "-qmp", f"unix:{monitor},server,nowait"]
    with subprocess.Popen(
        ["timeout", "-k", "5", str(SECONDS), PYVIRT, "run", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as guest:
        assert guest.stdout is not None
        while b"poweroff or Ctrl-A X leaves" not in (line := guest.stdout.readline()):
            assert line, "it ended"
        listed = subprocess.run([PYVIRT, "ps"], capture_output=True, check=True, timeout=SECONDS)
        (row,) = [row.split() for row in listed.stdout.decode().splitlines() if shm.name in row]
        assert row[2:] == [shm.name, str(monitor)]
        pressed = [str(PYVIRT), "qmp", row[3], "system_powerdown"]
        subprocess.run(pressed, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
        guest.stdout.read()
    assert guest.returncode == 0
