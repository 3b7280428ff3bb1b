"""The agent and its client, joined by a socket pair; the agent runs under sanitizers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyvirt.harness.agent import image, protocol
from pyvirt.harness.agent.client import Agent
from pyvirt.harness.agent.process import Result
from pyvirt.harness.agent.protocol import AgentError, AgentTimeoutError, Decoder, Frame, Kind
from pyvirt.harness.guest import program

SANITIZED = (
    *("gcc", "-g", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
PATIENCE = 60.0
MIB = 1 << 20


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent"
    program.compile_into(path, image.HERE, SANITIZED)
    return path


class Host:
    """The agent's process on this host, and this side of its connection."""

    def __init__(self, binary: Path) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(PATIENCE)
        with theirs:
            self.process = subprocess.Popen(
                [str(binary), "-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def end(self) -> tuple[int, str]:
        """Return the agent's status and what it said."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        self.link.close()


@pytest.fixture
def host(binary: Path) -> Iterator[Host]:
    one = Host(binary)
    yield one
    one.kill()


@pytest.fixture
def agent(host: Host) -> Iterator[Agent]:
    client = Agent(host.link)
    try:
        client.wait_ready(PATIENCE)
        yield client
        client.close()
        assert host.end() == (0, "")
    finally:
        client.close()


def shell(agent: Agent, script: str, *, stdin: bytes | None = None) -> Result:
    return agent.spawn(["sh", "-c", script], stdin=stdin).wait(PATIENCE)


# Commands.


def test_hello(agent: Agent) -> None:
    hello = agent.wait_ready(0)
    assert hello.release == os.uname().release
    assert hello.taint == int(Path("/proc/sys/kernel/tainted").read_text()) == agent.taint()


def test_code_and_both_outputs(agent: Agent) -> None:
    result = shell(agent, "printf out; printf err >&2; sleep 0.2; exit 3")
    assert result[:3] == (3, b"out", b"err")
    assert 0.2 <= result.duration < PATIENCE
    assert not result.signalled
    assert not result.still_open


def test_a_signal_is_told_from_a_code(agent: Agent) -> None:
    killed = shell(agent, "kill -KILL $$")
    assert (killed.code, killed.signalled) == (137, True)
    chosen = shell(agent, "exit 137")
    assert (chosen.code, chosen.signalled) == (137, False)


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "said"),
    [
        (["no such"], "/", 127, "no such: No such file or directory"),
        (["/etc/passwd"], "/", 126, "/etc/passwd: Permission denied"),
        (["true"], "/no/folder", 125, "/no/folder: No such file or directory"),
        (["true", *["x" * MIB] * 5], "/", 125, "Argument list too long"),
        (["true", "x" * 140_000], "/", 126, "true: Argument list too long"),
    ],
    ids=["missing", "no program", "no folder", "beyond our bound", "beyond the kernel's"],
)
def test_what_cannot_be_run_says_why(
    agent: Agent, argv: list[str], cwd: str, code: int, said: str
) -> None:
    result = agent.spawn(argv, cwd=cwd).wait(PATIENCE)
    assert result[:3] == (code, b"", f"pyvirt-agent: {said}\n".encode())


def test_arguments_environment_and_folder(agent: Agent, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    argv = ["sh", "-c", 'printf "%s|" "$A" "$PWD" "$@"', "", "two words", "", "l\nf", "x" * 90_000]
    result = agent.spawn(argv, cwd=str(folder), env={"A": "x=y\nz"}).wait(PATIENCE)
    assert result.stdout.decode().split("|") == ["x=y\nz", str(folder), *argv[4:], ""]
    assert agent.spawn(["printenv", "A"]).wait(PATIENCE).code == 1
    assert agent.spawn(["printenv", "PATH"]).wait(PATIENCE).code == 0


def test_it_has_descriptors_signals_and_a_session_as_programs_expect(agent: Agent) -> None:
    assert agent.spawn(["ls", "/proc/self/fd"]).wait(PATIENCE).stdout == b"0\n1\n2\n3\n"
    result = agent.spawn(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]).wait(PATIENCE)
    # Numbers from 32 on are the C library's own affair.
    assert [int(mask, 16) & 0x7FFFFFFF for mask in result.stdout.split()[1::2]] == [0, 0]
    assert shell(agent, "readlink /proc/self/fd/0").stdout == b"/dev/null\n"
    process = agent.spawn(["sleep", "100"])
    assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    process.kill()


def test_output_is_streamed_in_order(agent: Agent) -> None:
    pieces: list[tuple[int, bytes]] = []
    came = threading.Event()

    def collect(stream: int, data: bytes) -> None:
        pieces.append((stream, data))
        came.set()

    process = agent.spawn(
        ["sh", "-c", "echo one; read x; echo $x >&2"], open_stdin=True, on_output=collect
    )
    assert came.wait(PATIENCE)
    assert process.running
    assert process.stdout == b"one\n"
    process.write(b"two\n")
    assert process.wait(PATIENCE)[:3] == (0, b"one\n", b"two\n")
    assert pieces == [(1, b"one\n"), (2, b"two\n")]


@pytest.mark.long
def test_50_mb_arrive_whole(agent: Agent) -> None:
    sums = {1: hashlib.md5(), 2: hashlib.md5()}
    script = "seq 1000000 5000000 & seq 1000000 3500000 >&2; wait; printf end"
    result = agent.spawn(
        ["sh", "-c", script], on_output=lambda stream, data: sums[stream].update(data)
    ).wait(PATIENCE)
    assert result.code == 0
    out = b"".join(b"%d\n" % n for n in range(1000000, 5000001)) + b"end"
    err = b"".join(b"%d\n" % n for n in range(1000000, 3500001))
    assert len(out) + len(err) > 50_000_000
    assert sums[1].digest() == hashlib.md5(out).digest()
    assert sums[2].digest() == hashlib.md5(err).digest()
    half = 8 * MIB
    assert result.stdout == out[:half] + out[-half:]
    assert result.stderr == err[:half] + err[-half:]
    assert result.dropped == len(out) + len(err) - 4 * half


def test_several_at_once_keep_apart(agent: Agent) -> None:
    script = "for i in $(seq 300); do echo $0 $i; done; exit $0"
    running = [agent.spawn(["bash", "-c", script, str(n)]) for n in range(30)]
    for n, process in enumerate(running):
        result = process.wait(PATIENCE)
        assert result.code == n
        assert result.stdout.decode() == "".join(f"{n} {i}\n" for i in range(1, 301))


def test_a_flood_holds_nobody_up(agent: Agent) -> None:
    floods = [agent.spawn(["yes", str(n)], keep=MIB) for n in range(3)]
    for _ in range(20):
        assert shell(agent, "echo here").stdout == b"here\n"
        agent.ping(PATIENCE)
    for process in floods:
        process.kill()
        assert process.wait(PATIENCE).code == 137
        assert process.wait(0).dropped > 0


def test_more_commands_than_there_may_be(agent: Agent) -> None:
    running = [agent.spawn(["sleep", "100"]) for _ in range(257)]
    result = running.pop().wait(PATIENCE)
    assert result[:3] == (125, b"", b"pyvirt-agent: Resource temporarily unavailable\n")
    for process in running:
        process.kill(signal.SIGTERM)
    assert {process.wait(PATIENCE).code for process in running} == {143}
    assert shell(agent, "exit 4").code == 4


# Input.


def test_input_through_cat(agent: Agent) -> None:
    data = random.Random(1).randbytes(5_000_001)
    assert shell(agent, "cat", stdin=data).stdout == data


@given(st.lists(st.binary(max_size=20) | st.just(bytes(300_000)), max_size=6))
@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_input_in_pieces(agent: Agent, pieces: list[bytes]) -> None:
    process = agent.spawn(["cat"], stdin=b"first", open_stdin=True)
    for piece in pieces:
        process.write(piece)
    process.close_stdin()
    assert process.wait(PATIENCE)[:2] == (0, b"first" + b"".join(pieces))


def test_input_ends(agent: Agent) -> None:
    assert shell(agent, "wc -c", stdin=b"").stdout.strip() == b"0"
    assert shell(agent, "wc -c", stdin=b"12345").stdout.strip() == b"5"


def test_input_that_nobody_reads(agent: Agent) -> None:
    assert shell(agent, "exit 6", stdin=bytes(4 * MIB)).code == 6
    closed = agent.spawn(["sh", "-c", "exec <&-; read x </dev/stderr; exit 7"], open_stdin=True)
    closed.write(bytes(MIB))
    closed.kill()
    assert closed.wait(PATIENCE).code == 137
    closed.write(b"late")
    closed.close_stdin()
    with pytest.raises(AgentError, match="cat: its stdin is not open"):
        agent.spawn(["cat"]).write(b"x")


def test_a_reader_that_goes_does_not_stop_the_writer(agent: Agent) -> None:
    process = agent.spawn(["sh", "-c", "head -c 1; exec <&-; sleep 100"], open_stdin=True)
    process.write(bytes(MIB))
    process.drain(time.monotonic() + PATIENCE)
    process.kill()
    process.wait(PATIENCE)


# Ends.


def test_a_time_out_names_the_command_and_lets_it_run(agent: Agent) -> None:
    process = agent.spawn(["sh", "-c", "sleep 100", "a b"])
    said = r"^agent: sh -c 'sleep 100' 'a b': not ended within 0\.1 s$"
    with pytest.raises(AgentTimeoutError, match=said):
        process.wait(0.1)
    process.kill(signal.SIGINT)
    assert process.wait(PATIENCE).code == 130


def test_a_signal_reaches_the_whole_group(agent: Agent) -> None:
    process = agent.spawn(["sh", "-c", "sleep 100 & sleep 100 & echo up; wait"])
    while process.stdout != b"up\n":
        time.sleep(0.01)
    process.kill(signal.SIGTERM)
    result = process.wait(PATIENCE)
    assert (result.code, result.still_open) == (143, False)


def test_output_that_a_grandchild_keeps_open(agent: Agent, tmp_path: Path) -> None:
    grandchild = "until test -e go; do sleep 0.05; done; echo late; echo and >&2; touch done"
    process = agent.spawn(["sh", "-c", f"({grandchild}) & echo begun"], cwd=str(tmp_path))
    assert process.wait(PATIENCE)[:3] == (0, b"begun\n", b"")
    assert process.wait(0).still_open
    # What it writes is nobody's, but writing does not end it.
    agent.put(f"{tmp_path}/go", b"")
    deadline = time.monotonic() + PATIENCE
    while not agent.exists(f"{tmp_path}/done"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.stdout == b"begun\n"


def test_output_of_the_past_is_complete_though_it_is_kept_open(agent: Agent) -> None:
    result = shell(agent, "sleep 3 & seq 2000000")
    assert result.still_open
    assert result.stdout == b"".join(b"%d\n" % n for n in range(1, 2000001))


def test_a_dropped_command_is_killed(agent: Agent) -> None:
    process = agent.spawn(["sh", "-c", "echo up; sleep 100"])
    number = process.pid
    agent.drop(process)
    with pytest.raises(AgentError, match="it was dropped"):
        process.wait(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert shell(agent, "exit 1").code == 1


def test_commands_end_with_the_connection(host: Host) -> None:
    client = Agent(host.link)
    numbers = [client.spawn(["sleep", "100"]).pid for _ in range(3)]
    client.close()
    assert host.end() == (0, "")
    deadline = time.monotonic() + PATIENCE
    while any(map(_runs, numbers)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(number: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_client_takes_over_from_another(host: Host) -> None:
    # The other one's commands were at work, and nobody read what they wrote.
    script = "echo pid $$; exec cat /dev/zero"
    host.link.sendall(protocol.spawn(1, ["sh", "-c", script], env={}))
    decoder = Decoder()
    frames: list[Frame] = []
    while not any(frame.kind == Kind.STDOUT for frame in frames):
        frames += decoder.feed(host.link.recv(1000))
    pid = int(next(f.payload for f in frames if f.kind == Kind.STDOUT).split()[1])
    assert os.path.exists(f"/proc/{pid}")
    agent = Agent(host.link, takes_over=True)
    try:
        assert agent.wait_ready(PATIENCE).release == os.uname().release
        assert agent.boots == 1
        assert shell(agent, "echo mine")[:2] == (0, b"mine\n")
        until = time.monotonic() + PATIENCE
        while os.path.exists(f"/proc/{pid}"):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        agent.close()
    assert host.end() == (0, "")


def test_an_agent_that_dies_wakes_everybody(host: Host) -> None:
    ended = threading.Event()
    client = Agent(host.link, on_end=ended.set)
    running = [client.spawn(["sleep", "3"]) for _ in range(3)]
    assert running[0].pid
    said: list[str] = []

    def wait(process: object) -> None:
        assert hasattr(process, "wait")
        try:
            process.wait(None)
        except AgentError as error:
            said.append(str(error))

    waiters = [threading.Thread(target=wait, args=(process,)) for process in running]
    for waiter in waiters:
        waiter.start()
    host.process.kill()
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert said == ["agent: the connection to the guest has ended"] * 3
    assert ended.wait(PATIENCE)
    assert client.closed.is_set()
    for call in (
        lambda: client.spawn(["true"]),
        lambda: client.get("/etc/passwd"),
        lambda: client.ping(PATIENCE),
        lambda: client.wait_ready(PATIENCE, boot=2),
        running[0].wait,
    ):
        with pytest.raises(AgentError, match="the connection to the guest has ended"):
            call()
    running[0].kill()
    client.close()
    client.close()


# Files.


@pytest.mark.parametrize("as_file", [False, True])
def test_20_mb_both_ways(agent: Agent, tmp_path: Path, as_file: bool) -> None:
    data = random.Random(2).randbytes(20 * MIB + 1)
    path = tmp_path / "new" / "two words\nand lines"
    agent.put(str(path), io.BytesIO(data) if as_file else data, 0o4711)
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o4711
    assert agent.get(str(path)) == data
    assert os.listdir(path.parent) == [path.name], "nothing else is left"


def test_a_file_is_replaced(agent: Agent, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before, and longer")
    agent.put(str(path), b"")
    assert path.read_bytes() == b""
    assert agent.get(str(path)) == b""


def test_a_file_that_has_no_size(agent: Agent) -> None:
    assert agent.get("/proc/kallsyms") == Path("/proc/kallsyms").read_bytes()


def test_a_device_is_written_in_place(agent: Agent) -> None:
    agent.put("/proc/self/oom_score_adj", b"500\n")
    with pytest.raises(AgentError, match=r"put /proc/self/oom_score_adj 644: .*Invalid argument"):
        agent.put("/proc/self/oom_score_adj", b"many\n")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc/passwd/x", "Not a directory"),
        ("/proc/new/file", "No such file or directory"),
        ("/tmp", "Is a directory"),
        ("/" + "x" * 300, "File name too long"),
        ("/" + "x/" * 3000, "File name too long"),
    ],
)
def test_why_a_file_cannot_be_made(agent: Agent, path: str, said: str) -> None:
    with pytest.raises(AgentError, match=f"agent: put .*: {said}"):
        agent.put(path, b"x")


def test_why_a_file_cannot_be_got(agent: Agent) -> None:
    with pytest.raises(AgentError, match="get '/no such': /no such: No such file or directory"):
        agent.get("/no such")
    with pytest.raises(AgentError, match="get /tmp: /tmp: Is a directory"):
        agent.get("/tmp")
    with pytest.raises(AgentError, match="larger than 1000 bytes"):
        agent.get("/proc/kallsyms", limit=1000)


def test_what_is_there(agent: Agent, tmp_path: Path) -> None:
    assert agent.exists("/tmp")
    assert agent.exists("/dev/null")
    assert not agent.exists(f"{tmp_path}/none")
    assert not agent.exists("/etc/passwd/none")


class Broken(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError("the disk is broken")
        return super().read(size)


def test_a_file_that_cannot_be_read_here_leaves_nothing_there(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the disk is broken"):
        agent.put(str(tmp_path / "file"), Broken(bytes(3 * MIB)))
    deadline = time.monotonic() + PATIENCE
    while os.listdir(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fifo_blocks_one_call_and_nothing_else(agent: Agent, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(AgentTimeoutError, match=r"get .*: not ended within 0\.\d"):
        agent.get(str(fifo), timeout=0.2)
    assert agent.exists(str(fifo))


def test_power_is_not_for_a_host(agent: Agent) -> None:
    result = agent.power("off").wait(PATIENCE)
    assert result[:3] == (1, b"", b"power: Function not implemented\n")


# A client that breaks the rules: told in a line, never a crash.


def spawn(*words: bytes, flags: int = 0, count: int | None = None) -> bytes:
    fixed = flags.to_bytes(4, "little") + (len(words) - 1 if count is None else count).to_bytes(
        4, "little"
    )
    return fixed + b"".join(word + b"\0" for word in words)


BREACHES = {
    "no such kind": [Frame(1, Kind.HELLO)],
    "a command of nothing": [Frame(1, Kind.SPAWN)],
    "a folder alone": [Frame(1, Kind.SPAWN, spawn(b"/", count=0))],
    "more arguments than strings": [Frame(1, Kind.SPAWN, spawn(b"/", b"true", count=2))],
    "as many as can be said": [Frame(1, Kind.SPAWN, spawn(b"/", b"true", count=2**32 - 1))],
    "unknown flags": [Frame(1, Kind.SPAWN, spawn(b"/", b"true", flags=8))],
    "no end of the last string": [Frame(1, Kind.SPAWN, spawn(b"/", b"true")[:-1])],
    "a number twice": [Frame(1, Kind.SPAWN, spawn(b"/", b"sleep", b"9"))] * 2,
    "input without a pipe": [
        Frame(1, Kind.SPAWN, spawn(b"/", b"sleep", b"9")),
        Frame(1, Kind.INPUT, b"x"),
    ],
    "input after its end": [
        Frame(1, Kind.SPAWN, spawn(b"/", b"sleep", b"9", flags=1)),
        Frame(1, Kind.INPUT_END),
        Frame(1, Kind.INPUT, b"x"),
    ],
    "input beyond the credit": [
        Frame(1, Kind.SPAWN, spawn(b"/", b"sleep", b"9", flags=1)),
        *[Frame(1, Kind.INPUT, bytes(65535))] * (protocol.WINDOW // 65535 + 3),
    ],
    "a reset of 65 bytes": [Frame(0, Kind.RESET, bytes(65))],
    "a signal of three bytes": [Frame(1, Kind.KILL, b"123")],
}


@pytest.mark.parametrize("frames", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_ends_the_agent_with_a_line(host: Host, frames: list[Frame]) -> None:
    with contextlib.suppress(ConnectionError):
        host.link.sendall(b"".join(map(protocol.encode, frames)))
    status, said = host.end()
    assert status == 1
    assert said.endswith(": Protocol error\n")
    assert said.startswith("pyvirt-agent: ")
    got = []
    decoder = Decoder()
    with contextlib.suppress(ConnectionError):
        while data := host.link.recv(65536):
            got += decoder.feed(data)
    assert got[0].kind == Kind.HELLO
    assert got[-1] == Frame(0, Kind.FAILED, b"Protocol error")


ANY_FRAME = st.builds(
    Frame,
    st.integers(0, 3),
    st.sampled_from([k for k in Kind if k <= Kind.RESET]),
    st.binary(max_size=12)
    | st.just(bytes(60_000))
    | st.sampled_from(
        [spawn(b"/", b"cat", flags=1), spawn(b"/", b"true", b"x"), spawn(b"/", b"\xff")]
    )
    | st.sampled_from([spawn(b"/", b"get", b"/etc", flags=2), spawn(b"/", b"put", b"a", flags=3)]),
)


@given(st.lists(ANY_FRAME, max_size=20), st.binary(max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_frames_crash_the_agent(binary: Path, frames: list[Frame], tail: bytes) -> None:
    host = Host(binary)
    try:
        with contextlib.suppress(ConnectionError):
            host.link.sendall(b"".join(map(protocol.encode, frames)) + tail)
            host.link.shutdown(socket.SHUT_WR)
        status, said = host.end()
        assert status in {0, 1}
        assert status == 0 or said.endswith(": Protocol error\n"), said
    finally:
        host.kill()


def test_a_client_that_does_not_read_is_waited_for(host: Host) -> None:
    requests = [protocol.spawn(n, ["seq", "100000"], env={}) for n in range(1, 9)]
    host.link.sendall(b"".join(requests) + protocol.encode(Frame(9, Kind.PING)) * 5000)
    time.sleep(0.3)
    decoder = Decoder()
    frames: list[Frame] = []
    while sum(f.kind in {Kind.EXIT, Kind.PONG} for f in frames) < 5008:
        frames += decoder.feed(host.link.recv(65536))
    expected = b"".join(b"%d\n" % n for n in range(1, 100001))
    for number in range(1, 9):
        mine = [f for f in frames if f.id == number]
        assert b"".join(f.payload for f in mine if f.kind == Kind.STDOUT) == expected
        assert mine[-1].kind == Kind.EXIT


@pytest.mark.parametrize("argument", ["", "-1", "99", "x", "99999999999999"])
def test_a_descriptor_that_is_none(binary: Path, argument: str) -> None:
    done = subprocess.run(
        [binary, "-fd", argument], capture_output=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"pyvirt-agent: {argument}: Bad file descriptor\n"


def test_wrong_usage(binary: Path) -> None:
    done = subprocess.run([binary, "port"], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (2, b"usage: pyvirt-agent [-fd N]\n")
