"""Messages: the level that is asked for, to stderr or to a file, and never a fault of their own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.vmm.log import BURST, INTERVAL_S, LEVELS, LimitedLog, Log

from ..refusal import refusal, unprivileged

PATIENCE = 30.0


def say_all(log: Log) -> None:
    for level in LEVELS:
        getattr(log, level)(f"an {level} message")


@pytest.mark.parametrize("count", range(1, 5))
def test_level_says_what_is_written(
    count: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYVIRT_LOG_LEVEL", LEVELS[count - 1])
    say_all(Log())
    out, err = capfd.readouterr()
    assert out == "", "stdout is the guest's"
    assert err == "".join(f"pyvirt: an {level} message\n" for level in LEVELS[:count])


def test_default_level(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PYVIRT_LOG_LEVEL", raising=False)
    say_all(Log())
    assert capfd.readouterr().err.splitlines() == [
        "pyvirt: an error message",
        "pyvirt: an warning message",
    ]


@pytest.mark.parametrize("name", ["", "loud", "DEBUG", "0"])
def test_unknown_level(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVIRT_LOG_LEVEL", name)
    assert refusal(Log) == f"PYVIRT_LOG_LEVEL={name}: not one of error, warning, info, debug"


def test_file_is_appended_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_text("before\n", encoding="utf-8")
    log = Log()
    log.open(str(path))
    log.error("one")
    log.error("two")
    assert path.read_text(encoding="utf-8") == "before\npyvirt: one\npyvirt: two\n"
    assert capfd.readouterr().err == ""


def test_new_file_is_not_for_everyone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = os.umask(0)
    try:
        Log().open(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_file_in_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "no" / "log"
    message = refusal(lambda: Log().open(str(path)))
    assert message == f"-D {path}: No such file or directory; name a file in a writable folder"


def test_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch(0)
    with unprivileged():
        message = refusal(lambda: Log().open(str(path)))
    assert message == f"-D {path}: Permission denied; name a file in a writable folder"


def test_reader_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Log()
    log.open(str(path))
    os.close(reader)
    log.error("nobody hears this")


def test_a_fifo_needs_its_reader_and_never_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    message = refusal(lambda: Log().open(str(path)))
    assert message == f"-D {path}: No such device or address; start its reader first"
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = Log()
    log.open(str(path))
    for _ in range(100):
        log.error("x" * 4096)
    os.close(reader)


def test_text_of_any_kind_is_one_write(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log()
    log.open(str(path))
    log.error("name \udcff é")
    assert path.read_bytes() == "pyvirt: name ? é\n".encode()


# What a guest can make somebody say.


class Limited:
    """A limited log, what it wrote, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.write = LimitedLog(self.lines.append, lambda: self.now).write


def test_lines_are_limited_by_time_whatever_they_say() -> None:
    log = Limited()
    for n in range(20_000):
        log.write(f"descriptor {n} is bad")
    assert log.lines == [f"descriptor {n} is bad" for n in range(BURST)]
    log.now += INTERVAL_S
    log.write("one more")
    log.write("and another")
    left_out = 20_000 - BURST
    assert log.lines[BURST:] == [f"one more (messages left out before it: {left_out})"]


def test_a_repetition_waits_until_the_interval_is_over() -> None:
    log = Limited()
    for _ in range(3):
        log.write("broken")
        log.write("broken")
        log.now += INTERVAL_S
    again = "broken (messages left out before it: 1)"
    assert log.lines == ["broken", again, again]


def test_a_patient_guest_gets_one_line_an_interval() -> None:
    log = Limited()
    for n in range(100 * 60):
        log.write(f"line {n}")
        log.now += INTERVAL_S / 60
    assert BURST + 98 <= len(log.lines) <= BURST + 101


def test_a_line_has_a_bound() -> None:
    log = Limited()
    log.write("x" * 1_000_000)
    assert len(log.lines[0]) == 1000


@contextmanager
def as_stderr(fd: int) -> Iterator[None]:
    """Have a descriptor as stderr for a while."""
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@pytest.mark.parametrize("length", [10, 5000, 200_000])
def test_a_pipe_that_nobody_reads_is_not_waited_for(length: int) -> None:
    """What there is no room for is lost, and what comes when there is some is not."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with as_stderr(writer), open(reader, "rb", buffering=0) as pipe:
        log = Log()
        for _ in range(8000 if length == 10 else 50):
            log.error("x" * length)
        assert pipe.read(1 << 20)
        log.error("once more")
        assert pipe.read(1 << 20) == b"pyvirt: once more\n"
    os.close(writer)


def test_a_terminal_that_nobody_reads_is_not_waited_for() -> None:
    master, terminal = os.openpty()
    log = Log()
    with as_stderr(terminal):
        log.take_terminal()
        # The guest's console may be on it, too, and take the last of its room.
        for _ in range(4000):
            log.error("x" * 60)
    os.read(master, 1 << 16)
    assert log.fd != 2
    for fd in (log.fd, master, terminal):
        os.close(fd)


@pytest.mark.parametrize("length", [10, 100_000, 1_000_000])
def test_what_is_shown_at_the_end_waits_for_its_reader_but_not_for_ever(length: int) -> None:
    """Whatever the level, and not into the file of messages."""
    text = "".join(f"{number}\n" for number in range(length // 5))
    reader, writer = os.pipe()
    with as_stderr(writer), open(reader, "rb", buffering=0) as pipe:
        log = Log()
        log.open(os.devnull)
        log.show(text, 0.05)
        os.set_blocking(reader, False)
        got = pipe.read(1 << 20) or b""
        assert got == text.encode()[: len(got)]
        assert len(got) == len(text) or len(got) >= 1 << 15
        os.set_blocking(reader, True)
        with ThreadPoolExecutor(1) as pool:
            all_of_it = pool.submit(_read, reader, len(text))
            log.show(text, PATIENCE)
            assert all_of_it.result(PATIENCE) == text.encode()
    os.close(writer)


def _read(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return data


def test_what_is_shown_on_a_terminal_that_nobody_reads_is_given_up() -> None:
    master, terminal = os.openpty()
    log = Log()
    with as_stderr(terminal):
        log.take_terminal()
        log.show("x" * 100_000, 0.05)
    assert os.read(master, 1 << 16).startswith(b"xx")
    for fd in (log.fd, master, terminal):
        os.close(fd)


def test_stderr_that_is_no_terminal_is_as_it_was(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as file, as_stderr(file.fileno()):
        log = Log()
        log.take_terminal()
        assert log.fd == 2
