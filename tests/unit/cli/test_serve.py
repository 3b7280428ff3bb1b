"""Machines that `pyvirt serve` starts for `pyvirt run -via`; these need no KVM.

Each is a device in Python whose file does what is to be seen, before there is a machine at all.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pyvirt import __version__
from pyvirt.cli import main, stand_in, via
from pyvirt.cli.options.help import usage
from pyvirt.cli.server import server as server_side
from pyvirt.cli.server.code import Code
from pyvirt.cli.server.connection import Caller
from pyvirt.cli.server.limits import LINE_MAX
from pyvirt.errors import BackendError
from pyvirt.harness.lab import session

from ..fork_server import PATIENCE, PYVIRT, read_all
from ..refusal import refusal
from ..served import Process, Served, run, served, state, wait_for

_CHANGED = "import pyvirt; pyvirt.__version__ = '99'; from pyvirt.cli.main import main; main()"
# What a process has from the one that starts it.
_TELL = """
import json, os, resource, signal, sys
def status(*names):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: lines[name].strip() for name in names}
limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
umask = os.umask(0)
print(json.dumps({
    "cwd": os.getcwd(),
    "env": {k: v for k, v in os.environ.items() if k not in ("PYVIRT_EXEC_NS", "_")},
    "fds": {n: os.readlink(f"/proc/self/fd/{n}") for n in range(64)
            if os.path.exists(f"/proc/self/fd/{n}") and os.get_inheritable(n)},
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    "nice": os.nice(0),
    "processors": sorted(os.sched_getaffinity(0)),
    "status": status("SigBlk", "SigIgn", "Groups", "NoNewPrivs", "Seccomp"),
    "umask": umask,
    "words": sys.argv[1:],
}))
sys.stdout.flush()
os._exit(7)
"""
_LAST = """
import os, pathlib, signal, time
signal.pthread_sigmask(signal.SIG_SETMASK, [])  # which wait, while a machine is made
begun = pathlib.Path({begun!r})
begun.with_suffix(".new").write_text(str(os.getpid()))
begun.with_suffix(".new").rename(begun)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as server:
        yield server


def device(folder: Path, program: str) -> list[str]:
    """Return the words of a machine that does no more than a program."""
    file = folder / "device.py"
    file.write_text(program)
    return ["-accel", "kvm", "-kernel", "none", "-device", f"python,file={file}"]


class Lasting:
    """A command whose machine goes on until it is ended."""

    def __init__(self, server: Served, folder: Path, start: Callable[..., Process]) -> None:
        begun = folder / "begun"
        begun.unlink(missing_ok=True)
        words = device(folder, _LAST.format(begun=str(begun)))
        self.process = start([PYVIRT, "run", "-via", server.path, *words])
        wait_for(begun.exists, "the machine")
        self.monitor = int(begun.read_text())

    def is_over(self) -> bool:
        return state(self.monitor) == "Z"


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Return a function that starts a command, which is killed at the end if need be."""
    started: list[Process] = []

    def go(words: list[str], **more: Any) -> Process:
        started.append(subprocess.Popen(words, text=True, stderr=subprocess.PIPE, **more))
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.communicate(timeout=PATIENCE)


@pytest.fixture
def lasting(server: Served, tmp_path: Path, start: Callable[..., Process]) -> Lasting:
    return Lasting(server, tmp_path, start)


def test_streams_and_status_are_the_commands(server: Served) -> None:
    done = run("-via", server.path, "-help")
    assert (done.returncode, done.stdout, done.stderr) == (0, usage(), "")
    done = run("-nonsense", f"--via={server.path}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pyvirt: -nonsense: no such option; pyvirt run -help lists them\n"


def test_by_the_environment(server: Served) -> None:
    done = run("-help", env={"PYVIRT_SERVE": server.path})
    assert (done.returncode, done.stdout, done.stderr) == (0, usage(), "")
    done = run("-help", env={"PYVIRT_SERVE": ""})
    assert (done.returncode, done.stdout, done.stderr) == (0, usage(), "")


def test_restore_goes_by_it_as_well(server: Served, tmp_path: Path) -> None:
    words = [PYVIRT, "restore", "none", "-via", server.path]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE, check=False
    )
    assert done.returncode != 0
    assert done.stderr.startswith("pyvirt: ")
    assert "none" in done.stderr


def test_a_machine_has_what_it_has_in_a_cold_start(server: Served, tmp_path: Path) -> None:
    """Whatever the server has."""
    words = device(tmp_path, _TELL)
    shell = 'ulimit -n 99 -c 0; umask 027; exec 5>err; trap "" USR2; cd here; "$@"'
    (tmp_path / "here").mkdir()
    found = []
    for more in ([], ["-via", server.path]):
        done = subprocess.run(
            ["nice", "-n", "3", "bash", "-c", shell, "bash", PYVIRT, "run", *more, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            cwd=tmp_path,
            env={"PATH": os.defpath, "HOME": "/nowhere", "ODD": "\udcff=\n", "LANG": "C.UTF-8"},
            preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
        )
        assert (done.returncode, done.stderr) == (7, "")
        found.append(json.loads(done.stdout))
    cold, warm = found
    assert cold["cwd"] == str(tmp_path / "here")
    assert cold["env"]["ODD"] == "\udcff=\n"
    assert {"0", "1", "2", "5"} == set(cold["fds"])
    # Pipes are others each time; and what the command ignores does not get to its machine.
    for one in found:
        one["fds"] = {n: to.partition(":")[0] for n, to in one["fds"].items()}
        del one["status"]["SigIgn"]
    assert warm == cold


def test_descriptors_of_options_come_along(server: Served, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = device(tmp_path, f"import os; os.write({theirs.fileno()}, b'so'); os._exit(0)")
        subprocess.run(
            [PYVIRT, "run", "-via", server.path, *words],
            pass_fds=[theirs.fileno()],
            timeout=PATIENCE,
            check=True,
        )
        theirs.close()
        assert read_all(ours) == "so"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_what_ends_a_command_ends_its_machine(number: int, lasting: Lasting) -> None:
    lasting.process.send_signal(number)
    # SIGINT is an exception to this device, as in a cold start.
    status = lasting.process.wait(PATIENCE)
    assert status == (130 if number == signal.SIGINT else -number)
    assert lasting.is_over()


def test_a_machine_ends_with_its_command(lasting: Lasting) -> None:
    lasting.process.kill()
    wait_for(lasting.is_over, "the end of the machine")


def test_a_machine_that_is_killed_is_told_of(lasting: Lasting) -> None:
    os.kill(lasting.monitor, signal.SIGKILL)
    assert lasting.process.wait(PATIENCE) == -signal.SIGKILL


def test_a_command_stops_with_its_machine(lasting: Lasting) -> None:
    lasting.process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(lasting.process.pid) == "T", "the command stands")
    assert state(lasting.monitor) == "T"
    lasting.process.send_signal(signal.SIGCONT)
    wait_for(lambda: state(lasting.monitor) in "SR", "the machine goes on")
    assert lasting.process.poll() is None


def test_nohup_is_for_the_machine_as_well(
    server: Served, tmp_path: Path, start: Callable[..., Process]
) -> None:
    lasting = Lasting(
        server, tmp_path, lambda words: start(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words])
    )
    lasting.process.send_signal(signal.SIGHUP)
    lasting.process.send_signal(signal.SIGTERM)
    assert lasting.process.wait(PATIENCE) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_machines_outlive_the_server(
    number: int, tmp_path: Path, start: Callable[..., Process]
) -> None:
    with served() as server:
        lasting = Lasting(server, tmp_path, start)
        assert server.end(number) == (0 if number != signal.SIGKILL else -number)
        assert not lasting.is_over()
        lasting.process.send_signal(signal.SIGINT)
        assert lasting.process.wait(PATIENCE) == 130  # it tells by itself
        killed = Path(server.path)
        assert killed.exists() == (number == signal.SIGKILL)


def test_a_kill_that_nobody_can_tell_of(tmp_path: Path, start: Callable[..., Process]) -> None:
    with served() as server:
        lasting = Lasting(server, tmp_path, start)
        server.end()
    os.kill(lasting.monitor, signal.SIGKILL)
    assert lasting.process.wait(PATIENCE) == 1
    assert lasting.process.stderr is not None
    assert lasting.process.stderr.read() == f"pyvirt: -via {server.path}: its server has ended\n"


def test_in_the_background_it_has_no_terminal(server: Served, tmp_path: Path) -> None:
    """Nor does it go on there, where it would take the keys of other jobs."""
    words = device(tmp_path, "import os; print(os.readlink('/proc/self/fd/0')); os._exit(0)")
    script = 'set -m; "$@" & wait; set +m; "$@"; echo end; exec sleep 600'
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(
            "bash", ["bash", "-c", script, "bash", PYVIRT, "run", "-via", server.path, *words]
        )
    said = b""
    try:
        while b"end" not in said:
            said += os.read(terminal, 4096)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)
    background, foreground = [line for line in said.decode().splitlines() if "/dev/" in line]
    assert background == "/dev/null"
    assert foreground.startswith("/dev/pts/")


def gone(folder: str) -> str:
    return f"{folder}/none"


def dead(folder: str) -> str:
    """Return a socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/dead")
    return f"{folder}/dead"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (gone, "No such file or directory"),
        (dead, "Connection refused"),
        (lambda folder: f"{folder}/{'x' * 200}", "AF_UNIX path too long"),
    ],
)
def test_no_server_there(place: Callable[[str], str], reason: str) -> None:
    with TemporaryDirectory() as folder:
        path = place(folder)
        done = run("-via", path, "-help")
        message = f"{path}: {reason}; start it: pyvirt serve {path}"
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"pyvirt: -via {message}\n"
        done = run("-help", env={"PYVIRT_SERVE": path})
        assert (done.returncode, done.stdout) == (0, usage())
        assert done.stderr == (
            f"pyvirt: PYVIRT_SERVE={message}; this machine is started without it\n"
        )


def test_an_end_that_is_told_before_the_start() -> None:
    """As of words that ask for help: the machine's process may be the quicker one."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()
        process = subprocess.Popen(["true"])
        pidfd = os.pidfd_open(process.pid)
        process.wait()

        def serve() -> None:
            with closing(listener.accept()[0]) as client:
                client.recv(1 << 18)
                client.sendall(b'{"status": 42}\n')
                socket.send_fds(client, [b'{"pid": %d}\n' % process.pid], [pidfd])

        thread = threading.Thread(target=serve)
        thread.start()
        handled = {number: signal.getsignal(number) for number in stand_in.BLOCKED}
        try:
            assert via.main(["-via", f"{folder}/s", "-help"]) == 42
        finally:
            thread.join()
            os.close(pidfd)
            for number, handler in handled.items():
                signal.signal(number, handler)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b'{"QMP": {}}\n', "what is there does not answer as pyvirt does; start it: "),
        (b"\0" * 300_000 + b"\n", "what is there does not answer as pyvirt does"),
        (b"[]\n", "what is there does not answer as pyvirt does"),
        (b'{"pid": []}\n', "what is there does not answer as pyvirt does"),
        (b'{"pid": 1}\n', "what is there does not answer as pyvirt does"),
        (b'{"status": 0}\n' * 2, "what is there does not answer as pyvirt does"),
        (b"", "its server has ended"),
        (None, "what is there does not answer as pyvirt does"),
        (b'{"error": "so it is"}\n', "so it is"),
    ],
)
def test_no_server_of_ours(
    answer: bytes | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says, it is one line; and no signal is handled any more."""
    monkeypatch.setattr(stand_in, "PATIENCE_S", PATIENCE if answer is not None else 0.1)
    before = [signal.getsignal(number) for number in stand_in.BLOCKED]
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen()

        def serve() -> None:
            with closing(listener.accept()[0]) as client:
                if answer is None:
                    read_all(client)
                else:
                    client.recv(1 << 18)
                    client.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(BackendError) as info:
            via.main(["-via", f"{folder}/s", "-help"])
        thread.join()
    assert str(info.value).startswith(f"-via {folder}/s: {reason}")
    assert [signal.getsignal(number) for number in stand_in.BLOCKED] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_a_server_of_another_pyvirt(server: Served) -> None:
    python = Path(PYVIRT).with_name("python")
    words = [str(python), "-c", _CHANGED, "run", "-help"]
    for more, status in ((["-via", server.path], 1), ([], 0)):
        done = subprocess.run(
            [*words, *more],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=os.environ | {"PYVIRT_SERVE": server.path},
        )
        assert done.returncode == status
        assert f"{server.path}: its pyvirt is another, {__version__} in " in done.stderr
        assert "and this is 99 in " in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_server_whose_files_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Code()
    caller = Caller(__version__, str(Path(main.__file__).parents[1]), 0, {})
    assert code.difference(caller) == ""
    module = tmp_path / "module.py"
    module.write_text("before")
    monkeypatch.setattr(main, "__file__", str(module))
    code = Code()
    assert code.difference(caller) == ""
    module.write_text("after it")
    assert code.difference(caller) == f"pyvirt has changed since the server was started ({module})"
    module.unlink()
    assert code.difference(caller) != ""


def test_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory() as folder:
        server = server_side.Server(f"{folder}/s", lambda *_: os._exit(1), lambda: None)
        with closing(server), socket.socket(socket.AF_UNIX) as client:
            assert os.stat(f"{folder}/s").st_mode & 0o777 == 0o600
            monkeypatch.setattr(server_side, "peer", lambda _: (1, os.geteuid() + 1))
            client.connect(f"{folder}/s")
            client.sendall(b'{"ping": true}\n')
            server._accept()
            assert "another user" in json.loads(client.recv(4096))["error"]


def test_a_server_of_another_user_is_told_nothing(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "peer_uid", lambda _: os.geteuid() + 1)
    with pytest.raises(BackendError, match=r"is served by user \d+; start it: "):
        via.main(["-via", server.path, "-help"])


def test_too_many_clients_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "CONNECTIONS_MAX", 0)
    with TemporaryDirectory() as folder:
        server = server_side.Server(f"{folder}/s", lambda *_: os._exit(1), lambda: None)
        with closing(server), socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{folder}/s")
            server._accept()
            assert "too many clients" in json.loads(client.recv(4096))["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run -via", "-via: needs a value, the SOCKET of a pyvirt serve"),
        ("run -via -help", "-via: needs a value"),
        ("run -via=", "-via: needs a value"),
        ("run -via a --via=b", "-via: given twice; give it once"),
        ("serve", "serve: give the path of one new socket"),
        ("serve a b", "serve a b: give the path of one new socket"),
        ("serve /dev/null", "serve /dev/null: Address already in use; name a new file"),
        ("jail -name x -- -kernel a -via b", "jail: -via: not in a jail; leave it out"),
    ],
)
def test_wrong_usage(words: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirt.cli.serve.reserve", lambda: None)
    assert refusal(lambda: main.dispatch(words.split())).startswith(message)


def test_options_and_environment_have_an_end(server: Served) -> None:
    done = run("-via", server.path, "-help", env={"LONG": "x" * 100_000, "LONGER": "x" * 100_000})
    assert (done.returncode, done.stdout) == (0, usage())
    long = {f"LONG{number}": "x" * 100_000 for number in range(3)}
    done = run("-via", server.path, "-help", env=long)
    assert done.returncode == 2
    assert f"bytes, and {LINE_MAX} are the most; give fewer" in done.stderr


def test_a_folder_that_is_gone(server: Served, tmp_path: Path) -> None:
    shell = f'mkdir x; cd x; rmdir ../x; exec "{PYVIRT}" run -via "{server.path}" -help'
    done = subprocess.run(
        ["sh", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.endswith(": this folder: No such file or directory; go to another, or "
                                "start without it\n")  # fmt: skip


def test_a_service_manager_is_told() -> None:
    with (
        TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(f"{folder}/notify")
        manager.settimeout(PATIENCE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
            with served():
                assert manager.recv(100) == b"READY=1"


def test_a_lab_is_not_told_of_a_server_of_this_host() -> None:
    command = session._command(["true"], "/", {"PYVIRT_SERVE": "/tmp/s", "HOME": "/"})
    assert command.env == {"HOME": "/", "PYVIRT_LAB": "1"}


def test_json_is_written_as_json_does() -> None:
    value = {"a": ['\udcff\n"', {"b": -1}, []], "\u20ac": {}}
    assert json.loads(stand_in.as_json(value)) == value
