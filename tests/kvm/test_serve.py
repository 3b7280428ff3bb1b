"""Tiny guests that `pyvirt serve` starts, as `pyvirt run` does: what they say, how they end."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pyvirt.qmp.client import Client
from pyvirt.vmm.sandbox import RECORD

from ..unit.served import Served, children, run, served, state, vcpus, wait_for
from .support import PATIENCE

pytestmark = pytest.mark.any_kvm
PYVIRT = str(Path(sys.executable).with_name("pyvirt"))
TEXT = "hello from a tiny guest\nwith a second line\n"
STATUS = 42
A_WHILE = 1.0
Kernel = Callable[[str], Path]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as server:
        yield server


def words(server: Served, kernel: Path, *more: str) -> list[str]:
    return ["-via", server.path, "-accel", "kvm", "-m", "128", "-kernel", str(kernel), *more]


class Running:
    """A machine whose guest does not end by itself, with a monitor; its command is the test's."""

    def __init__(self, server: Served, kernel: Path, folder: str, *more: str) -> None:
        self.socket = f"{folder}/qmp"
        self.pid_file = Path(folder, "pid")
        files = ["-qmp", f"unix:{self.socket},server,nowait", "-pidfile", str(self.pid_file)]
        self.process = subprocess.Popen(
            [PYVIRT, "run", *words(server, kernel, "-serial", "none", *files, *more)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: os.path.exists(self.socket), "its monitor")
        with closing(Client(self.socket, lambda _: None)) as client:
            assert client.execute("query-status")["status"] == "running"
        self.pid = int(self.pid_file.read_text())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def folder() -> Iterator[str]:
    """Return one that takes sockets, and is empty in the end."""
    with TemporaryDirectory() as folder:
        yield folder
        wait_for(lambda: os.listdir(folder) == [], "nothing is left")


@pytest.fixture
def running(server: Served, kernel: Kernel, folder: str) -> Iterator[Running]:
    with closing(Running(server, kernel("spin"), folder)) as running:
        yield running


def test_console_and_status(server: Served, kernel: Kernel) -> None:
    for _ in range(2):
        done = run(*words(server, kernel("console")))
        assert (done.returncode, done.stdout, done.stderr) == (STATUS, TEXT, "")


def test_by_the_environment(server: Served, kernel: Kernel) -> None:
    done = run(*words(server, kernel("console"))[2:], env={"PYVIRT_SERVE": server.path})
    assert (done.returncode, done.stdout, done.stderr) == (STATUS, TEXT, "")


def test_what_fails_is_said_as_ever(server: Served, kernel: Kernel) -> None:
    done = run(*words(server, kernel("triple_fault")), env={"PYVIRT_LOG_LEVEL": "info"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyvirt: vCPU 0: the guest triple-faulted\n")
    assert "pyvirt: ended: " in done.stderr
    assert run(*words(server, kernel("console"), "-m", "1")).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_in_good_order(number: int, running: Running) -> None:
    running.process.send_signal(number)
    assert running.process.wait(PATIENCE) == 0
    assert state(running.pid) == "Z"


def test_it_ends_in_good_order_with_its_command(running: Running) -> None:
    running.process.kill()
    wait_for(lambda: state(running.pid) == "Z", "the end of the machine")


def test_it_stops_with_its_command(running: Running) -> None:
    running.process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(running.process.pid) == "T", "the command stands")
    assert state(running.pid) == "T"
    running.process.send_signal(signal.SIGCONT)
    with closing(Client(running.socket, lambda _: None)) as client:
        assert client.execute("query-status")["status"] == "running"


def test_machines_outlive_the_server(kernel: Kernel, folder: str) -> None:
    with (
        served() as server,
        closing(Running(server, kernel("spin"), folder)) as first,
    ):
        assert server.end() == 0
        with closing(Client(first.socket, lambda _: None)) as client:
            assert client.execute("query-status")["status"] == "running"
            client.execute("quit")
        assert first.process.wait(PATIENCE) == 0


def the_waiting(server: Served, *running: int, has: int = 1) -> int:
    """Return the process that waits to be a machine, when it has made that one's vCPUs."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [one for one in children(server.process.pid) if one not in running]
        return len(found) == 1 and vcpus(found[0]) == has

    wait_for(is_there, "one waits")
    return found[0]


def test_a_process_that_waits_becomes_the_machine(kernel: Kernel, folder: str) -> None:
    """The next then has what the last one had."""
    with served() as server:
        first = the_waiting(server)
        with closing(Running(server, kernel("spin"), folder, "-smp", "2")) as running:
            assert running.pid == first
            second = the_waiting(server, first, has=2)
        wait_for(lambda: state(first) == "Z", "the end of the machine")
        with closing(Running(server, kernel("spin"), folder, "-smp", "2")) as running:
            assert running.pid == second


def test_machines_of_all_kinds_follow_one_another(kernel: Kernel) -> None:
    """Whatever the one before has had the next one's process make, or not make."""
    with served() as server:
        for more in (
            [],
            ["-cpu", "host,-popcnt"],
            ["-smp", "3"],
            ["-machine", "pit=off"],
            ["-m", "200"],
        ):
            given = ["-via", server.path, "-accel", "kvm", *more]
            done = run(*given, "-kernel", str(kernel("console")))
            assert (done.returncode, done.stdout, done.stderr) == (STATUS, TEXT, "")


def test_machines_start_when_none_waits(kernel: Kernel) -> None:
    with served() as server:
        waiting = the_waiting(server)
        os.kill(waiting, signal.SIGKILL)
        wait_for(lambda: state(waiting) == "Z", "its end")
        assert run(*words(server, kernel("console"))).returncode == STATUS
        assert the_waiting(server) != waiting


def test_none_waits_longer_than_its_server() -> None:
    with served() as server:
        waiting = the_waiting(server)
        server.end(signal.SIGKILL)
        wait_for(lambda: state(waiting) == "Z", "its end")


def test_limits_of_memory_are_those_of_the_command(kernel: Kernel) -> None:
    with served() as server:
        the_waiting(server)
        given = ["-via", server.path, "-accel", "kvm", "-kernel", str(kernel("console"))]
        done = subprocess.run(
            ["prlimit", f"--as={280 << 20}", PYVIRT, "run", *given],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            # What is noted of the sandbox is mapped first, and may not have room itself.
            env={name: value for name, value in os.environ.items() if name != RECORD},
        )
        assert done.returncode == 2
        assert done.stderr == "pyvirt: -m: cannot map 256 MiB: Cannot allocate memory\n"


def test_it_is_contained_as_ever(running: Running) -> None:
    """Each of its threads has a filter; the server has none."""
    modes = {}
    for task in Path(f"/proc/{running.pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        mode = next(line for line in lines if line.startswith("Seccomp:"))
        modes[(task / "comm").read_text().strip()] = mode.split()[1]
    assert len(modes) >= 3
    assert set(modes.values()) == {"2"}


def test_it_is_listed(running: Running) -> None:
    listed = subprocess.run([PYVIRT, "ps"], capture_output=True, text=True, check=True)
    assert any(str(running.pid) in line.split() for line in listed.stdout.splitlines())


def test_in_the_background(server: Served, kernel: Kernel, folder: str) -> None:
    pid_file, socket = Path(folder, "pid"), f"{folder}/qmp"
    more = ["-daemonize", "-pidfile", str(pid_file), "-qmp", f"unix:{socket},server,nowait"]
    done = run(*words(server, kernel("spin"), *more))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = int(pid_file.read_text())
    wait_for(lambda: len(sockets(pid)) == 1, "none leads to the command, one is the monitor's")
    with closing(Client(socket, lambda _: None)) as client:
        assert client.execute("query-status")["status"] == "running"
        client.execute("quit")
    wait_for(lambda: state(pid) == "Z", "its end")
    failed = run(*words(server, kernel("spin"), "-daemonize", "-nonsense"))
    assert failed.returncode == 2


def sockets(pid: int) -> set[str]:
    """Return the sockets that a process has open."""
    found = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return {one for one in found if one.startswith("socket:")}


def test_a_terminal_is_the_guests(server: Served, kernel: Kernel) -> None:
    """Raw, until Ctrl-A X ends it; then it is as it was."""
    command = " ".join([PYVIRT, "run", *words(server, kernel("spin"))])
    pid, terminal = pty.fork()
    if pid == 0:
        script = f"stty -a >&2; {command}; echo status $?; stty -a >&2"
        os.execvp("sh", ["sh", "-c", script])
    said = b""

    def heard(what: bytes) -> None:
        nonlocal said
        until = time.monotonic() + PATIENCE
        while what not in said:
            assert time.monotonic() < until
            said += os.read(terminal, 4096)

    def is_raw() -> bool:
        return not termios.tcgetattr(terminal)[3] & termios.ICANON

    try:
        heard(b"icanon")
        wait_for(is_raw, "the terminal is the guest's")
        os.write(terminal, b"\x01x")
        heard(b"status 0")
        heard_at = said.index(b"status 0")
        while b" icanon" not in said[heard_at:]:
            said += os.read(terminal, 4096)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def switches(pid: int) -> dict[str, int]:
    """Return how often each thread of a process has gone to sleep, by name and number."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        count = next(line for line in lines if line.startswith("voluntary_ctxt_switches:"))
        found[f"{(task / 'comm').read_text().strip()} {task.name}"] = int(count.split()[1])
    return found


@pytest.mark.parametrize("guest", ["halt", "spin"])
def test_nobody_wakes_up_for_nothing(
    guest: str, server: Served, kernel: Kernel, folder: str
) -> None:
    """Neither beside a guest that stands nor beside one that computes, whoever started it."""
    with closing(Running(server, kernel(guest), folder)) as running:
        before: dict[str, int] = {}
        settled = time.monotonic() + PATIENCE
        while (now := switches(running.pid)) != before:
            assert time.monotonic() < settled, "it does not come to rest"
            before = now
            time.sleep(A_WHILE / 4)
        # Only waited for to see nothing happen.
        time.sleep(A_WHILE)
        assert switches(running.pid) == before
