"""The lab's agent and its client, joined by a socket pair; the agent runs under sanitizers."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import signal
import socket
import subprocess
import tempfile
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyvirt.errors import BackendError
from pyvirt.harness.guest import program
from pyvirt.harness.lab import client as client_module
from pyvirt.harness.lab import image, protocol
from pyvirt.harness.lab.client import Client, Command, LabHangsError, LinkClosedError
from pyvirt.harness.lab.protocol import Decoder, Frame, Kind
from pyvirt.harness.lab.signals import Signals

SANITIZED = (
    *("gcc", "-g", "-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Wconversion"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
)
PATIENCE = 30.0
HELLO = Frame(0, Kind.HELLO, protocol.VERSION.to_bytes(4, "little"))


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent"
    program.compile_into(path, Path(image.__file__).parent, SANITIZED)
    return path


class Agent:
    """The agent's process and this side of its link."""

    def __init__(self, binary: Path, argument: str | None = None) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(PATIENCE)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # it often has to wait
        with theirs:
            self.process = subprocess.Popen(
                [str(binary), argument or str(theirs.fileno()), "/"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )

    def end(self) -> tuple[int, str]:
        """Close the link; return the agent's status and what it said."""
        self.link.close()
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said.decode()


@pytest.fixture
def agent(binary: Path) -> Iterator[Agent]:
    one = Agent(binary)
    try:
        yield one
        assert one.end() == (0, "")
    finally:
        one.process.kill()
        one.process.wait()
        one.link.close()


class Result(NamedTuple):
    status: int
    out: bytes
    err: bytes


@contextlib.contextmanager
def files(stdin: bytes) -> Iterator[tuple[int, int, int]]:
    with contextlib.ExitStack() as stack:
        three = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        three[0].write(stdin)
        three[0].seek(0)
        fds = tuple(file.fileno() for file in three)
        yield fds[0], fds[1], fds[2]


def everything(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def run(
    agent: Agent,
    *argv: str,
    stdin: bytes = b"",
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    forward: Sequence[tuple[socket.socket, str]] = (),
    timeout: float | None = PATIENCE,
) -> Result:
    command = Command(argv, cwd, {"PATH": os.environ["PATH"], **(env or {})})
    with files(stdin) as fds, Signals() as signals:
        client = Client(agent.link, command, signals, fds=fds, forward=forward, timeout=timeout)
        return Result(client.run(), everything(fds[1]), everything(fds[2]))


def shell(agent: Agent, script: str, **options: object) -> Result:
    return run(agent, "sh", "-c", script, **options)  # type: ignore[arg-type]


@pytest.mark.long
def test_status_and_both_outputs(agent: Agent) -> None:
    assert shell(agent, "printf out; printf err >&2; exit 3") == Result(3, b"out", b"err")


def test_a_signal_is_128_and_its_number(agent: Agent) -> None:
    assert shell(agent, "kill -KILL $$").status == 128 + signal.SIGKILL


def test_streams_are_binary_clean_both_ways(agent: Agent) -> None:
    data = random.Random(1).randbytes(3_000_001)
    result = shell(agent, "tee /dev/stderr", stdin=data)
    assert (result.status, result.out, result.err) == (0, data, data)


def test_stdin_ends(agent: Agent) -> None:
    assert shell(agent, "wc -c", stdin=b"12345").out.strip() == b"5"


def test_environment_folder_and_umask(agent: Agent, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        result = shell(agent, 'echo "$A"; pwd; umask', cwd=str(tmp_path), env={"A": "x=y\nz"})
    finally:
        os.umask(before)
    assert result.out.decode() == f"x=y\nz\n{tmp_path}\n0027\n"


def test_the_command_has_a_clean_set_of_signals_and_descriptors(agent: Agent) -> None:
    script = "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l"
    words = shell(agent, script).out.split()
    assert words[::2] == [b"SigBlk:", b"SigIgn:", b"4"]
    # Signals 32 and 33 are the C library's own; who starts the tests may have ignored them.
    assert [int(word, 16) & ~(3 << 31) for word in words[1::2]] == [0, 0]


@pytest.mark.parametrize(
    ("argv", "cwd", "status", "text"),
    [
        (("/no/such",), "/", 127, b"pyvirt: lab: /no/such: No such file or directory\n"),
        (("no-such-command",), "/", 127, b"No such file"),
        (("/etc/passwd",), "/", 126, b"Permission denied"),
        (("true",), "/no/where", 126, b"pyvirt: lab: /no/where: No such file"),
    ],
)
def test_what_cannot_be_started(
    agent: Agent, argv: tuple[str, ...], cwd: str, status: int, text: bytes
) -> None:
    result = run(agent, *argv, cwd=cwd)
    assert result.status == status
    assert text in result.err


def test_what_a_left_behind_process_writes_is_not_waited_for(agent: Agent) -> None:
    result = shell(agent, "(sleep 60; echo late) & echo $! >&2; echo now")
    os.kill(int(result.err), signal.SIGKILL)
    assert (result.status, result.out) == (0, b"now\n")


def test_endless_output_of_a_left_behind_process_does_not_hold_up_the_end(agent: Agent) -> None:
    result = shell(agent, "yes & echo $! >&2; sleep 0.2; exit 5")
    os.kill(int(result.err), signal.SIGKILL)
    assert result.status == 5


def test_the_deadline(agent: Agent) -> None:
    with pytest.raises(BackendError, match=r"sleep: not ended within 0.5 s; .*-timeout"):
        run(agent, "sleep", "3", timeout=0.5)
    agent.link.settimeout(PATIENCE)


def test_an_agent_that_dies(binary: Path) -> None:
    agent = Agent(binary)
    threading.Timer(0.3, agent.process.kill).start()
    with pytest.raises(LinkClosedError):
        run(agent, "sleep", "3")
    agent.end()


@contextlib.contextmanager
def signalling(ready: Path, *numbers: int) -> Iterator[None]:
    """Send signals to this process, one for each line that appears in the file `ready`."""

    def send() -> None:
        for line, number in enumerate(numbers, 1):
            while not (ready.exists() and len(ready.read_bytes().splitlines()) >= line):
                time.sleep(0.01)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE)


def test_a_signal_is_passed_on(agent: Agent, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'echo got; exit 7' TERM; echo >{ready}; while :; do sleep 0.05; done"
    with signalling(ready, signal.SIGTERM):
        result = shell(agent, script)
    assert (result.status, result.out) == (7, b"got\n")


def test_the_second_signal_ends_it(agent: Agent, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'echo >>{ready}' INT; echo >{ready}; while :; do sleep 0.05; done"
    with signalling(ready, signal.SIGINT, signal.SIGINT):
        assert shell(agent, script).status == 128 + signal.SIGINT


def test_a_signal_before_the_command_ends_it_at_once(binary: Path) -> None:
    link, theirs = socket.socketpair()
    with link, theirs, files(b"") as fds, Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        client = Client(link, Command(["true"], "/", {}), signals, fds=fds, timeout=PATIENCE)
        assert client.run() == 128 + signal.SIGHUP


def test_a_lab_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_SILENCE", 0.2)
    link, theirs = socket.socketpair()
    with link, theirs, files(b"") as fds, Signals() as signals:
        theirs.sendall(protocol.encode(HELLO))
        client = Client(link, Command(["true"], "/", {}), signals, fds=fds, timeout=PATIENCE)
        with pytest.raises(LabHangsError, match=r"no sign of life .* run it again"):
            client.run()


def test_the_client_keeps_interrupting_a_lab() -> None:
    """An interrupt that the emulator lost is taken with the next one, if there is a next one."""
    link, theirs = socket.socketpair()
    with link, theirs, files(b"") as fds, Signals() as signals:
        theirs.sendall(protocol.encode(HELLO))
        client = Client(link, Command(["true"], "/", {}), signals, fds=fds, timeout=0.5)
        with pytest.raises(BackendError, match="not ended"):
            client.run()
        sent = Decoder().feed(theirs.recv(1 << 20))
    assert 3 <= sent.count(Frame(0, Kind.ALIVE)) <= 11


def test_signals_act_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Signals():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


# Without the client: what it would never do, or not at a chosen moment.


class Talk:
    """Frames to and from an agent, one by one."""

    def __init__(self, agent: Agent) -> None:
        self.link = agent.link
        self.decoder = Decoder()
        self.arrived: deque[Frame] = deque()
        self.frames: list[Frame] = []

    def send(self, *frames: Frame) -> None:
        self.link.sendall(b"".join(map(protocol.encode, frames)))

    def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Return the next frame that is wanted; what has been looked at is in `frames`."""
        while True:
            while not self.arrived:
                data = self.link.recv(65536)
                assert data, "the agent has gone"
                self.arrived.extend(self.decoder.feed(data))
            self.frames.append(self.arrived.popleft())
            if wanted(self.frames[-1]):
                return self.frames[-1]

    def start(self, *argv: str, mask: int = 0, rows: int = 24, columns: int = 80) -> None:
        frames = [Frame(0, Kind.ENV, b"PATH=" + os.environb[b"PATH"])]
        frames += [Frame(0, Kind.ARG, word.encode()) for word in argv]
        self.send(*frames, protocol.start(mask, 0o022, rows, columns))

    def data(self, channel: int) -> bytes:
        return b"".join(f.payload for f in self.frames if f[:2] == (channel, Kind.DATA))

    def until_data(self, channel: int, text: bytes) -> None:
        self.until(lambda f: f.kind == Kind.DATA and text in self.data(channel))

    def status(self) -> int:
        return protocol.words(self.until(lambda f: f.kind == Kind.EXIT), 1)[0]


def test_hello_comes_first(agent: Agent) -> None:
    talk = Talk(agent)
    talk.until(lambda f: True)
    assert talk.frames == [Frame(0, Kind.HELLO, bytes([protocol.VERSION, 0, 0, 0]))]


def test_the_agent_shows_that_it_lives(agent: Agent) -> None:
    talk = Talk(agent)
    for _ in range(3):
        talk.until(lambda f: f == Frame(0, Kind.ALIVE))


def test_a_knock_changes_nothing_in_the_lab(agent: Agent) -> None:
    talk = Talk(agent)
    talk.send(Frame(0, Kind.ALIVE))
    talk.start("sh", "-c", "exit 3")
    talk.send(Frame(0, Kind.ALIVE))
    assert talk.status() == 3


def test_frames_may_come_byte_by_byte(agent: Agent) -> None:
    agent.link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    talk = Talk(agent)
    frames = [
        Frame(0, Kind.ENV, b"PATH=" + os.environb[b"PATH"]),
        *(Frame(0, Kind.ARG, word) for word in (b"sh", b"-c", b"cat; exit 9")),
        protocol.start(0, 0o022, 0, 0),
        Frame(1, Kind.DATA, b"some text"),
        Frame(1, Kind.EOF),
    ]
    for byte in b"".join(map(protocol.encode, frames)):
        talk.link.sendall(bytes([byte]))
    assert talk.status() == 9
    assert talk.data(protocol.STDOUT) == b"some text"


def test_a_blocked_stream_blocks_no_other(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("sh", "-c", "(echo begin; yes) & read x; echo $x >&2; kill $!; read y")
    full = protocol.WINDOW
    talk.until(lambda f: len(talk.data(protocol.STDOUT)) == full)
    talk.send(Frame(1, Kind.DATA, b"still here\n"))
    talk.until_data(protocol.STDERR, b"still here\n")
    assert len(talk.data(protocol.STDOUT)) == full
    talk.send(Frame(2, Kind.CREDIT, (1000).to_bytes(4, "little")))
    talk.until(lambda f: len(talk.data(protocol.STDOUT)) == full + 1000)
    talk.send(Frame(2, Kind.CLOSE), Frame(1, Kind.EOF))
    assert talk.status() == 1


def test_two_busy_streams_share_a_slow_link(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("sh", "-c", "yes & yes >&2 & read x; kill %1 %2; exit 0")
    got = {protocol.STDOUT: 0, protocol.STDERR: 0}
    while min(got.values()) < 1_000_000:
        assert sum(got.values()) < 200_000_000, "one of the two starves"
        frame = talk.until(lambda f: f.kind == Kind.DATA)
        got[frame.channel] += len(frame.payload)
        talk.send(Frame(frame.channel, Kind.CREDIT, len(frame.payload).to_bytes(4, "little")))
    talk.send(Frame(2, Kind.CLOSE), Frame(3, Kind.CLOSE), Frame(1, Kind.EOF))
    talk.status()


def test_frames_of_any_size_fit_the_window(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("cat")
    data = random.Random(3).randbytes(1_000_000)
    left, credit = data, protocol.WINDOW
    while left:
        size = min(credit, random.Random(len(left)).randrange(1, 40000))
        if size:
            talk.send(Frame(1, Kind.DATA, left[:size]))
            left, credit = left[size:], credit - size
        if credit < 20000:
            frame = talk.until(lambda f: f.kind in {Kind.CREDIT, Kind.DATA})
            if frame.kind == Kind.CREDIT:
                credit += protocol.words(frame, 1)[0]
            else:
                talk.send(Frame(2, Kind.CREDIT, len(frame.payload).to_bytes(4, "little")))
    talk.send(Frame(1, Kind.EOF))
    while len(talk.data(protocol.STDOUT)) < len(data):
        frame = talk.until(lambda f: f.kind == Kind.DATA)
        talk.send(Frame(2, Kind.CREDIT, len(frame.payload).to_bytes(4, "little")))
    assert talk.status() == 0
    assert talk.data(protocol.STDOUT) == data


def test_a_reader_that_went_away_ends_the_writer(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("yes")
    talk.until_data(protocol.STDOUT, b"y")
    talk.send(Frame(2, Kind.CLOSE))
    assert talk.status() == 128 + signal.SIGPIPE


def test_a_command_that_reads_no_more_says_so(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("sh", "-c", "exec <&-; sleep 0.3")
    talk.until(lambda f: f == Frame(1, Kind.CLOSE))
    assert talk.status() == 0


# A terminal.

TTY = 0b111


def test_terminal_size_and_its_changes(agent: Agent) -> None:
    talk = Talk(agent)
    script = "tty; stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep .02; done"
    talk.start("sh", "-c", script, mask=TTY, rows=31, columns=77)
    talk.until_data(protocol.TERMINAL, b"ready")
    talk.send(protocol.winsize(50, 132))
    assert talk.status() == 0
    words = talk.data(protocol.TERMINAL).split()
    assert words[0].startswith(b"/dev/pts/")
    assert words[1:] == [b"31", b"77", b"ready", b"50", b"132"]


def test_interrupt_character(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("cat", mask=TTY)
    talk.send(Frame(4, Kind.DATA, b"once\n"))
    talk.until_data(protocol.TERMINAL, b"once\r\nonce\r\n")
    talk.send(Frame(4, Kind.DATA, b"\x03"))
    assert talk.status() == 128 + signal.SIGINT


def test_terminal_output_is_complete(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("sh", "-c", "seq 9000; printf end", mask=TTY)
    got = 0
    while not any(f.kind == Kind.EXIT for f in talk.frames):
        talk.until(lambda f: True)
        new = len(talk.data(protocol.TERMINAL)) - got
        if new >= 4096:
            got += new
            talk.send(Frame(4, Kind.CREDIT, new.to_bytes(4, "little")))
    expected = "".join(f"{n}\r\n" for n in range(1, 9001)) + "end"
    assert talk.data(protocol.TERMINAL).decode() == expected


def test_a_stream_beside_the_terminal_stays_apart(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start(
        "sh", "-c", "test -t 0 && test -t 2 && ! test -t 1 && echo a && echo b >&2", mask=0b101
    )
    assert talk.status() == 0
    assert talk.data(protocol.STDOUT) == b"a\n"
    assert talk.data(protocol.TERMINAL) == b"b\r\n"


def test_newlines_are_left_to_a_host_terminal_that_is_not_raw(agent: Agent) -> None:
    talk = Talk(agent)
    talk.start("sh", "-c", "echo a; test -t 1", mask=0b110)
    assert talk.status() == 0
    assert talk.data(protocol.TERMINAL) == b"a\n"


def test_the_hosts_terminal_becomes_the_commands(agent: Agent) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (41, 123))
    before = termios.tcgetattr(slave)
    seen: list[list[object]] = []

    def type_interrupt() -> None:
        while b"ready" not in os.read(master, 4096):
            pass
        seen.append(termios.tcgetattr(slave))
        os.write(master, b"\x03")

    thread = threading.Thread(target=type_interrupt, daemon=True)
    thread.start()
    script = "stty size; trap 'echo; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    command = Command(["sh", "-c", script], "/", {"PATH": os.environ["PATH"]})
    try:
        with Signals() as signals:
            client = Client(agent.link, command, signals, fds=[slave] * 3, timeout=PATIENCE)
            assert client.run() == 4
        thread.join(PATIENCE)
        assert not cast(int, seen[0][3]) & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(slave)
        os.close(master)


# Sockets.


@contextlib.contextmanager
def server(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Accept connections at `path`; each is answered in turn."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


def receive_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def echo_after_end(connection: socket.socket) -> None:
    connection.sendall(receive_all(connection))


@contextlib.contextmanager
def session(agent: Agent, host: Path, lab: Path) -> Iterator[Callable[[], socket.socket]]:
    """Run `cat` in another thread, forwarding `host` to `lab`; yields what connects to `host`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host))
        listener.listen()
        listener.setblocking(False)
        read, write = os.pipe()
        thread = threading.Thread(target=_cat, args=(agent, read, listener, str(lab)))
        thread.start()

        def connect() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(PATIENCE)
            connection.connect(str(host))
            return connection

        try:
            yield connect
        finally:
            os.close(write)
            thread.join(PATIENCE)
            os.close(read)


def _cat(agent: Agent, stdin: int, listener: socket.socket, lab: str) -> None:
    command = Command(["cat"], "/", {"PATH": os.environ["PATH"]})
    with files(b"") as fds, Signals() as signals:
        Client(
            agent.link,
            command,
            signals,
            fds=(stdin, fds[1], fds[2]),
            forward=[(listener, lab)],
            timeout=PATIENCE,
        ).run()


def test_a_socket_carries_both_ways_and_half_closes(agent: Agent, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(700_001)
    lab = tmp_path / "lab"
    with server(lab, echo_after_end), session(agent, tmp_path / "host", lab) as connect:
        for _ in range(3):
            with connect() as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                assert receive_all(connection) == data


def test_the_answer_outlives_a_server_that_closes_early(agent: Agent, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    with (
        server(lab, lambda c: c.sendall(b"no time")),
        session(agent, tmp_path / "host", lab) as connect,
        connect() as connection,
    ):
        assert receive_all(connection) == b"no time"


def test_a_socket_that_comes_late_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    with session(agent, tmp_path / "host", lab) as connect, connect() as connection:
        connection.sendall(b"early")
        connection.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        with server(lab, echo_after_end):
            assert receive_all(connection) == b"early"


def test_more_connections_than_channels_wait_their_turn(agent: Agent, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    with server(lab, echo_after_end), session(agent, tmp_path / "host", lab) as connect:
        for _ in range(len(protocol.SOCKETS) + 20):
            with connect() as connection:
                connection.sendall(b"x")
                connection.shutdown(socket.SHUT_WR)
                assert receive_all(connection) == b"x"


def test_a_number_may_be_used_again_at_once(agent: Agent, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    talk = Talk(agent)
    with server(lab, lambda c: None):
        for _ in range(5):
            talk.send(Frame(16, Kind.OPEN, os.fsencode(lab)), Frame(16, Kind.EOF))
            talk.until(lambda f: f.kind == Kind.CLOSE)
            talk.send(Frame(16, Kind.CLOSE))


# Breaches of the protocol: told in a line, never a crash.

BREACHES = {
    "no such channel": (80 | 11 << 16).to_bytes(8, "little"),
    "too long": protocol.encode(Frame(0, Kind.ARG, b""))[:4] + b"\xff\xff\xff\x7f",
    "data on a closed channel": protocol.encode(Frame(16, Kind.DATA, b"x")),
    "start without a command": protocol.encode(protocol.start(0, 0, 0, 0)),
    "open of a stream": protocol.encode(Frame(1, Kind.OPEN, b"/x")),
    "path too long": protocol.encode(Frame(16, Kind.OPEN, b"x" * 108)),
    "open twice": protocol.encode(Frame(16, Kind.OPEN, b"/none")) * 2,
    "data beyond the credit": protocol.encode(Frame(16, Kind.OPEN, b"/none"))
    + protocol.encode(Frame(16, Kind.DATA, bytes(protocol.WINDOW // 8))) * 9,
    "credit beyond the window": protocol.encode(Frame(16, Kind.OPEN, b"/none"))
    + protocol.encode(Frame(16, Kind.CREDIT, b"\1\0\0\0")),
    "data after the end": protocol.encode(Frame(16, Kind.OPEN, b"/none"))
    + protocol.encode(Frame(16, Kind.EOF))
    + protocol.encode(Frame(16, Kind.DATA, b"x")),
}


@pytest.mark.parametrize("wire", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_ends_the_agent_with_a_line(binary: Path, wire: bytes) -> None:
    agent = Agent(binary)
    agent.link.sendall(wire)
    assert agent.process.wait(PATIENCE) == 1
    assert agent.end() == (1, "agent: the connection: Protocol error\n")


ANY_FRAME = st.builds(
    Frame,
    st.integers(1, 79) | st.sampled_from([0, 16, 17]),
    st.sampled_from([k for k in Kind if k not in {Kind.ARG, Kind.SIGNAL}]),
    st.binary(max_size=12) | st.just(b"/none") | st.just(bytes(30000)),
)


@given(st.lists(ANY_FRAME, max_size=20), st.binary(max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_frames_crash_the_agent(binary: Path, frames: list[Frame], tail: bytes) -> None:
    agent = Agent(binary)
    with contextlib.suppress(ConnectionError):
        agent.link.sendall(b"".join(map(protocol.encode, frames)) + tail)
        agent.link.shutdown(socket.SHUT_WR)
    status, said = agent.end()
    assert (status, said) in {
        (0, ""),
        (1, "agent: the connection: Protocol error\n"),
        (1, "agent: the connection: Argument list too long\n"),
    }


def test_arguments_beyond_all_bounds_are_refused(binary: Path) -> None:
    agent = Agent(binary)
    frame = protocol.encode(Frame(0, Kind.ARG, b"x" * 100_000))
    with contextlib.suppress(ConnectionError):
        for _ in range(90):
            agent.link.sendall(frame)
    assert agent.end()[0] == 1


def test_a_port_that_is_none(binary: Path) -> None:
    agent = Agent(binary, "/etc/passwd/port")
    assert agent.process.wait(PATIENCE) == 1
    assert agent.end() == (1, "agent: /etc/passwd/port: Not a directory\n")
