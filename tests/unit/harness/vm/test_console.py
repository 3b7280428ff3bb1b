"""The console: lines with their times, marks, waiting, a file, and floods."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyvirt.harness.judge.classifier import QUIET_S
from pyvirt.harness.judge.verdict import Verdict
from pyvirt.harness.text import clean
from pyvirt.harness.vm import console as module
from pyvirt.harness.vm.console import (
    KEPT_MAX,
    Console,
    ConsoleEndedError,
    ConsoleError,
    ConsoleTimeoutError,
)

from ..kernel_log import BOOT, oops, panic, stamped, warning

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 30.0


def texts(console: Console, mark: int = 0) -> list[str]:
    return [line.text for line in console.since(mark)]


def test_lines_and_marks() -> None:
    console = Console()
    assert (console.since(), console.text(), console.mark()) == ([], "", 0)
    console.feed(b"one\r\ntw")
    mark = console.mark()
    console.feed(b"o\r\n\r\nthr\0ee")
    assert texts(console) == ["one", "two", "", "three"]
    assert texts(console, mark) == ["o", "", "three"]
    assert console.text(mark) == "o\n\nthree"
    assert console.since(console.mark()) == []
    assert console.since(console.mark() + 99) == []
    assert texts(console, -5) == texts(console)


def test_times_of_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console()
    console.feed(b"one\ntw")
    now[0] = 101.0
    console.feed(b"o\n")
    now[0] = 102.0
    console.feed(b"three\nfour\n")
    assert [line.at for line in console.since()] == [100.0, 100.0, 102.0, 102.0]
    assert console.last_byte_at == 102.0


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text\x1b(B", "text"),
        (b"a\x1b[2J\x1b[Hb\x1bcd", "abd"),
        (b"\xff\xfe ok \xc3\xa9", "�� ok é"),
        (b"bell\x07 back\x08 tab\t", "bell back tab\t"),
        (b"\xc2\x9b31mx", "31mx"),
        (b"cut \x1b[", "cut ["),
    ],
)
def test_what_is_shown_of_bytes(data: bytes, text: str) -> None:
    assert clean(data) == text
    console = Console()
    console.feed(data)
    assert console.text() == text


@given(st.binary())
def test_nothing_shown_moves_a_terminal(data: bytes) -> None:
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean(data))


def test_all_goes_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    console = Console(path)
    console.feed(b"a\0\x1b[1m\r\n")
    assert path.read_bytes() == b"a\0\x1b[1m\r\n"
    console.feed(b"b")
    console.close()
    assert path.read_bytes() == b"a\0\x1b[1m\r\nb"


def test_a_full_disk_costs_the_file_only() -> None:
    console = Console()
    console._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115  (it is the console's)
    full = console._file
    console.feed(b"a\n")
    console.feed(b"b\n")
    console.close()
    assert full.closed  # at the first failure
    assert texts(console) == ["a", "b"]


# Waiting.


def test_what_is_there_is_found_at_once() -> None:
    console = Console()
    console.feed(b"booting\nready: 42\nlogin: ")
    assert console.wait_for(r"ready: (\d+)", 0)[1] == "42"
    assert console.wait_for(re.compile("^login: $"), 0)
    mark = console.mark()
    with pytest.raises(ConsoleTimeoutError) as info:
        console.wait_for("ready", 0.01, mark)
    assert str(info.value) == "console: no 'ready' in 0.01 s; nothing came"
    with pytest.raises(ConsoleError) as never:
        console.wait_for("never", 0)
    assert str(never.value) == "console: no 'never' in 0 s; the last line is 'login: '"


def test_what_comes_in_pieces_is_found() -> None:
    console = Console()
    pieces = [b"x\n", b"rea", b"d", b"y now", b"\n"]

    def feed() -> None:
        for piece in pieces:
            time.sleep(0.005)
            console.feed(piece)

    thread = threading.Thread(target=feed)
    thread.start()
    assert console.wait_for("ready now", PATIENCE)
    thread.join()


def test_the_end_wakes_who_waits() -> None:
    console = Console()
    thread = threading.Timer(0.02, console.close)
    thread.start()
    with pytest.raises(ConsoleEndedError) as info:
        console.wait_for("never", PATIENCE)
    thread.join()
    assert str(info.value) == "console: ended without 'never'; nothing came"
    with pytest.raises(ConsoleEndedError):
        console.wait_for("never", PATIENCE)


def test_a_flood_does_not_outlast_the_time() -> None:
    console = Console()
    is_over = threading.Event()

    def flood() -> None:
        while not is_over.is_set():
            console.feed(b"noise\n" * 100)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        with pytest.raises(ConsoleTimeoutError):
            console.wait_for("never", 0.2)
    finally:
        is_over.set()
        thread.join()


def test_a_line_without_end_is_not_read_again_and_again() -> None:
    console = Console()

    def feed() -> None:
        for _ in range(2000):
            console.feed(b"x" * 1000)
        console.feed(b"done")

    thread = threading.Thread(target=feed)
    started = time.process_time()
    thread.start()
    assert console.wait_for("xdone", PATIENCE)
    thread.join()
    assert time.process_time() - started < PATIENCE / 3


# Bounds.


def test_only_the_newest_stays_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    console = Console(path)
    line = b"0123456789abcde\n"
    for _ in range(24):
        console.feed(line * 65536)
    assert console.mark() == path.stat().st_size == 24 << 20
    assert KEPT_MAX <= len(console.text()) <= KEPT_MAX + (2 << 20)
    assert len(console.since(console.mark() - 32)) == 2
    assert console.since(0)[-1].text == "0123456789abcde"
    console.close()


def test_times_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_TIMES_MAX", 10)
    console = Console()
    for number in range(100):
        now[0] = float(number)
        console.feed(b"%d\n" % number)
    assert [(line.at, line.text) for line in console.since()] == [
        (float(number), str(number)) for number in range(90, 100)
    ]


# Reports.


def test_reports_are_told_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = Console()
    told: list[Verdict] = []
    console.on_splat = lambda splat: told.append(splat.kind)
    console.feed(b"\0\0noise\n" + stamped(BOOT))
    assert console.poll() is None
    mark = console.mark()
    console.feed(stamped(warning()))
    left = console.poll()
    assert left == pytest.approx(QUIET_S)
    assert console.splats == []
    now[0] += QUIET_S
    assert console.poll() is None
    assert told == [Verdict.WARNED]
    first = stamped(warning()).splitlines()[0]
    assert console.splats[0].mark == mark + len(first) + 2
    assert texts(console, console.splats[0].mark)[0] == console.splats[0].lines[0]
    console.feed(stamped(oops()))
    console.feed(stamped(panic("Fatal exception")))
    console.close()
    assert told == [Verdict.WARNED, Verdict.PANICKED]


def test_it_goes_on_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first = Console()
    for text in (stamped(BOOT), stamped(warning())):
        first.feed(text)
        now[0] += 10
        first.poll()
    first.feed(b"half of")
    told: list[str] = []
    now[0] = 1000.0
    second = Console(tmp_path / "console.log", before=first.history())
    second.on_splat = lambda splat: told.append(splat.title)
    assert second.splats == first.splats
    assert len(second.splats) == 1
    second.feed(b" a line\n" + stamped(oops()))
    now[0] += 10
    second.poll()
    assert [splat.kind for splat in second.splats] == [Verdict.WARNED, Verdict.OOPSED]
    assert len(told) == 1
    assert second.since()[: len(first.since()) - 1] == first.since()[:-1]
    assert "half of a line" in second.text()
    assert second.since(second.splats[1].mark)[0].at == 1000.0
    assert (tmp_path / "console.log").read_text() == first.text() + second.text(first.mark())
    assert "half of a" not in first.text()
    second.close()


def test_it_goes_on_from_one_that_said_nothing_or_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Console(before=Console().history()).text() == ""
    monkeypatch.setattr(module, "KEPT_MAX", 1000)
    monkeypatch.setattr(module, "_SLACK", 0)
    first = Console()
    for _ in range(100):
        first.feed(b"a line of some length\n")
    second = Console(before=first.history())
    assert second.mark() == first.mark() > 1000
    second.feed(warning().encode())
    second.close()
    (splat,) = second.splats
    assert second.since(splat.mark)[0].text.endswith(splat.lines[0])
