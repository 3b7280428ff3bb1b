"""`pyvirt run -sandbox`: a machine at work in it, what a thread of one cannot do, and the ends.

Each list by itself is tested in tests/unit/native/test_sandbox.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from pyvirt.native.sandbox.syscalls import NUMBERS

from ..unit.native.injection import Captive
from ..unit.native.test_crash import died, find, threads
from .support import PATIENCE
from .test_qmp_run import Monitored
from .test_run import STATUS, TEXT, command, run, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    Kernel = Callable[[str], Path]

pytestmark = pytest.mark.any_kvm
FILTER = "2"  # SECCOMP_MODE_FILTER


def seccomp(pid: int) -> dict[str, str]:
    """Return the mode of each thread, by its name."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        match = re.search(r"^Name:\t(.*)\n(?:.*\n)*?Seccomp:\t(\d)", status, re.MULTILINE)
        assert match
        found[match[1]] = match[2]
    return found


def no_new_privs(pid: int) -> bool:
    return "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("mode", ["on", "off", "log", "on,spawn=deny"])
def test_a_guest_runs_to_its_end(kernel: Kernel, mode: str) -> None:
    words = command(kernel("console"), "-sandbox", mode)
    assert run(*words) == (STATUS, TEXT, "")


def test_every_thread_is_in_it(kernel: Kernel, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(bytes(1 << 20))
    with TemporaryDirectory(dir="/dev/shm") as sockets:
        words = (
            *("-sandbox", "on", "-smp", "2", "-disk", str(image)),
            *("-chardev", f"socket,id=port0,path={sockets}/p,server,nowait"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=port0"),
            *("-device", f"vsock-device,guest-cid=3,uds={sockets}/v"),
            *("-device", "ib700", "-machine", "rtc=on"),
        )
        with Monitored(kernel("spin"), *words) as guest:
            pid = guest.process.pid
            expected = {"vcpu0", "vcpu1", "qmp", "helper", "console serial0"}
            wait_for(lambda: expected <= seccomp(pid).keys(), "its threads, by name")
            modes = seccomp(pid)
            assert set(modes.values()) == {FILTER}, modes
            assert no_new_privs(pid)


def test_without_it_no_thread_is(kernel: Kernel) -> None:
    with Monitored(kernel("spin"), "-disable-seccomp") as guest:
        assert set(seccomp(guest.process.pid).values()) == {"0"}
        assert not no_new_privs(guest.process.pid)


def test_monitors_plug_reset_and_save(kernel: Kernel, tmp_path: Path) -> None:
    image = tmp_path / "b.img"
    image.write_bytes(bytes(1 << 20))
    with Monitored(kernel("spin"), "-sandbox", "on") as guest:
        execute = guest.client.execute
        file = {"driver": "file", "filename": str(image)}
        execute("blockdev-add", {"node-name": "b", "driver": "raw", "file": file})
        execute("device_add", {"driver": "virtio-blk-device", "id": "b", "drive": "b", "addr": "1"})
        execute("device_del", {"id": "b"})
        execute("blockdev-del", {"node-name": "b"})
        execute("system_reset")
        stands = guest.mailbox()
        wait_for(lambda: guest.mailbox() != stands, "the guest to count on")
        execute("stop")
        execute("migrate", {"uri": f"file:{tmp_path}/snapshot"})
        wait_for(lambda: execute("query-migrate")["status"] != "active", "the snapshot")
        assert execute("query-migrate")["status"] == "completed"
        execute("cont")
        assert execute("quit") == {}
        assert guest.ended() == 0
        assert guest.process.stderr is not None
        assert guest.process.stderr.read() == b""
    with Monitored(
        kernel("spin"), "-incoming", f"file:{tmp_path}/snapshot", "-sandbox", "on"
    ) as on:
        stands = on.mailbox()
        wait_for(lambda: on.mailbox() != stands, "the restored guest to count on")
        assert set(seccomp(on.process.pid).values()) == {FILTER}


ESCAPES: tuple[tuple[str, tuple[int | bytes, ...]], ...] = (
    ("execve", (b"/bin/true", 0, 0)),
    ("ptrace", (16, os.getpid(), 0, 0)),
    ("clone", (signal.SIGCHLD, 0, 0, 0, 0)),
    ("mprotect", (0, 4096, 7)),
    ("socket", (17, 3, 0)),
)
FILES: tuple[tuple[str, tuple[int | bytes, ...]], ...] = (
    ("openat", (-100, b"/etc/passwd", 0)),
    ("socket", (1, 1, 0)),
)


@pytest.mark.parametrize(
    ("comm", "name", "list_"),
    [
        ("vcpu0", "vcpu0", "vcpu"),
        ("console serial0", "console", "console"),
        ("qmp", "qmp", "control"),
        ("main", "main", "control"),
        ("helper", "helper", "control"),
    ],
)
def test_a_thread_that_is_taken_over_gets_nowhere(
    kernel: Kernel, comm: str, name: str, list_: str
) -> None:
    with Monitored(kernel("spin"), "-sandbox", "on") as guest:
        pid = guest.process.pid
        # A vCPU's was under the list of its starter first.
        filters = 2 if comm == "vcpu0" else 1
        thread = pid if comm == "main" else find(guest.process.pid, comm, filters=filters)
        captive = Captive(pid, thread)
        for call, arguments in (*(FILES if list_ != "control" else ()), *ESCAPES):
            assert captive.call(NUMBERS[call], *arguments) == signal.SIGSYS, call
        captive.let(signal.SIGSYS)
        line = died(guest.process, signal.SIGSYS)
        expected = (
            r"pyvirt: SIGSYS at the system call socket \(41\) with 0x11, 0x3, 0x0, which is not on "
            rf"the list {list_}: thread {thread} \({name}\)"
        )
        assert re.match(expected, line), line


def test_a_device_that_changes_mappings_is_not_in_it(kernel: Kernel) -> None:
    words = command(kernel("console"), "-device", "pc-testdev")
    status, _, error = run(*words, "-sandbox", "on")
    assert (status, error.count("\n")) == (2, 1)
    assert "-device pc-testdev: not in a sandbox" in error
    environment = os.environ | {"PYVIRT_SANDBOX": "on"}
    done = subprocess.run(
        words, env=environment, capture_output=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == STATUS


def test_the_environment_says_what_is_not_given(kernel: Kernel) -> None:
    environment = os.environ | {"PYVIRT_SANDBOX": "on"}
    process = subprocess.Popen(command(kernel("spin")), env=environment, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: "vcpu0" in threads(process.pid), "the vCPU")
        wait_for(lambda: set(seccomp(process.pid).values()) == {FILTER}, "its list")
    finally:
        process.kill()
        process.wait()


def test_a_serial_port_that_may_block_ends_with_the_guest(kernel: Kernel) -> None:
    """Its thread is cancelled, for which the C library needs another."""
    host, terminal = os.openpty()
    process = subprocess.Popen(
        command(kernel("spin"), "-sandbox", "on"), stdin=host, stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: "vcpu0" in threads(process.pid), "the vCPU")
        wait_for(lambda: set(seccomp(process.pid).values()) == {FILTER}, "its list")
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()
        process.communicate()
        os.close(host)
        os.close(terminal)
