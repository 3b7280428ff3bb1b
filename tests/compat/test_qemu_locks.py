"""Images that QEMU and pyvirt have at the same time, in either order."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from pyvirt.devices.disk import Disk, InUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QEMU = "qemu-system-x86_64"
END_S = 60


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, 1 << 20)
    return path


@contextmanager
def qemu(image: Path, readonly: bool) -> Iterator[str]:
    """Have QEMU open an image for a disk; yield what it complains of, "" when it runs."""
    file = {"driver": "file", "filename": str(image), "locking": "on"}
    node = {"driver": "raw", "node-name": "n", "read-only": readonly, "file": file}
    command = [
        *(QEMU, "-machine", "microvm,accel=tcg", "-m", "32", "-S", "-nodefaults"),
        *("-display", "none", "-qmp", "stdio"),
        *("-blockdev", json.dumps(node), "-device", "virtio-blk-device,drive=n"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        try:
            # It answers once it has its disks.
            process.stdin.write('{"execute": "qmp_capabilities"}\n')
            process.stdin.flush()
            answers = [process.stdout.readline() for _ in range(2)]
            yield "" if "return" in answers[1] else process.stderr.read()
        finally:
            process.kill()
            process.wait(END_S)


@pytest.mark.parametrize("ours", [True, False], ids=["we read", "we write"])
@pytest.mark.parametrize("theirs", [True, False], ids=["QEMU reads", "QEMU writes"])
def test_readers_share_and_writers_do_not(image: Path, ours: bool, theirs: bool) -> None:
    is_shared = ours and theirs
    disk = Disk(str(image), readonly=ours)
    with qemu(image, theirs) as complaint:
        assert ("lock" in complaint) != is_shared, complaint
    disk.close()
    with qemu(image, theirs) as complaint:
        assert complaint == ""
        if is_shared:
            Disk(str(image), readonly=ours).close()
        else:
            with pytest.raises(InUseError):
                Disk(str(image), readonly=ours)
    Disk(str(image), readonly=ours).close()
