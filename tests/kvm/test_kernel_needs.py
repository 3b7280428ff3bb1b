"""A guest that runs without ACPI, of a kernel whose configuration says that it should not."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .support import PATIENCE, wait_readable
from .test_run import command

pytestmark = pytest.mark.any_kvm
CONFIG = b"IKCFG_ST" + gzip.compress(b"CONFIG_64BIT=y\n") + b"IKCFG_ED"


def test_the_user_is_told_while_the_guest_runs(
    kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    image = tmp_path / "vmlinux"
    image.write_bytes(kernel("spin").read_bytes() + b"Linux version 7.2.0-fake (a)\0" + CONFIG)
    words = command(image, "-machine", "discovery=cmdline", "-smp", "2", "-serial", "none")
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        wait_readable(process.stderr.fileno(), "the warning")
        line = process.stderr.readline().decode()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
    assert line.startswith("pyvirt: -machine discovery=cmdline: ")
    assert "without CONFIG_X86_MPPARSE, so the guest sees one processor" in line
