"""`pyvirt run` as its user meets it: a process with streams, files, signals and an exit status."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from .support import PATIENCE

pytestmark = pytest.mark.any_kvm
PYVIRT = Path(sys.executable).parent / "pyvirt"
TEXT = b"hello from a tiny guest\nwith a second line\n"
STATUS = 42
STAGES = (
    *("exec", "modules imported", "VM ready", "kernel loaded"),
    *("first KVM_RUN", "first console byte", "end"),
)
# Long enough that a guest that ran would have ended; only ever waited for to see nothing happen.
A_WHILE = 0.3

Kernel = Callable[[str], Path]
Process = subprocess.Popen[bytes]
Start = Callable[..., Process]


def command(kernel: Path | str, *options: str) -> list[str]:
    return [str(PYVIRT), "run", "-accel", "kvm", "-m", "128", "-kernel", str(kernel), *options]


def run(*words: str, cwd: Path | None = None) -> tuple[int, bytes, str]:
    """Run pyvirt to its end; return exit status, stdout and stderr."""
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False, cwd=cwd
    )
    return done.returncode, done.stdout, done.stderr.decode()


def wait_for(condition: Callable[[], object], what: str) -> None:
    patience = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < patience, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.01)


def wait_for_pid_file(process: Process, path: Path) -> None:
    wait_for(
        lambda: (path.exists() and path.read_text().endswith("\n")) or process.poll() is not None,
        "the pid file",
    )
    assert process.poll() is None
    assert int(path.read_text()) == process.pid


def is_running(pid: int) -> bool:
    """Return whether the process is there and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process with pipes; it is killed at the end if need be."""
    started: list[Process] = []

    def go(*words: str) -> Process:
        pipe = subprocess.PIPE
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_stdout_is_the_guests_alone(kernel: Kernel) -> None:
    assert run(*command(kernel("console"))) == (STATUS, TEXT, "")


def test_two_dashes_and_equals_signs_mean_the_same(kernel: Kernel) -> None:
    words = [str(PYVIRT), "run", "--accel=kvm", f"--kernel={kernel('console')}", "--smp=2"]
    assert run(*words) == (STATUS, TEXT, "")


def test_the_log_goes_to_stderr_or_to_its_file(kernel: Kernel, tmp_path: Path) -> None:
    status, out, err = run(*command(kernel("triple_fault")))
    assert (status, out) == (1, b"")
    assert err.startswith("pyvirt: vCPU 0: the guest triple-faulted\n")
    assert re.search(r"\brip [0-9a-f]{16}\b", err)
    log = tmp_path / "log"
    log.write_text("before\n")
    assert run(*command(kernel("triple_fault"), "-D", str(log))) == (1, b"", "")
    assert log.read_text() == "before\n" + err


def test_the_end_tells_what_devices_have_done(kernel: Kernel, tmp_path: Path) -> None:
    """Which is nothing here; none of them leaves a socket."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 4096)
    with TemporaryDirectory() as folder:
        port = Path(folder, "port")
        status, out, err = run(
            *command(kernel("console"), "-stats", "-disk", str(image)),
            *("-object", "rng-random,id=src,filename=/dev/urandom"),
            *("-device", "virtio-rng-device,rng=src", "-device", "virtio-balloon-device"),
            *("-chardev", f"socket,id=c,path={port},server,nowait"),
            *("-device", "virtio-serial-device", "-device", "virtserialport,chardev=c,name=here"),
        )
        assert not port.exists()
    assert (status, out) == (STATUS, TEXT)
    lines = err.splitlines()
    for name, counters in (
        ("disk ", "  reads 0 "),
        ("virtio-rng rng0", "  requests 0 "),
        ("virtio-balloon balloon0", "  inflated 0 pages"),
        ("virtio-serial serial0", "  received 0.0 MiB"),
    ):
        (place,) = (place for place, line in enumerate(lines) if line.startswith(name))
        assert ": register exits 0 (0 reads, 0 writes)" in lines[place]
        assert lines[place + 1].startswith(counters)


def test_serial_to_a_file(kernel: Kernel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(*command(kernel("console"), "-serial", f"file,path={out}"))
    assert ended == (STATUS, b"", "")
    assert out.read_bytes() == TEXT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("name", ["spin", "halt"])
def test_a_signal_ends_the_guest_cleanly(
    kernel: Kernel, start: Start, tmp_path: Path, name: str, number: int
) -> None:
    pidfile = tmp_path / "pid"
    process = start(*command(kernel(name), "-pidfile", str(pidfile)))
    wait_for_pid_file(process, pidfile)
    process.send_signal(number)
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0
    assert not pidfile.exists()


def test_signals_in_a_row_end_it_as_one_does(kernel: Kernel, start: Start, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    process = start(*command(kernel("spin"), "-pidfile", str(pidfile)))
    wait_for_pid_file(process, pidfile)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        process.send_signal(number)
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0
    assert not pidfile.exists()


def test_a_reader_that_does_not_read_holds_nothing_up(kernel: Kernel, start: Start) -> None:
    process = start(*command(kernel("flood")))
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1) == b"x"
    time.sleep(A_WHILE)  # the pipe is full by now, and the ring behind it
    process.terminate()
    assert process.wait(PATIENCE) == 0


def test_a_reader_of_what_is_told_at_the_end_does_not_hold_it_up(kernel: Kernel) -> None:
    """As far as it is not taken in some time, here a short one, it is lost."""
    program = "from pyvirt.cli import main, run; run._SHOW_S = 0.05; main.main()"
    words = [sys.executable, "-c", program, *command(kernel("console"), "-stats", "-timeline")[1:]]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (STATUS, TEXT)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_reader_that_goes_away_is_survived(kernel: Kernel, start: Start) -> None:
    process = start(*command(kernel("flood")))
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1) == b"x"
    process.stdout.close()
    time.sleep(A_WHILE)
    assert process.poll() is None
    process.terminate()
    process.wait(PATIENCE)
    assert process.returncode == 0
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stdout = None


def test_frozen_prints_nothing(kernel: Kernel, start: Start, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    process = start(*command(kernel("console"), "-S", "-pidfile", str(pidfile)))
    wait_for_pid_file(process, pidfile)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(A_WHILE)
    process.terminate()
    assert process.communicate(timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_standard_stream_may_be_closed(kernel: Kernel, closed: int) -> None:
    words = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *command(kernel("console"))]
    assert run(*words) == (STATUS, b"" if closed == 1 else TEXT, "")


def test_a_pid_file_has_one_owner(kernel: Kernel, start: Start, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    process = start(*command(kernel("console"), "-S", "-pidfile", str(pidfile)))
    wait_for_pid_file(process, pidfile)
    status, out, err = run(*command(kernel("console"), "-pidfile", str(pidfile)))
    assert (status, out) == (2, b"")
    assert err == (
        f"pyvirt: -pidfile {pidfile}: another process has it locked; name another file\n"
    )
    assert pidfile.read_text() == f"{process.pid}\n"


@pytest.mark.parametrize("content", ["1\n", "4194305\n", "", "no number", "-1"])
def test_a_stale_pid_file_is_written_over(kernel: Kernel, tmp_path: Path, content: str) -> None:
    """Its number may live again; 4194304 is the highest pid_max that Linux takes."""
    pidfile = tmp_path / "pid"
    pidfile.write_text(content)
    assert run(*command(kernel("console"), "-pidfile", str(pidfile))) == (STATUS, TEXT, "")
    assert not pidfile.exists()


def test_daemonize_leaves_a_guest_in_the_background(kernel: Kernel, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    options = ("-daemonize", "-pidfile", str(pidfile))
    assert run(*command(kernel("spin"), *options)) == (0, b"", "")
    pid = int(pidfile.read_text())
    try:
        assert is_running(pid)
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not is_running(pid), "its end")
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)
    assert not pidfile.exists()


def test_daemonize_waits_for_the_start_but_not_for_the_end(kernel: Kernel, tmp_path: Path) -> None:
    pidfile, out = tmp_path / "pid", tmp_path / "out"
    options = ("-daemonize", "-pidfile", str(pidfile), "-serial", f"file,path={out}")
    assert run(*command(kernel("console"), *options)) == (0, b"", "")
    wait_for(lambda: not pidfile.exists(), "its end")
    assert out.read_bytes() == TEXT


def test_daemonize_tells_of_a_failure_before_it_goes(kernel: Kernel, tmp_path: Path) -> None:
    status, out, err = run(*command(tmp_path / "missing", "-daemonize"), cwd=tmp_path)
    assert status == 2
    assert out == b""
    assert re.fullmatch(rf"pyvirt: -kernel {tmp_path}/missing: .*\n", err)
    assert os.listdir(tmp_path) == []


def test_timeline_is_a_table_on_stderr(kernel: Kernel) -> None:
    status, out, err = run(*command(kernel("console"), "-timeline"))
    assert (status, out) == (STATUS, TEXT)
    head, *lines = err.splitlines()
    assert head.split() == ["stage", "at", "ms", "took", "ms"]
    rows = [re.fullmatch(r"(.+?) +(\d+\.\d) +(\d+\.\d)", line) for line in lines]
    found = [row.groups() for row in rows if row]
    assert [label for label, _, _ in found] == list(STAGES)
    at = 0.0
    for _, moment, took in found:
        assert float(moment) == pytest.approx(at + float(took), abs=0.15)
        at = float(moment)


def test_timeline_is_a_picture_where_a_file_is_named(kernel: Kernel, tmp_path: Path) -> None:
    picture = tmp_path / "time.svg"
    assert run(*command(kernel("console"), f"-timeline={picture}")) == (STATUS, TEXT, "")
    svg = ET.parse(picture).getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in svg.iter() if element.text}
    assert words >= set(STAGES[1:])


BAD = [
    (["-kernel", "missing"], "-kernel missing: No such file"),
    (["-kernel", "."], "-kernel .: not a regular file"),
    (["-kernel", "text"], "-kernel text: not a kernel"),
    (["-kernel", "short"], "-kernel short: truncated"),
    (["-kernel", "empty"], "-kernel empty: not a kernel"),
    (["-initrd", "missing"], "-initrd missing: No such file"),
    (["-initrd", "empty"], "-initrd empty: empty"),
    (["-initrd", "huge"], "-initrd huge: .* do not fit .*-m"),
    (["-append", "x" * 5000], "-append: 5000 bytes"),
    (["-m", "64"], "-m 64: not between 128M and 512G"),
    (["-m", "513G"], "-m 513G: not between"),
    (["-m", "12Q"], "-m 12Q: not a size"),
    (["-smp", "0"], "-smp 0: "),
    (["-smp", "255"], "-smp 255: "),
    (["-serial", "carrier-pigeon"], "-serial carrier-pigeon: "),
    (["-serial", "file,path=missing/out"], "-serial file: missing/out: No such file"),
    (["-pidfile", "missing/pid"], "-pidfile missing/pid: No such file"),
    (["-D", "missing/log"], "-D missing/log: No such file"),
    (["-timeline=missing/x.svg"], "-timeline=missing/x.svg: cannot be written"),
    (["-accel", "steam"], "-accel steam: not one of"),
    (["-frobnicate"], "-frobnicate: no such option"),
    (["stray"], "stray: not an option"),
    (["-name", "a", "-name", "b"], "-name: given twice"),
    (["-name", "n" * 256], "-name: 256 characters"),
    (["-daemonize", "-serial", "stdio"], "-serial stdio: not with -daemonize"),
    (["-smp"], "-smp: needs a value"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w)[:30] for w, _ in BAD])
def test_bad_input_is_one_line_and_status_2(
    kernel: Kernel, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "text").write_text("This is no kernel.\n" * 100)
    (tmp_path / "short").write_bytes(kernel("console").read_bytes()[:100])
    (tmp_path / "empty").touch()
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 30)
    defaults = {
        "-accel": "kvm",
        "-m": "128",
        "-kernel": str(kernel("console")),
        "-pidfile": "pid",
        "-serial": "socket,path=socket,server,nowait",
    }
    for name in words:
        defaults.pop(name, None)
    given = [word for pair in defaults.items() for word in pair]
    before = sorted(os.listdir(tmp_path))
    status, out, err = run(str(PYVIRT), "run", *given, *words, cwd=tmp_path)
    assert (status, out) == (2, b""), err
    assert re.fullmatch(f"pyvirt: {message}.*\n", err)
    assert sorted(os.listdir(tmp_path)) == before
