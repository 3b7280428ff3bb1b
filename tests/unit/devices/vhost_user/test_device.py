"""A device whose queues a back end serves: its life, and that of back ends that come and go."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.block import CONFIG_WCE
from pyvirt.devices.virtio import registers as r
from pyvirt.vmm.memory import GuestMemory

from ...refusal import refusal
from ..virtio.bench import DeviceBench
from .back_end import FEATURES, LATER, PROTOCOL, BackEnd
from .bench import MIB, VhostUserBench, block, wait
from .conftest import Hurry, Make

EVENT_IDX = r.VERSION_1 | r.EVENT_IDX


@pytest.fixture
def back_end(make: Make) -> BackEnd:
    return make(features=FEATURES | CONFIG_WCE)


@pytest.fixture
def bench(back_end: BackEnd, path: Path) -> Iterator[VhostUserBench]:
    bench = VhostUserBench(block(path, queues=2))
    yield bench
    bench.close()


def test_the_driver_is_offered_what_the_back_end_has(make: Make, path: Path) -> None:
    make(features=FEATURES & ~r.INDIRECT_DESC | 1 << 9 | 1 << 60)
    bench = VhostUserBench(block(path))
    offered = 0
    for word in range(4):
        bench.set(r.DEVICE_FEATURES_SEL, word)
        offered |= bench.get(r.DEVICE_FEATURES) << 32 * word
    # Not the protocol's own bit, and nothing that is not a disk's.
    assert offered == r.VERSION_1 | r.EVENT_IDX | 1 << 9
    bench.close()


@pytest.mark.parametrize("features", [r.VERSION_1, EVENT_IDX])
def test_requests_are_the_back_ends(bench: VhostUserBench, features: int) -> None:
    assert bench.start(features) == 0xF
    for round_ in range(40):
        assert bench.ask(b"%d" % round_, queue=round_ % 2) == b"%d" % round_
    assert bench.report() == []


@pytest.mark.parametrize("protocol", [PROTOCOL, p.CONFIG])
def test_with_and_without_what_the_protocol_may_have(make: Make, path: Path, protocol: int) -> None:
    back_end = make(protocol=protocol)
    bench = VhostUserBench(block(path))
    bench.start()
    assert bench.ask(b"x") == b"x"
    assert (p.SET_INFLIGHT_FD in back_end.heard) == (protocol == PROTOCOL)
    assert (p.SET_BACKEND_REQ_FD in back_end.heard) == (protocol == PROTOCOL)
    bench.close()


def test_a_reset_takes_the_queues_back(bench: VhostUserBench, back_end: BackEnd) -> None:
    for life in range(3):
        bench.start()
        assert bench.ask(b"x") == b"x"
        bench.set(r.STATUS, 0)
        assert bench.get(r.STATUS) == 0
        assert back_end.heard.count(p.GET_VRING_BASE) == 2 * (life + 1)
    assert back_end.heard.count(p.SET_OWNER) == 1


def test_queues_that_are_not_ready_are_left_out(bench: VhostUserBench, back_end: BackEnd) -> None:
    bench.negotiate(r.VERSION_1)
    bench.set_queue(1)
    assert bench.set_status(r.DRIVER_OK) == 0xF
    assert back_end.heard.count(p.SET_VRING_KICK) == 1
    bench.set(r.STATUS, 0)
    bench.negotiate(r.VERSION_1)
    assert bench.set_status(r.DRIVER_OK) == 0xF


def test_the_configuration_space_is_the_back_ends(bench: VhostUserBench, back_end: BackEnd) -> None:
    space = bytes(bench.get(r.CONFIG + index, 1) for index in range(60))
    assert space[:34] == bytes(range(34))
    assert space[34:36] == b"\x02\x00"  # the queues that there are here
    assert space[36:] == bytes(range(36, 60))


def test_a_change_of_it_is_shown(bench: VhostUserBench, back_end: BackEnd) -> None:
    bench.start()
    bench.ask(b"x")
    generation = bench.get(r.CONFIG_GENERATION)
    back_end.config[0] = 77
    assert back_end.channel
    back_end.channel.sendall(p.message(p.BACKEND_CONFIG_CHANGE, need_reply=True))
    assert back_end.channel.recv(100) == p.HEADER.pack(2, 5, 8) + bytes(8)
    wait(lambda: bench.report() == [] and bench.get(r.CONFIG, 1) == 77)
    assert bench.get(r.CONFIG_GENERATION) == generation + 1
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


def test_requests_that_nobody_knows_are_refused(bench: VhostUserBench, back_end: BackEnd) -> None:
    bench.start()
    bench.ask(b"x")
    assert back_end.channel
    for _ in range(100):
        back_end.channel.sendall(p.message(3, bytes(40), need_reply=True))
        assert back_end.channel.recv(100) == p.HEADER.pack(3, 5, 8) + p.U64.pack(1)
    assert bench.ask(b"y") == b"y"


def test_the_write_cache_is_switched_and_nothing_else_is_written(
    bench: VhostUserBench, back_end: BackEnd
) -> None:
    bench.start(EVENT_IDX | CONFIG_WCE)
    bench.set(r.CONFIG + 32, 0, 1)
    assert back_end.config[32] == 0
    assert bench.get(r.CONFIG + 32, 1) == 0
    bench.set(r.CONFIG, 9, 4)
    bench.set(r.CONFIG + 32, 9, 2)
    assert back_end.heard.count(p.SET_CONFIG) == 1


def test_a_back_end_that_has_begun_with_requests_is_followed(
    bench: VhostUserBench, back_end: BackEnd, make: Make
) -> None:
    """Each is answered once, though the first one took them all, and answered some out of order."""
    bench.start()
    back_end.serve = lambda _, data: data if data in {b"1", b"4"} else LATER
    places = [bench.offer(b"%d" % index) for index in range(7)]
    assert len(bench.used(2)) == 2
    wait(lambda: len(back_end.served) == 7)
    back_end.die()
    successor = make(features=FEATURES | CONFIG_WCE)
    assert len(bench.used(5)) == 5
    assert [data for _, data in successor.served] == [b"0", b"2", b"3", b"5", b"6"]
    assert [bench.memory.read(place, 1) for place in places] == [b"%d" % i for i in range(7)]
    assert bench.ask(b"after") == b"after"
    wait(lambda: "there is a back end again" in " ".join(bench.report()))
    assert not bench.is_broken
    assert bench.device.stats()["connections"] == 2  # type: ignore[attr-defined]
    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0


def test_without_a_record_the_ring_says_where_to_go_on(make: Make, path: Path) -> None:
    first = make(protocol=p.CONFIG)
    bench = VhostUserBench(block(path))
    bench.start()
    assert [bench.ask(b"%d" % index) for index in range(3)] == [b"0", b"1", b"2"]
    first.die()
    bench.offer(b"waits")
    successor = make(protocol=p.CONFIG)
    bench.used(1)
    assert [data for _, data in successor.served] == [b"waits"]
    bench.close()


def test_one_that_lacks_what_the_driver_has_accepted_is_refused(
    bench: VhostUserBench, back_end: BackEnd, make: Make
) -> None:
    bench.start()
    back_end.die()
    make(features=FEATURES & ~r.EVENT_IDX | CONFIG_WCE)
    wait(lambda: bench.is_broken)
    assert any("another than before" in line for line in bench.report())


def test_when_none_comes_the_device_needs_a_reset_and_requests_fail(
    bench: VhostUserBench, back_end: BackEnd, make: Make, hurry: Hurry
) -> None:
    bench.start()
    bench.ask(b"x")
    hurry()
    back_end.die()
    answer = bench.offer(b"lost", room=1)
    wait(lambda: bench.is_broken)
    bench.used(1)
    assert bench.memory.read(answer, 1) == b"\x01"  # VIRTIO_BLK_S_IOERR
    broken, gone = bench.report()  # both at once, as nobody has asked before
    assert gone.startswith("vhost-user-blk d0: its back end has gone")
    assert "no back end has come" in broken
    assert broken.endswith("; it needs a reset")
    hurry(False)

    bench.set(r.STATUS, 0)
    assert bench.get(r.STATUS) == 0
    assert bench.start() & r.NEEDS_RESET
    make(features=FEATURES | CONFIG_WCE)
    bench.set(r.STATUS, 0)
    assert bench.start() == 0xF
    assert bench.ask(b"again") == b"again"


def test_one_that_dies_while_no_driver_is_there_is_not_missed(
    bench: VhostUserBench, back_end: BackEnd, make: Make
) -> None:
    back_end.die()
    wait(lambda: not bench.device.stats()["connected"])  # type: ignore[attr-defined]
    successor = make(features=FEATURES | CONFIG_WCE)
    successor.config[0] = 99
    assert bench.start() == 0xF
    assert bench.ask(b"x") == b"x"
    assert bench.report() == []
    assert bench.get(r.CONFIG, 1) == 99


def test_one_that_keeps_the_queues_is_given_up_until_it_lets_go(
    bench: VhostUserBench, back_end: BackEnd, hurry: Hurry
) -> None:
    bench.start()
    bench.ask(b"x")
    kept: list[bytes] = []
    back_end.answers[p.GET_VRING_BASE] = kept.append
    hurry()
    bench.set(r.STATUS, 0)
    hurry(False)
    assert bench.is_broken
    assert bench.transport.is_given_up
    assert "has not let go of its queues" in bench.report()[0]
    wait(lambda: kept)
    del back_end.answers[p.GET_VRING_BASE]
    back_end._answer(p.GET_VRING_BASE, kept[0], need_reply=False)

    def is_reset() -> bool:
        bench.set(r.STATUS, 0)
        return bench.get(r.STATUS) == 0

    wait(is_reset)
    assert bench.start() == 0xF
    assert bench.ask(b"y") == b"y"


def test_at_the_machines_end_one_that_does_not_answer_keeps_nothing(
    back_end: BackEnd, path: Path, hurry: Hurry
) -> None:
    bench = VhostUserBench(block(path))
    bench.start()
    bench.ask(b"x")
    back_end.answers[p.GET_VRING_BASE] = lambda _: None
    hurry()
    bench.transport.halt()
    assert bench.transport.close()
    bench.close()


def test_a_machine_is_not_reset_while_it_does_not_answer(
    bench: VhostUserBench, back_end: BackEnd
) -> None:
    bench.start()
    bench.transport.drain(5)
    bench.transport.resume()
    back_end.answers[p.GET_FEATURES] = lambda _: None
    with pytest.raises(Exception, match="its back end does not answer"):
        bench.transport.drain(0.2)


def test_memory_that_it_cannot_see(back_end: BackEnd, path: Path) -> None:
    memory = GuestMemory(128 * MIB)
    device = block(path)
    bench = DeviceBench(memory, device)
    assert bench.run() & r.NEEDS_RESET
    assert "give -machine mem-share=on" in bench.log[0]
    bench.close()
    device.close()
    memory.close()


def test_nobody_is_there(path: Path) -> None:
    message = refusal(lambda: block(path))
    assert message.startswith(f"-chardev id=c: {path}: No such file or directory; start")


@pytest.mark.parametrize(
    ("features", "protocol", "queues", "lacks"),
    [
        (FEATURES & ~r.VERSION_1, PROTOCOL, 8, "the features 0x100000000"),
        (FEATURES, PROTOCOL, 3, "queues: it has 3, and 4 are asked for"),
        (FEATURES, PROTOCOL & ~p.CONFIG, 8, "a configuration space"),
        (FEATURES & ~p.F_PROTOCOL_FEATURES, 0, 8, "a configuration space"),
    ],
)
def test_a_back_end_that_cannot_be_this_devices(
    make: Make, path: Path, features: int, protocol: int, queues: int, lacks: str
) -> None:
    make(features=features, protocol=protocol, queues=queues)
    assert lacks in refusal(lambda: block(path, queues=4))


def test_an_interrupt_that_the_last_one_owed_is_made_up(
    bench: VhostUserBench, back_end: BackEnd, make: Make
) -> None:
    bench.start()
    bench.ask(b"x")
    queue = back_end._rings[0]
    lent, queue.call = queue.call, os.eventfd(0, os.EFD_CLOEXEC)
    bench.drivers[0].enable_interrupts()
    bench.interrupts()
    bench.offer(b"y")
    wait(lambda: os.eventfd_read(queue.call))  # it has told nobody that listens
    os.close(lent)
    assert bench.interrupts() == 0
    back_end.die()
    make(features=FEATURES | CONFIG_WCE)
    wait(lambda: select.select([bench.irq_fd], [], [], 0)[0])
    assert len(bench.drivers[0].collect()) == 1
