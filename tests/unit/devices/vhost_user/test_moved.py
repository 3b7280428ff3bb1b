"""A device of a back end that is saved: the back end stops, and it or another one goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.block import CONFIG_WCE
from pyvirt.devices.vhost_user.fs import FsConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import BackendError, ConfigError, StateError

from .back_end import FEATURES, LATER, PROTOCOL, BackEnd
from .bench import VhostUserBench, block, wait
from .conftest import Make

CACHE = 32  # of the configuration space: whether writes are cached


@pytest.fixture
def back_end(make: Make) -> BackEnd:
    return make(features=FEATURES | CONFIG_WCE)


@pytest.fixture
def other() -> Iterator[BackEnd]:
    with tempfile.TemporaryDirectory(prefix="vu-", dir="/tmp") as folder:
        other = BackEnd(Path(folder, "o"), features=FEATURES | CONFIG_WCE)
        yield other
        if other.path.exists():
            other.die()


@pytest.fixture
def bench(back_end: BackEnd, path: Path) -> Iterator[VhostUserBench]:
    bench = VhostUserBench(block(path, queues=2))
    yield bench
    bench.close()


@pytest.mark.parametrize("features", [r.VERSION_1, r.VERSION_1 | r.EVENT_IDX])
def test_it_goes_on(bench: VhostUserBench, back_end: BackEnd, features: int) -> None:
    bench.start(features)
    for turn in range(10):
        data = b"%d" % turn
        answer = bench.offer(data, turn % 2)
        state = bench.state()
        bench.transport.resume()
        bench.used(1, turn % 2)
        assert bench.memory.read(answer, len(data)) == data
        queue = state["queues"][turn % 2]
        assert queue["next_avail"] == queue["next_used"]
    assert [data for _, data in back_end.served] == [b"%d" % turn for turn in range(10)]


def test_another_goes_on(bench: VhostUserBench, back_end: BackEnd, other: BackEnd) -> None:
    bench.start()
    for turn in range(5):
        bench.ask(b"%d" % turn, turn % 2)
    bench.offer(b"more")
    bench.move(block(other.path, queues=2))
    bench.used(1)
    assert bench.ask(b"and more", 1) == b"and more"
    assert len(back_end.served) + len(other.served) == 7
    # Its successor is given what it has begun, too.
    other.die()
    assert not bench.is_broken
    with_record = BackEnd(other.path, features=FEATURES | CONFIG_WCE)
    assert bench.ask(b"yet more") == b"yet more"
    with_record.die()


@pytest.mark.parametrize("protocol", [PROTOCOL, PROTOCOL & ~p.INFLIGHT_SHMFD])
def test_one_that_leaves_requests_is_not_saved(make: Make, path: Path, protocol: int) -> None:
    back_end = make(protocol=protocol)
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"0")
    back_end.serve = lambda _queue, _data: LATER
    answer = bench.offer(b"1")
    wait(lambda: len(back_end.served) == 2)
    back_end.serve = lambda _queue, data: data
    with pytest.raises(BackendError, match="has stopped, and not completed what it has begun"):
        bench.transport.drain(1)
    # Which it is asked to do again.
    bench.used(1)
    assert bench.memory.read(answer, 1) == b"1"
    bench.state()
    bench.transport.resume()
    assert bench.ask(b"2") == b"2"
    bench.close()


def test_one_that_does_not_stop_in_time_goes_on(bench: VhostUserBench, back_end: BackEnd) -> None:
    bench.start()
    bench.ask(b"0")
    kept: list[bytes] = []
    back_end.answers[p.GET_VRING_BASE] = kept.append
    with pytest.raises(BackendError, match="its back end does not answer"):
        bench.transport.drain(0.2)
    bench.offer(b"1")
    wait(lambda: kept)
    del back_end.answers[p.GET_VRING_BASE]
    back_end._answer(p.GET_VRING_BASE, kept[0], need_reply=False)
    bench.used(1)
    assert bench.ask(b"2") == b"2"
    bench.state()


def test_one_that_has_gone_meanwhile(bench: VhostUserBench, back_end: BackEnd, make: Make) -> None:
    bench.start()
    bench.ask(b"0")
    bench.state()
    back_end.die()
    bench.offer(b"1")
    make(features=FEATURES | CONFIG_WCE)
    bench.transport.resume()
    bench.used(1)
    assert not bench.is_broken


def test_a_write_cache_that_the_driver_switched(bench: VhostUserBench, other: BackEnd) -> None:
    bench.negotiate(r.VERSION_1 | CONFIG_WCE)
    bench.set(r.CONFIG + CACHE, 0, 1)
    assert other.config[CACHE]
    bench.move(block(other.path, queues=2))
    assert not other.config[CACHE]
    assert bench.get(r.CONFIG + CACHE, 1) == 0


def test_a_smaller_disk(bench: VhostUserBench, other: BackEnd) -> None:
    other.config[7] -= 1
    with pytest.raises(StateError, match=r"device\.sectors: .* had 506097522914230528 when"):
        bench.move(block(other.path, queues=2))


def test_a_file_system_is_saved_until_it_is_used(make: Make, path: Path, other: BackEnd) -> None:
    make(protocol=p.MQ)
    bench = VhostUserBench(
        FsConfig("fs0", b"tag", SocketBackEnd("-chardev id=c", str(path))).make()
    )
    bench.start()
    bench.move(FsConfig("fs0", b"tag", SocketBackEnd("-chardev id=o", str(other.path))).make())
    bench.ask(b"mount", 1)
    with pytest.raises(ConfigError, match="virtio-fs fs0: cannot be saved once the guest has"):
        bench.state()
    bench.transport.resume()
    assert bench.ask(b"go on", 1) == b"go on"
    bench.close()
