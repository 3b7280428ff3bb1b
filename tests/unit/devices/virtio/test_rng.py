"""The entropy device: bytes from its source, what a driver may not do, and a source that fails."""

from __future__ import annotations

import os
import pty
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.rng import Rng, RngConfig
from pyvirt.native import lib

from ...refusal import refusal, unprivileged
from .queue_bench import DATA, Make, idle, make

__all__ = ["make"]  # fixture
MOST = lib.PV_RNG_REQUEST_MAX


def rng(filename: str = "/dev/urandom", rate: int = 0) -> Rng:
    return Rng(RngConfig("r", "src", filename, rate))


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """Return what feeds a character device that has bytes only then, and its name."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def test_what_a_driver_finds(make: Make) -> None:
    bench = make(rng())
    assert bench.get(r.DEVICE_ID) == 4
    assert (bench.device.features, bench.device.config(), bench.device.queue_sizes) == (
        0,
        b"",
        (64,),
    )


@pytest.mark.parametrize("event_idx", [False, True])
def test_buffers_are_filled(make: Make, event_idx: bool) -> None:
    bench = make(rng())
    bench.start(event_idx=event_idx)
    seen = set()
    for _ in range(40):
        bench.ram.view(DATA, 64)[:] = bytes(64)
        head = bench.add(0, 64, writable=True)
        assert bench.used() == [(head, 64)]
        seen.add(bytes(bench.ram.view(DATA, 64)))
    assert len(seen) == 40
    assert bench.stat("bytes") == 40 * 64
    assert bench.stat("requests") == 40


def test_a_chain_is_filled_segment_after_segment(make: Make, terminal: tuple[int, str]) -> None:
    feed, name = terminal
    bench = make(rng(name))
    bench.start(indirect=True)
    os.write(feed, b"abcdefghij")
    bench.ram.view(DATA, 0x200)[:] = bytes(0x200)
    spans = [(DATA, 3), (DATA + 0x100, 0), (DATA + 0x100, 4), (DATA + 0x180, 64)]
    bench.drivers[0].add(writable=spans, table=DATA + 0x1000)
    bench.publish()
    assert [length for _, length in bench.used()] == [10]
    assert bytes(bench.ram.view(DATA, 4)) == b"abc\0"
    assert bytes(bench.ram.view(DATA + 0x100, 5)) == b"defg\0"
    assert bytes(bench.ram.view(DATA + 0x180, 4)) == b"hij\0"


def test_a_request_gets_64_kib_at_most(make: Make) -> None:
    bench = make(rng())
    bench.start()
    bench.ram.view(DATA, MOST + 4096)[:] = bytes(MOST + 4096)
    bench.add(0, 4096, MOST, writable=True)
    assert [length for _, length in bench.used()] == [MOST]
    assert bytes(bench.ram.view(DATA + MOST, 4096)) == bytes(4096)
    assert bytes(bench.ram.view(DATA + MOST - 64, 64)) != bytes(64)


def test_a_request_waits_for_the_source_and_is_never_answered_by_nothing(
    make: Make, terminal: tuple[int, str]
) -> None:
    feed, name = terminal
    bench = make(rng(name))
    bench.start()
    bench.add(0, 64, writable=True)
    bench.wait_stat("blocked", 1)
    assert bench.drivers[0].collect() == []
    assert idle(0.1)
    os.write(feed, b"random")
    assert [length for _, length in bench.used()] == [6]
    assert bytes(bench.ram.view(DATA, 6)) == b"random"


def test_a_reset_does_not_wait_for_the_source(make: Make, terminal: tuple[int, str]) -> None:
    feed, name = terminal
    bench = make(rng(name))
    bench.start()
    bench.add(0, 64, writable=True)
    bench.wait_stat("blocked", 1)
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0
    assert not bench.transport.is_given_up
    os.write(feed, b"later")
    bench.start()
    bench.add(0, 64, writable=True)
    assert [length for _, length in bench.used()] == [5]


def test_a_source_that_ends_is_told_of_once_and_asked_again(make: Make) -> None:
    bench = make(rng("/dev/null"))
    bench.start()
    bench.add(0, 64, writable=True)
    assert bench.wait_news() == (
        "virtio-rng r: /dev/null: it has come to its end; it is asked again every second"
    )
    bench.wait_stat("errors", 2)
    bench.transport.report()
    assert len(bench.log) == 1
    assert bench.drivers[0].collect() == []
    assert not bench.broken


def test_a_source_that_fails_is_told_of(make: Make) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "rb", buffering=0):
        bench = make(rng(os.ttyname(theirs)))
        bench.start()
        bench.add(0, 64, writable=True)
        bench.wait_stat("blocked", 1)
        os.close(ours)
        assert "; it is asked again every second" in bench.wait_news()
    assert not bench.broken


def test_a_limit_holds_requests_back(make: Make) -> None:
    bench = make(rng(rate=1000))
    bench.start()
    bench.add(0, MOST, writable=True)
    # A tenth of a second's worth, so that the next one does not wait for long.
    assert [length for _, length in bench.used()] == [100]
    for _ in range(3):
        bench.add(0, MOST, writable=True)
        bench.used()
    bench.wait_stat("throttled", 1)


@pytest.mark.parametrize(
    ("readable", "writable", "why"),
    [
        (64, 0, "a buffer for random bytes that is to be read"),
        (64, 64, "a buffer for random bytes that is to be read"),
        (0, 0, "a buffer for random bytes without room"),
    ],
)
def test_a_buffer_of_the_wrong_kind_breaks_the_device(
    make: Make, readable: int, writable: int, why: str
) -> None:
    bench = make(rng())
    bench.start()
    readables = [(DATA, readable)] if readable else []
    bench.drivers[0].add(readables, [] if readable and not writable else [(DATA, writable)])
    bench.publish()
    assert bench.wait_broken() == f"virtio-rng r: {why}; it needs a reset"
    assert idle(0.1)
    bench.start()
    bench.add(0, 8, writable=True)
    assert [length for _, length in bench.used()] == [8]


def test_a_driver_without_the_queue_finds_a_device_that_needs_a_reset(make: Make) -> None:
    bench = make(rng())
    bench.negotiate()
    assert bench.set_status(r.DRIVER_OK) & r.NEEDS_RESET
    assert bench.log == ["virtio-rng r: the driver has not made its queue ready; it needs a reset"]


def refused(filename: str) -> str:
    before = len(os.listdir("/proc/self/fd"))
    text = refusal(lambda: rng(filename))
    assert len(os.listdir("/proc/self/fd")) == before
    return text


def test_sources_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    mend = "name a character device such as /dev/urandom"
    for name, why in {
        "file": "not a character device",
        "fifo": "not a character device",
        ".": "not a character device",
        "none": "No such file or directory",
        "file/x": "Not a directory",
    }.items():
        path = f"{tmp_path}/{name}"
        assert refused(path) == f"-object rng-random,id=src,filename={path}: {why}; {mend}"


def test_a_source_that_may_not_be_read_is_refused(terminal: tuple[int, str]) -> None:
    _, name = terminal
    os.chmod(name, 0)
    with unprivileged():
        assert refused(name) == (
            f"-object rng-random,id=src,filename={name}: Permission denied; "
            "name a character device such as /dev/urandom"
        )
