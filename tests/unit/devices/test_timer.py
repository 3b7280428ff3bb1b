"""A timer calls back at its end, and its thread sleeps until it has to look."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Iterator

import pytest
from pyvirt.devices import timer
from pyvirt.devices.timer import Clock, Timer
from pyvirt.errors import PyvirtError

PATIENCE = 20.0
HOUR = 3600 * 10**9


class Watched:
    """A timer that runs, and its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self._more = threading.Condition()
        self.timer = Timer("test", self._take)
        self.timer.thaw()

    def _take(self) -> None:
        with self._more:
            self.calls += 1
            self._more.notify_all()

    def wait(self, calls: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.calls == calls, PATIENCE)


@pytest.fixture
def watched() -> Iterator[Watched]:
    found = Watched()
    yield found
    found.timer.close()


def test_it_calls_once_each_time(watched: Watched) -> None:
    for calls in range(1, 4):
        watched.timer.start(1_000_000)
        watched.wait(calls)
        assert watched.timer.left() is None


def test_none_is_called_that_is_stopped_or_started_anew(watched: Watched) -> None:
    watched.timer.start(HOUR)
    watched.timer.stop()
    assert watched.timer.left() is None
    watched.timer.start(HOUR)
    left = watched.timer.left()
    assert left is not None
    assert HOUR - int(PATIENCE * 1e9) < left <= HOUR
    watched.timer.start(0)
    watched.wait(1)


def test_a_later_end_wakes_nobody(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watched.timer.start(HOUR)
    while watched.timer._wakes is None:
        threading.Event().wait(0.001)

    def write(_fd: int, _value: int) -> None:
        raise AssertionError("the thread is woken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "eventfd_write", write)
        for hours in range(2, 5):
            watched.timer.start(hours * HOUR)
        watched.timer.stop()
    watched.timer.start(0)
    watched.wait(1)


def test_a_frozen_one_keeps_what_is_left(watched: Watched) -> None:
    watched.timer.start(HOUR)
    watched.timer.freeze()
    left = watched.timer.left()
    assert left is not None
    watched.timer.freeze()
    assert watched.timer.left() == left
    watched.timer.start(1)
    assert (watched.timer.left(), watched.calls) == (1, 0)
    watched.timer.thaw()
    watched.wait(1)


def test_one_that_was_stopped_while_frozen_stays_so(watched: Watched) -> None:
    watched.timer.start(HOUR)
    watched.timer.freeze()
    watched.timer.stop()
    watched.timer.thaw()
    assert watched.timer.left() is None


def test_it_may_be_started_by_its_own_call() -> None:
    done = threading.Event()
    calls: list[int] = []

    def again() -> None:
        calls.append(1)
        if len(calls) == 3:
            done.set()
        else:
            one.start(0)

    one = Timer("test", again)
    one.thaw()
    one.start(0)
    assert done.wait(PATIENCE)
    one.close()
    assert calls == [1, 1, 1]


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    Timer("test", lambda: None).close()

    def start(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", start)
    with pytest.raises(PyvirtError, match="test: can't start new thread; raise ulimit -u"):
        Timer("test", lambda: None)
    assert os.listdir("/proc/self/fd") == before


def test_a_clock_counts_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100]
    monkeypatch.setattr(timer, "time", type("Time", (), {"monotonic_ns": lambda: now[0]}))
    clock = Clock()
    now[0] += 5
    assert clock.now() == 0
    clock.thaw()
    now[0] += 7
    clock.thaw()
    assert clock.now() == 7
    clock.freeze()
    now[0] += 5
    assert clock.now() == 7
    clock.set(50)
    clock.thaw()
    now[0] += 1
    assert clock.now() == 51
    clock.close()
