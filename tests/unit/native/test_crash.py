"""What the log says of a thread that dies: a line that names it, from every kind of thread."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from . import victims

# They serve several devices, or could.
SHARED = ("uring", "threads", "iothread")
LIBC = ctypes.CDLL(None, use_errno=True)
_SYS_TGKILL = 234
ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0
# The thread's name for the kernel, for the line, and its device.
THREADS = {
    "uring": ("disk dev0", "disk dev0", "dev0"),
    "threads": ("disk dev0", "disk dev0", "dev0"),
    "iothread": ("io0", "io0", "dev0"),
    "vacant": ("vacant dev0", "vacant", "dev0"),
    "net": ("net dev0", "net", "dev0"),
    "ports": ("ports dev0", "ports", "dev0"),
    "rng": ("rng dev0", "rng", "dev0"),
    "balloon": ("balloon dev0", "balloon", "dev0"),
    "python": ("mine0", "mine0", ""),
}


def threads(pid: int) -> dict[str, int]:
    """Return the threads of a process by their names, as the kernel knows them."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        found[(task / "comm").read_text().rstrip("\n")] = int(task.name)
    return found


def started(*words: str) -> subprocess.Popen[bytes]:
    """Start the program of victims.py with these words; its thread is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.native.victims", *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def _filters(task: Path) -> int:
    found = re.search(r"^Seccomp_filters:\s*(\d+)$", (task / "status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def find(pid: int, name: str, *, filters: int = 0) -> int:
    """Return a thread that has the name, or gets it soon, and so many filters, which come later."""
    until = time.monotonic() + PATIENCE
    while name not in (there := threads(pid)):
        assert time.monotonic() < until, f"no {name}, but {', '.join(there)}"
        time.sleep(0.01)
    while _filters(Path(f"/proc/{pid}/task/{there[name]}")) < filters:
        assert time.monotonic() < until, f"{name} is not contained"
        time.sleep(0.01)
    return there[name]


def tgkill(pid: int, tid: int, number: int) -> None:
    assert LIBC.syscall(_SYS_TGKILL, pid, tid, number) == 0


def died(process: subprocess.Popen[bytes], number: int) -> str:
    """Return the line of a process that a signal has ended."""
    # Before its stdin closes, which would end it too, and take away what the thread looks at.
    assert process.wait(PATIENCE) == -number
    _, errors = process.communicate()
    (line,) = errors.decode(errors="backslashreplace").splitlines()
    return line


def test_every_kind_of_thread_is_here() -> None:
    assert THREADS.keys() == victims.KINDS.keys()


@pytest.mark.parametrize("kind", THREADS)
def test_a_thread_that_serves_a_device(kind: str) -> None:
    comm, name, device = THREADS[kind]
    process = started(kind)
    thread = find(process.pid, comm)
    tgkill(process.pid, thread, signal.SIGSEGV)
    line = died(process, signal.SIGSEGV)
    of = f", device {device}" if device else ""
    if kind in SHARED:
        # It is a device's only while it serves that one.
        of = f"({of})?"
    expected = (
        rf"pyvirt: SIGSEGV sent by process {os.getpid()}: thread {thread} \({name}\){of}"
        r", code 0x[0-9a-f]+( \(_native \+ 0x[0-9a-f]+\))?; please report"
    )
    assert re.fullmatch(expected, line), line


RAW = """
import os, resource
from pyvirt.devices.terminal import RawTerminal
from pyvirt.native import lib
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
lib.pv_crash_thread(b"main")
lib.pv_crash_report(2)
with RawTerminal():
    os.abort()
"""


def test_the_terminal_is_as_it_was() -> None:
    host, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    process = subprocess.Popen(
        [sys.executable, "-c", RAW], stdin=terminal, stderr=subprocess.PIPE, start_new_session=True
    )
    line = died(process, signal.SIGABRT)
    assert line.startswith(
        f"pyvirt: SIGABRT sent by process {process.pid}: thread {process.pid} (main)"
    )
    assert termios.tcgetattr(terminal) == before
    os.close(host)
    os.close(terminal)
