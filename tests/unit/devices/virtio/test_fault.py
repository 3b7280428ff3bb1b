"""Faults of devices behind their transports: rules, resets, plugging, sizes, interrupts."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import Block, BlockConfig, Image
from pyvirt.devices.virtio.fault import KINDS, OPERATIONS, Fault
from pyvirt.errors import ConfigError
from pyvirt.native import lib

from ...refusal import refusal
from .bench import NEGOTIATED, Notes, take
from .test_block_hotplug import (
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    PATIENCE,
    SECTORS,
    STATUSES,
    UNANSWERED,
    Guest,
    make_image,
    open_image,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyvirt.vmm.memory import GuestMemory

MS = 1_000_000


@pytest.fixture
def guest(memory: GuestMemory, tmp_path: Path) -> Iterator[Guest]:
    """A disk whose driver is at work."""
    block = Block(BlockConfig("d", str(make_image(tmp_path / "d", data=b"A" * 512))))
    guest = Guest(memory, block)
    guest.bind()
    take(guest.irq_fd)
    yield guest
    guest.close()
    block.close()


def test_the_names_are_those_of_the_bits() -> None:
    for bit, op in enumerate(OPERATIONS):
        name = {"write-zeroes": "ZEROES"}.get(op, op.upper())
        assert getattr(lib, f"PV_FAULT_{name}") == 1 << bit
    for number, kind in enumerate(KINDS, 1):
        assert getattr(lib, f"PV_FAULT_{kind.upper()}") == number


def test_what_a_rule_says_is_what_it_is_asked_as(guest: Guest) -> None:
    faults = guest.block.faults()
    asked = [
        Fault("delay", ["flush", "read"], delay_ns=5 * MS, after=3, every=4, count=5),
        Fault("fail", ["write"], errno=28, sectors=(8, 15)),
        Fault("corrupt", offset=17),
        Fault("drop", ["discard", "interrupt"]),
    ]
    assert [faults.add(fault) for fault in asked] == [1, 2, 3, 4]
    for state, fault in zip(faults.states(), asked, strict=True):
        for field in Fault.__slots__:
            if field not in {"ops", "errno"}:
                assert getattr(state.fault, field) == getattr(fault, field), field
    assert [state.fault.ops for state in faults.states()] == [
        ("read", "flush"),
        ("write",),
        ("read",),
        ("discard", "interrupt"),
    ]
    assert faults.states()[1].fault.errno == 28
    faults.clear(2)
    assert [state.id for state in faults.states()] == [1, 3, 4]
    faults.clear()
    assert faults.states() == []


def test_without_operations_it_is_all_requests_but_no_interrupt(guest: Guest) -> None:
    faults = guest.block.faults()
    faults.add(Fault("drop"))
    faults.add(Fault("drop", sectors=(0, 0)))
    faults.add(Fault("double"))
    ops = [state.fault.ops for state in faults.states()]
    assert ops == [OPERATIONS[:5], ("read", "write"), ("interrupt",)]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("delay", ["tx"], count=1),
         "disk d: fault delay is not for tx, but for read, write, flush, discard, write-zeroes"),
        (Fault("double", sectors=(0, 1)),
         "disk d: no fault double of sectors; leave them out"),
        (Fault("corrupt", ["write"]), "disk d: fault corrupt is not for write, but for read"),
        (Fault("fail", ["flush"], sectors=(0, 1)),
         "disk d: fault fail of sectors is not for flush, but for read, write"),
    ],
)  # fmt: skip
def test_what_a_disk_cannot_do(guest: Guest, fault: Fault, message: str) -> None:
    assert refusal(lambda: guest.block.faults().add(fault)) == message
    assert guest.block.faults().states() == []


def test_what_other_devices_can_do(memory: GuestMemory) -> None:
    bench = Guest.__bases__[0](memory, Notes())
    faults = bench.device.faults()
    assert refusal(lambda: faults.add(Fault("delay"))) == (
        "dev0: no fault delay; there are drop, double"
    )
    faults.add(Fault("drop"))
    assert [state.fault.ops for state in faults.states()] == [("interrupt",)]
    bench.close()


def test_so_many_and_no_more(guest: Guest) -> None:
    faults = guest.block.faults()
    for _ in range(lib.PV_FAULT_RULES):
        faults.add(Fault("fail", after=1000))
    assert refusal(lambda: faults.add(Fault("fail"))) == "disk d: 32 faults is the most; clear some"
    assert refusal(lambda: faults.clear(99)) == "disk d: has no fault 99"
    assert guest.read(0) == b"A" * 512


def test_the_driver_may_reset_and_meets_it_again(guest: Guest) -> None:
    guest.block.faults().add(Fault("fail", ["read"]))
    assert guest.ask(IN, length=512) == IOERR
    guest.bind()
    assert guest.ask(IN, length=512) == IOERR
    guest.block.faults().clear()
    assert guest.read(0) == b"A" * 512


def wait_for_hits(guest: Guest, hits: int) -> None:
    patience = time.monotonic() + PATIENCE
    while sum(state.hits for state in guest.block.faults().states()) < hits:
        assert time.monotonic() < patience
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["delay", "drop"])
def test_a_reset_waits_for_nothing(guest: Guest, kind: str) -> None:
    guest.block.faults().add(Fault(kind, delay_ns=3600 * 1000 * MS))
    places = [guest.send(IN, length=512) for _ in range(3)]
    wait_for_hits(guest, 3)
    guest.set(r.STATUS, 0)
    expected = OK if kind == "delay" else IOERR
    assert [guest.status(place) for place in places] == [expected] * 3


@pytest.mark.parametrize("kind", ["delay", "drop"])
def test_unplugging_drains(guest: Guest, tmp_path: Path, kind: str) -> None:
    guest.block.faults().add(Fault(kind, ["write"], delay_ns=3600 * 1000 * MS))
    place = guest.send(OUT, 1, b"B" * 512)
    wait_for_hits(guest, 1)
    # As Machine.detach does.
    guest.block.faults().clear()
    image = guest.block.detach()
    assert image is not None
    guest.collect(1)
    assert guest.status(place) == OK
    assert (tmp_path / "d").read_bytes()[512:1024] == b"B" * 512
    image.close()
    other = open_image(tmp_path / "e", data=b"E" * 512)
    guest.block.attach(other)
    assert guest.read(0) == b"E" * 512
    guest.block.detach()
    other.close()


def test_a_dropped_request_is_answered_when_the_rule_goes(guest: Guest) -> None:
    faults = guest.block.faults()
    number = faults.add(Fault("drop", ["read"], count=1))
    lost = guest.send(IN, length=512)
    wait_for_hits(guest, 1)
    assert guest.ask(IN, length=512) == OK
    assert guest.status(lost) == UNANSWERED
    faults.clear(number)
    guest.collect(1)
    assert guest.status(lost) == OK


def test_the_monitor_hears_of_failures(guest: Guest) -> None:
    guest.block.faults().add(Fault("fail", errno=28))
    assert guest.ask(OUT, data=bytes(512)) == IOERR
    assert guest.block.take_failure() == ("write", 28)


def test_a_lost_interrupt_is_made_up_for_by_the_next(guest: Guest) -> None:
    faults = guest.block.faults()
    faults.add(Fault("drop", ["interrupt"], count=1))
    first = guest.send(FLUSH)
    wait_for_hits(guest, 1)
    assert guest.status(first) == OK
    assert guest.interrupts() == 0
    # The bit is there all the same, for whom asks.
    assert guest.get(r.INTERRUPT_STATUS) & r.INTERRUPT_USED
    second = guest.send(FLUSH)
    guest.collect(2)
    assert guest.status(second) == OK


def test_a_lost_interrupt_comes_when_the_rule_goes(guest: Guest) -> None:
    faults = guest.block.faults()
    faults.add(Fault("drop", ["interrupt"]))
    other = faults.add(Fault("delay", delay_ns=1))
    guest.send(FLUSH)
    wait_for_hits(guest, 2)
    patience = time.monotonic() + PATIENCE
    while not guest.get(r.INTERRUPT_STATUS):
        assert time.monotonic() < patience
    faults.clear(other)
    assert guest.interrupts() == 0
    faults.clear()
    assert guest.interrupts() == 1
    faults.clear()
    assert guest.interrupts() == 0


def test_a_doubled_interrupt_comes_again(guest: Guest) -> None:
    guest.block.faults().add(Fault("double", count=1))
    assert guest.ask(FLUSH) == OK
    wait_for_hits(guest, 1)
    assert select.select([guest.broken_fd], [], [], PATIENCE)[0]
    assert os.eventfd_read(guest.broken_fd) == 1
    take(guest.irq_fd)
    guest.transport.report()
    assert guest.interrupts() == 1
    guest.transport.report()
    assert guest.interrupts() == 0


def test_a_forced_reset(guest: Guest) -> None:
    faults = guest.block.faults()
    take(guest.irq_fd)
    faults.break_device()
    assert guest.get(r.STATUS) & r.NEEDS_RESET
    assert guest.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    assert guest.interrupts() == 1
    guest.send(FLUSH)
    time.sleep(0.05)
    assert guest.driver.collect() == []
    guest.transport.report()
    assert guest.log == ["disk d: somebody asked for DEVICE_NEEDS_RESET; it needs a reset"]
    guest.bind()
    assert guest.ask(FLUSH) == OK


def test_no_reset_is_forced_on_nobody(guest: Guest) -> None:
    guest.set(r.STATUS, 0)
    assert guest.negotiate() == NEGOTIATED
    message = "disk d: no driver is at work on it; start one"
    assert refusal(guest.block.faults().break_device) == message
    assert guest.get(r.STATUS) == NEGOTIATED


# The capacity


def test_a_disk_grows_and_shrinks(guest: Guest, tmp_path: Path) -> None:
    for sectors in (4 * SECTORS, SECTORS // 2, SECTORS):
        generation = guest.get(r.CONFIG_GENERATION)
        take(guest.irq_fd)
        guest.block.resize(512 * sectors)
        assert guest.capacity == sectors
        assert guest.get(r.CONFIG_GENERATION) == generation + 1
        assert guest.interrupts() >= 1
        assert os.stat(tmp_path / "d").st_size == 512 * sectors
        assert guest.ask(OUT, sectors - 1, b"Z" * 512) == OK
        assert guest.ask(OUT, sectors, b"Z" * 512) == IOERR
        assert os.stat(tmp_path / "d").st_size == 512 * sectors
    assert guest.log == []


def test_requests_under_way_are_complete_before(guest: Guest) -> None:
    guest.block.faults().add(Fault("delay", ["write"], delay_ns=3600 * 1000 * MS))
    place = guest.send(OUT, SECTORS - 1, b"Z" * 512)
    wait_for_hits(guest, 1)
    guest.block.resize(256 * SECTORS)
    guest.collect(1)
    assert guest.status(place) == OK
    assert guest.capacity == SECTORS // 2


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "size 0: a disk has some; give at least 512 bytes"),
        (511, "size 511: not a multiple of 512 bytes; give one"),
        ((1 << 63) - 512, f"size {(1 << 63) - 512}: "),
    ],
)
def test_sizes_that_cannot_be(memory: GuestMemory, tmp_path: Path, size: int, reason: str) -> None:
    path = make_image(tmp_path / "d", data=b"A" * 512)
    block = Block(BlockConfig("d", str(path), direct=False))
    guest = Guest(memory, block)
    guest.bind()
    generation = guest.get(r.CONFIG_GENERATION)
    assert refusal(lambda: block.resize(size)).startswith(f"disk d: {reason}")
    assert guest.capacity == SECTORS
    assert guest.get(r.CONFIG_GENERATION) == generation
    assert guest.read(0) == b"A" * 512
    guest.close()
    block.close()


def test_nothing_and_the_unchangeable_have_no_other_size(
    memory: GuestMemory, tmp_path: Path
) -> None:
    empty = Block(slot=3)
    assert refusal(lambda: empty.resize(512)) == (
        "disk slot 3: there is no image in the slot; plug one first"
    )
    block = Block(BlockConfig("d", str(make_image(tmp_path / "d")), readonly=True))
    guest = Guest(memory, block)
    guest.bind()
    assert refusal(lambda: block.resize(1 << 20)) == (
        f"disk d: size {1 << 20}: it is read-only; plug it writable"
    )
    assert guest.read(0) == bytes(512)
    guest.close()
    block.close()


def test_an_image_that_nobody_serves_can_be_resized(tmp_path: Path) -> None:
    block = Block(BlockConfig("d", str(make_image(tmp_path / "d"))))
    block.resize(8 << 20)
    assert block.config()[:8] == (16384).to_bytes(8, "little")
    block.close()


def test_the_device_goes_on_when_it_cannot_be_told(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("no room")

    monkeypatch.setattr("pyvirt.devices.disk.Disk.resize", refuse)
    assert refusal(lambda: guest.block.resize(512)) == "disk d: no room"
    assert guest.read(0) == b"A" * 512
    assert isinstance(guest.block.resource, Image)
    assert guest.memory.read(STATUSES, 1) == bytes([OK])
