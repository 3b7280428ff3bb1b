"""The lab's machine with a stand-in for QEMU: its command line, its end, what it leaves."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from pyvirt.errors import BackendError, ConfigError, PyvirtError
from pyvirt.harness import lab
from pyvirt.harness.lab import image, qemu, session, terminal
from pyvirt.harness.lab.image import Image

IMAGE = Image(Path("/k/vmlinux"), Path("/i/initramfs"))
PATIENCE = 30.0
T = TypeVar("T")


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script in place of QEMU, to be written by the test; nothing of it may stay."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYVIRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image, "prepare", lambda: IMAGE)
    path = folder / qemu.EMULATOR
    path.touch(0o755)
    return path


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")


def test_the_agents_port_comes_first_and_carries_the_descriptor() -> None:
    words = qemu.arguments(IMAGE, 7, 2048, 3)
    devices = [b for a, b in itertools.pairwise(words) if a == "-device"]
    assert devices[0].startswith("virtio-serial-pci")
    assert "socket,id=link,fd=7" in words
    assert words[words.index("-m") + 1] == "2048M"
    assert words[words.index("-smp") + 1] == "3"
    assert words[words.index("-kernel") + 1] == "/k/vmlinux"
    assert "-no-reboot" in words
    assert "panic=-1" in words[words.index("-append") + 1]
    assert "-icount" not in words


def test_a_clock_of_instructions_goes_by_one_thread() -> None:
    words = qemu.arguments(IMAGE, 7, 2048, 1, icount=True)
    assert words[words.index("-icount") + 1] == "shift=0"
    assert words[words.index("-accel") + 1] == "tcg,thread=single"


@pytest.mark.parametrize(
    ("memory", "cpus", "message"),
    [
        (511, 2, "-m 511M"),
        (1 << 21, 2, "-m 2097152M"),
        (4096, 0, "-smp 0"),
        (4096, 256, "-smp 256"),
    ],
)
def test_sizes_out_of_range(memory: int, cpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.run(["true"], memory_mib=memory, cpus=cpus)


def test_without_qemu_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"apt-get install .* qemu-system-x86"):
        lab.run(["true"])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("[ 1.0] Kernel panic - not syncing: VFS: no root\\r\\n", "panicked: VFS: no root;"),
        (
            "qemu-system-x86_64: warning: hm\\nqemu-system-x86_64: no such CPU\\n",
            "QEMU: no such CPU;",
        ),
        ("nothing of note", "QEMU ended early, with status 3;"),
    ],
)
def test_a_machine_that_ends_is_explained(emulator: Path, output: str, message: str) -> None:
    script(emulator, f"printf '{output}'; exit 3")
    with pytest.raises(BackendError, match=message) as caught:
        lab.run(["true"])
    assert "\n" not in str(caught.value)
    log = Path(str(caught.value).rpartition("console log: ")[2])
    assert log.read_bytes() == output.encode().decode("unicode_escape").encode()


def test_a_machine_that_says_nothing_ends_with_the_deadline(emulator: Path) -> None:
    script(emulator, "exec sleep 30")
    with pytest.raises(BackendError, match=r"not ended within 0\.2 s"):
        lab.run(["true"], timeout=0.2)


def test_an_emulator_that_ignores_sigterm_is_killed(
    emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_STOP_S", 0.2)
    script(emulator, f"trap '' TERM; echo $$ >{tmp_path}/pid; while :; do sleep 0.1; done")
    with pytest.raises(BackendError):
        lab.run(["true"], timeout=0.5)
    assert not alive(int((tmp_path / "pid").read_text()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_parent(number: int, emulator: Path, tmp_path: Path) -> None:
    script(emulator, f"echo $$ >{tmp_path}/pid; exec sleep 90")
    code = (
        "import time\n"
        "from pyvirt.harness.lab import image, qemu\n"
        "machine = qemu.Machine(image.Image('k', 'i'), memory_mib=512, cpus=1)\n"
        "time.sleep(90)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        pid = wait_for(lambda: int((tmp_path / "pid").read_text() or 0))
        parent.send_signal(number)
    wait_for(lambda: not alive(pid))


def wait_for(what: Callable[[], T]) -> T:
    """Return what() as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if got := what():
                return got
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_forward_makes_a_private_socket_and_removes_it(emulator: Path, tmp_path: Path) -> None:
    path = tmp_path / "host.sock"
    modes = []

    def look() -> None:
        modes.append(wait_for(lambda: path.stat().st_mode))

    script(emulator, "exec sleep 30")
    thread = threading.Thread(target=look)
    thread.start()
    with pytest.raises(BackendError):
        lab.run(["true"], forward=[(str(path), "/dev/shm/x")], timeout=0.5)
    thread.join()
    assert stat.S_ISSOCK(modes[0])
    assert stat.S_IMODE(modes[0]) == 0o600
    assert not path.exists()


def test_forward_replaces_a_socket_that_nobody_serves(emulator: Path, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    script(emulator, "exec sleep 30")
    with pytest.raises(BackendError, match="not ended"):
        lab.run(["true"], forward=[(str(path), "/dev/shm/x")], timeout=0.2)
    assert not path.exists()


def test_forward_leaves_what_is_in_use(emulator: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    used = tmp_path / "used.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(used))
        other.listen()
        for path in (file, used):
            with pytest.raises(ConfigError, match=f"-forward {path}: Address already in use"):
                lab.run(["true"], forward=[(str(path), "/dev/shm/x")])
    assert file.read_text() == "precious"
    assert used.exists()


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ([], {}, "no command"),
        (["a\0b"], {}, "no NUL"),
        (["x" * 131072], {}, "shorter than"),
        (["true"], {"env": {"A": "\0"}}, "no NUL"),
        (["true"], {"forward": [("h", "relative")]}, "absolute path"),
        (["true"], {"forward": [("h" * 108, "/l")]}, "at most 107 bytes"),
        (["true"], {"forward": [("h", "/" + "l" * 107)]}, "at most 107 bytes"),
    ],
)
def test_bad_arguments(command: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.run(command, **options)  # type: ignore[arg-type]


def test_the_environment_says_that_it_is_the_lab() -> None:
    assert session._command(["a"], None, {"B": "c"}).env == {"B": "c", "PYVIRT_LAB": "1"}


# The host's terminal.


@pytest.fixture
def slave() -> Iterator[int]:
    master, slave = pty.openpty()
    yield slave
    os.close(slave)
    os.close(master)


def test_raw_mode_is_undone_whatever_happens(slave: int) -> None:
    before = termios.tcgetattr(slave)
    with contextlib.suppress(PyvirtError), terminal.raw(slave):
        assert not termios.tcgetattr(slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        raise PyvirtError
    assert termios.tcgetattr(slave) == before


def test_size(slave: int) -> None:
    termios.tcsetwinsize(slave, (33, 99))
    assert terminal.size(slave) == (33, 99)


def write_on(fd: int) -> None:
    for _ in range(1000):
        os.write(fd, bytes(4096))


def test_a_terminals_writer_does_not_block_and_changes_nothing_for_others(slave: int) -> None:
    copy = terminal.writer(slave)
    try:
        with pytest.raises(BlockingIOError):
            write_on(copy)
        assert os.get_blocking(slave)
    finally:
        os.close(copy)
