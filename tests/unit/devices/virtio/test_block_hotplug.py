"""A disk's image comes and goes under the driver's eyes: what it is shown, and what is served."""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.iothread import IoThread
from pyvirt.devices.virtio import block as block_module
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio import served, turn
from pyvirt.devices.virtio.block import RO, Block, BlockConfig, Image
from pyvirt.errors import BackendError, KvmError, PyvirtError
from pyvirt.native import ffi, lib
from pyvirt.vmm.memory import GuestMemory

from ...refusal import refusal
from .bench import NEGOTIATED, RINGS, RUNNING, DeviceBench, take
from .mock_driver import Driver, Layout
from .stuck import stuck

SECTORS = 2048
IN, OUT, FLUSH, GET_ID, DISCARD = 0, 1, 4, 8, 11
OK, IOERR = 0, 1
SIZE = 16
HEADERS, STATUSES, DATA = 0x20_0000, 0x20_1000, 0x20_2000
UNANSWERED = 0xAA
PATIENCE = 30.0
ACCEPTED = r.VERSION_1 | block_module.FLUSH | block_module.DISCARD


def make_image(path: Path, sectors: int = SECTORS, data: bytes = b"") -> Path:
    path.write_bytes(data)
    os.truncate(path, 512 * sectors)
    return path


class Guest(DeviceBench):
    """A block device behind its transport, and an honest driver of its queue."""

    def __init__(self, memory: GuestMemory, block: Block, **words: Any) -> None:
        super().__init__(memory, block, **words)
        self.memory = memory
        self.block = block
        self._place = 0

    def close(self) -> None:
        """Close all but the device; the driver's views of memory are gone."""
        self.__dict__.pop("driver", None)
        super().close()

    def bind(self, features: int = ACCEPTED) -> None:
        """Drive the device, as from a reset."""
        self.set(r.STATUS, 0)
        # From DRIVER on, what is offered stays.
        self.set_status(r.ACKNOWLEDGE | r.DRIVER)
        offered = 0
        for word in range(4):
            self.set(r.DEVICE_FEATURES_SEL, word)
            offered |= self.get(r.DEVICE_FEATURES) << 32 * word
        assert self.negotiate(offered & features | r.VERSION_1) == NEGOTIATED
        self.memory.write(RINGS, bytes(0x1_0000))
        self.set_queue(0, SIZE)
        # Where set_queue puts the three parts.
        layout = Layout(RINGS, RINGS + 0x4000, RINGS + 0x8000, SIZE)
        self.driver = Driver(self.memory, layout)  # type: ignore[arg-type]
        assert self.set_status(r.DRIVER_OK) == RUNNING

    def send(self, kind: int, sector: int = 0, data: bytes = b"", length: int = 0) -> int:
        """Offer a request with `data` or room for `length` bytes; return where its parts are."""
        place, self._place = self._place, (self._place + 1) % SIZE
        header, status, room = HEADERS + 16 * place, STATUSES + place, DATA + 0x2000 * place
        self.memory.write(header, struct.pack("<IIQ", kind, 0, sector))
        self.memory.write(status, bytes([UNANSWERED]))
        readable, writable = [(header, 16)], [(status, 1)]
        if data:
            self.memory.write(room, data)
            readable.append((room, len(data)))
        if length:
            writable.insert(0, (room, length))
        self.driver.add(readable, writable)
        if self.driver.publish():
            os.eventfd_write(self.kicks[0], 1)
        return place

    def collect(self, count: int) -> None:
        """Wait for the answers to `count` requests, by the interrupt."""
        patience = time.monotonic() + PATIENCE
        while count > 0:
            count -= len(self.driver.collect())
            if count > 0:
                select.select([self.irq_fd], [], [], 0.1)
                take(self.irq_fd)
                assert time.monotonic() < patience, f"{count} requests have no answer"

    def status(self, place: int) -> int:
        return self.memory.read(STATUSES + place, 1)[0]

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", length: int = 0) -> int:
        """Carry one request out; return its status."""
        place = self.send(kind, sector, data, length)
        self.collect(1)
        return self.status(place)

    def read(self, sector: int, length: int = 512) -> bytes:
        place = self.send(IN, sector, b"", length)
        self.collect(1)
        assert self.status(place) == OK
        return self.memory.read(DATA + 0x2000 * place, length)

    @property
    def capacity(self) -> int:
        return self.get(r.CONFIG, 8)

    def offered(self) -> int:
        """Return the first word of what the device offers."""
        self.set(r.DEVICE_FEATURES_SEL, 0)
        return self.get(r.DEVICE_FEATURES)


@pytest.fixture
def guest(memory: GuestMemory) -> Iterator[Guest]:
    """A slot without an image, and no driver yet."""
    block = Block(slot=1)
    guest = Guest(memory, block)
    yield guest
    guest.close()
    block.close()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    opened = open_image(tmp_path / "a", data=b"A" * 512)
    yield opened
    opened.close()


def open_image(path: Path, sectors: int = SECTORS, data: bytes = b"", **options: Any) -> Image:
    make_image(path, sectors, data)
    return Image(BlockConfig(path.name, str(path), **options))


def test_an_empty_slot_offers_what_any_image_may_have(guest: Guest) -> None:
    bits = block_module
    assert guest.capacity == 0
    superset = bits.SEG_MAX | bits.BLK_SIZE | bits.FLUSH | bits.TOPOLOGY
    assert guest.offered() & 0xFFFFFF == superset | bits.DISCARD | bits.WRITE_ZEROES
    assert struct.unpack_from("<I", guest.map, r.CONFIG + 12) == (126,)
    assert struct.unpack_from("<I", guest.map, r.CONFIG + 20) == (512,)
    assert guest.block.backend == ""


@pytest.mark.parametrize("kind", [IN, OUT, FLUSH, GET_ID, DISCARD, 99])
def test_an_empty_slot_answers_with_an_error(guest: Guest, kind: int) -> None:
    guest.bind()
    assert guest.ask(kind, 0, bytes(512) if kind == OUT else b"", 512 if kind == IN else 0) == IOERR
    assert guest.log == []


def test_a_driver_that_is_bound_sees_the_disk_come_and_go(guest: Guest, image: Image) -> None:
    guest.bind()
    take(guest.irq_fd)
    for life in range(3):
        generation = guest.get(r.CONFIG_GENERATION)
        guest.block.attach(image)
        assert guest.block.backend == "a"
        assert guest.capacity == SECTORS
        assert guest.get(r.CONFIG_GENERATION) == generation + 1
        assert guest.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
        assert guest.interrupts() >= 1
        guest.set(r.INTERRUPT_ACK, r.INTERRUPT_CONFIG)
        expected = b"A" if life == 0 else b"B"
        assert guest.read(0) == expected * 512
        assert guest.ask(OUT, 0, b"B" * 512) == OK
        guest.block.detach()
        assert guest.block.backend == ""
        assert guest.capacity == 0
        assert guest.get(r.CONFIG_GENERATION) == generation + 2
        assert guest.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
        assert guest.ask(IN, 0, b"", 512) == IOERR
        guest.block.detach()
        assert guest.get(r.CONFIG_GENERATION) == generation + 2
    assert guest.log == []


def test_a_detached_image_can_be_closed_and_opened_by_others(guest: Guest, tmp_path: Path) -> None:
    guest.bind()
    first = open_image(tmp_path / "a")
    guest.block.attach(first)
    assert "in use" in refusal(lambda: Image(first.config))
    guest.block.detach()
    first.close()
    first.close()
    Image(first.config).close()


def test_an_image_that_hangs_stays(
    guest: Guest, image: Image, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "LIMIT_S", 0.05)
    guest.bind()
    guest.block.attach(image)
    generation = guest.get(r.CONFIG_GENERATION)
    with stuck(memory, DATA) as page:
        place = guest.send(IN, 0, b"", 512)
        page.wait_for_somebody()
        for change in (guest.block.detach, lambda: guest.block.resize(4096)):
            with pytest.raises(BackendError, match=r"has not completed .* within 0\.05 s"):
                change()
            assert (guest.capacity, guest.get(r.CONFIG_GENERATION)) == (SECTORS, generation)
            assert guest.status(place) == UNANSWERED
        page.release()
        guest.collect(1)
    assert guest.status(place) == OK
    assert guest.read(0) == b"A" * 512
    guest.block.detach()
    assert guest.capacity == 0


def test_a_reset_that_hangs_gives_the_device_up(
    guest: Guest, image: Image, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the host is done; then a driver may begin anew."""
    monkeypatch.setattr(turn, "LIMIT_S", 0.05)
    guest.bind()
    guest.block.attach(image)
    guest.interrupts()
    with stuck(memory, DATA) as page:
        place = guest.send(IN, 0, b"", 512)
        page.wait_for_somebody()
        guest.set(r.STATUS, 0)
        assert guest.transport.is_given_up
        assert guest.get(r.STATUS) == RUNNING | r.NEEDS_RESET
        assert guest.interrupts() == 1
        for value in (0, r.ACKNOWLEDGE, r.ACKNOWLEDGE | r.DRIVER, 0):
            guest.set(r.STATUS, value)
        assert guest.get(r.STATUS) == RUNNING | r.NEEDS_RESET
        for change in (guest.block.detach, lambda: guest.block.resize(4096)):
            with pytest.raises(BackendError, match="still has requests from before its reset"):
                change()
        image.close()
        guest.transport.report()
        late = "the host has not completed its requests within 0.05 s; see to the storage"
        assert guest.log == [f"disk a: {late}; the device is given up until then"]
        page.release()
        until = time.monotonic() + PATIENCE
        while guest.get(r.STATUS):
            guest.set(r.STATUS, 0)
            assert time.monotonic() < until
        assert guest.status(place) == UNANSWERED
    guest.bind()
    assert guest.read(0) == b"A" * 512
    guest.block.detach()


def test_a_reset_that_waits_keeps_only_the_driver(
    guest: Guest, image: Image, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the monitor's report nor who tells of a change, nor, for long, an unplug."""
    monkeypatch.setattr(turn, "LIMIT_S", PATIENCE)
    guest.bind()
    guest.block.attach(image)
    with stuck(memory, DATA) as page:
        guest.send(IN, 0, b"", 512)
        page.wait_for_somebody()
        driver = threading.Thread(target=guest.set, args=(r.STATUS, 0))
        driver.start()
        while not guest.transport._turn._lock.locked():
            time.sleep(0.001)
        guest.transport.report()
        guest.block.config_changed()
        monkeypatch.setattr(turn, "LIMIT_S", 0.05)
        generation = int.from_bytes(
            guest.map[r.CONFIG_GENERATION : r.CONFIG_GENERATION + 4], "little"
        )
        with pytest.raises(BackendError, match=r"busy for more than 0\.05 s"):
            guest.block.detach()
        assert driver.is_alive()
        page.release()
        driver.join(PATIENCE)
        assert not driver.is_alive()
    assert guest.get(r.STATUS) == 0
    # What was to be told of has been since.
    assert guest.get(r.CONFIG_GENERATION) == generation + 1
    assert guest.log == []
    assert guest.block.detach() is image


def test_another_image_in_the_same_slot(guest: Guest, image: Image, tmp_path: Path) -> None:
    guest.bind()
    other = open_image(tmp_path / "b", 64, b"b" * 512, serial="S/N b")
    guest.block.attach(image)
    assert guest.read(0)[:1] == b"A"
    assert guest.ask(IN, SECTORS - 1, b"", 512) == OK
    guest.block.detach()
    guest.block.attach(other)
    assert guest.capacity == 64
    assert guest.read(0)[:1] == b"b"
    assert guest.ask(IN, 64, b"", 512) == IOERR
    assert guest.ask(IN, SECTORS - 1, b"", 512) == IOERR
    place = guest.send(GET_ID, 0, b"", 20)
    guest.collect(1)
    assert guest.memory.read(DATA + 0x2000 * place, 20) == b"S/N b".ljust(20, b"\0")
    guest.block.detach()
    guest.block.attach(other, serial="own")
    place = guest.send(GET_ID, 0, b"", 20)
    guest.collect(1)
    assert guest.memory.read(DATA + 0x2000 * place, 20) == b"own".ljust(20, b"\0")
    guest.block.detach()
    other.close()


def test_before_the_driver_is_up_the_device_is_as_the_image(guest: Guest, tmp_path: Path) -> None:
    image = open_image(tmp_path / "ro", readonly=True)
    guest.set(r.DEVICE_FEATURES_SEL, 0)
    guest.set_status(r.ACKNOWLEDGE)
    guest.block.attach(image)
    assert guest.get(r.DEVICE_FEATURES) & RO
    assert guest.capacity == SECTORS
    assert guest.interrupts() == 0
    guest.bind()
    assert guest.interrupts() == 0
    assert guest.ask(OUT, 0, bytes(512)) == IOERR
    assert guest.read(0) == bytes(512)
    guest.block.detach()
    image.close()


def test_a_change_before_driver_ok_is_told_at_driver_ok(guest: Guest, image: Image) -> None:
    """A driver reads the capacity before it is ready for interrupts."""
    assert guest.negotiate() == NEGOTIATED
    assert guest.capacity == 0
    guest.block.attach(image)
    assert guest.interrupts() == 0
    guest.set_queue(0, SIZE)
    guest.set_status(r.DRIVER_OK)
    assert guest.interrupts() == 1
    assert guest.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
    guest.set(r.STATUS, 0)
    assert guest.negotiate() == NEGOTIATED
    guest.set_queue(0, SIZE)
    guest.set_status(r.DRIVER_OK)
    assert guest.interrupts() == 0
    guest.block.detach()


@pytest.mark.parametrize("readonly", [True, False])
def test_a_driver_cannot_learn_of_read_only_later(
    memory: GuestMemory, tmp_path: Path, readonly: bool
) -> None:
    """It asks once; so the plug is refused until the driver begins anew."""
    first = make_image(tmp_path / "first")
    block = Block(BlockConfig("first", str(first), readonly=not readonly))
    guest = Guest(memory, block)
    guest.bind()
    first_image = block.resource
    block.detach()
    assert first_image
    first_image.close()
    image = open_image(tmp_path / "second", readonly=readonly)
    before = bytes(guest.map[:])
    known, wanted = ("writable", "read-only") if readonly else ("read-only", "writable")
    assert refusal(lambda: block.attach(image)) == (
        f"disk second: {wanted}, and the guest's driver took its slot for a {known} disk, which it "
        f"asks only when it starts; plug it {known}, or unbind the driver in the guest first"
    )
    assert bytes(guest.map[:]) == before
    assert block.backend == ""
    assert guest.ask(IN, 0, b"", 512) == IOERR
    guest.set(r.STATUS, 0)
    block.attach(image)
    guest.bind()
    assert bool(guest.offered() & RO) == readonly
    assert guest.ask(OUT, 0, bytes(512)) == (IOERR if readonly else OK)
    guest.close()
    block.close()
    assert image.disk.fd == -1


def test_a_slot_is_taken_once(guest: Guest, image: Image, tmp_path: Path) -> None:
    other = open_image(tmp_path / "b")
    guest.bind()
    guest.block.attach(image)
    message = "disk a: is in this slot already; take it out first"
    assert refusal(lambda: guest.block.attach(other)) == message
    assert guest.block.backend == "a"
    assert guest.read(0)[:1] == b"A"
    other.close()
    guest.block.detach()


@pytest.mark.parametrize(("queues", "size"), [(2, 256), (1, 512)])
def test_no_more_queues_than_the_slot_has(
    guest: Guest, tmp_path: Path, queues: int, size: int
) -> None:
    image = open_image(tmp_path / "q", queues=queues, queue_size=size)
    assert refusal(lambda: guest.block.attach(image)) == (
        f"disk q: {queues} queues of {size}: its slot has 1 of 256; give no more"
    )
    image.close()


def test_block_sizes_stay_as_the_driver_knows_them(guest: Guest, image: Image) -> None:
    image.disk.offset_align = 4096
    guest.bind()
    geometry = guest.map[r.CONFIG + 8 : r.CONFIG + 60]
    guest.block.attach(image)
    assert guest.map[r.CONFIG + 8 : r.CONFIG + 60] == geometry
    assert guest.ask(OUT, 3, b"x" * 512) == OK
    assert guest.read(3) == b"x" * 512
    assert guest.read(0, 512) == b"A" * 512
    data = Path(image.config.path).read_bytes()
    assert data[:4096] == b"A" * 512 + bytes(1024) + b"x" * 512 + bytes(2048)
    guest.bind()
    assert struct.unpack_from("<I", guest.map, r.CONFIG + 20) == (512,)
    guest.block.detach()


def test_discards_of_an_image_that_keeps_its_room_do_nothing(guest: Guest, image: Image) -> None:
    guest.bind()
    guest.block.attach(image)
    blocks = os.stat(image.config.path).st_blocks
    assert guest.ask(DISCARD, 0, struct.pack("<QII", 0, SECTORS, 0)) == OK
    assert guest.read(0) == b"A" * 512
    assert os.stat(image.config.path).st_blocks == blocks
    assert guest.ask(DISCARD, 0, struct.pack("<QII", 1, SECTORS, 0)) == IOERR
    guest.block.detach()


def test_what_is_in_flight_is_completed(guest: Guest, tmp_path: Path) -> None:
    """A throttled disk has requests waiting; they are not lost, and not failed."""
    slow = open_image(tmp_path / "slow", data=b"s" * 512, iops=1)
    guest.bind()
    guest.block.attach(slow)
    first = guest.send(IN, 0, b"", 512)
    guest.collect(1)
    held = guest.send(IN, 0, b"", 512)
    patience = time.monotonic() + PATIENCE
    while guest.block.stats().throttled == 0:
        assert time.monotonic() < patience
        time.sleep(0.001)
    guest.block.detach()
    guest.collect(1)
    assert [guest.status(place) for place in (first, held)] == [OK, OK]
    slow.close()


@pytest.mark.parametrize(("aio", "theirs"), [("io_uring", "threads"), ("threads", "io_uring")])
def test_an_iothread_that_serves_another_device_otherwise(
    memory: GuestMemory, tmp_path: Path, aio: str, theirs: str
) -> None:
    """The slot stays empty and served, and the image can be plugged without it."""
    thread = IoThread("io0")
    first = BlockConfig("a", str(make_image(tmp_path / "a")), engine=theirs, iothread=thread)
    other = GuestMemory(128 << 20)
    one, two = Guest(other, Block(first)), Guest(memory, Block(slot=1))
    image = Image(BlockConfig("d", str(make_image(tmp_path / "d")), engine=aio))
    try:
        one.bind()
        two.bind()
        assert refusal(lambda: two.block.attach(image, iothread=thread)) == (
            f"disk d: the iothread io0 serves another device by {theirs}, and this disk's aio is "
            f"{aio}; give it aio {theirs}, or another iothread"
        )
        assert two.block.resource is None
        assert two.ask(IN, length=512) == IOERR
        assert one.ask(IN, length=512) == OK
        two.block.attach(image)
        assert two.ask(IN, length=512) == OK
        two.block.detach()
    finally:
        for guest in (one, two):
            guest.close()
            guest.block.close()
        image.close()
        other.close()


@pytest.mark.long
@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_every_request_is_answered_while_disks_come_and_go(
    guest: Guest, tmp_path: Path, engine: str
) -> None:
    images = [
        open_image(tmp_path / name, SECTORS * (1 + place), name.encode() * 512, engine=engine)
        for place, name in enumerate("abc")
    ]
    guest.bind()
    done, moments = threading.Event(), random.Random(5)
    failures: list[PyvirtError] = []
    cycles = 150

    def plug() -> None:
        try:
            for _ in range(cycles):
                image = moments.choice(images)
                guest.block.attach(image)
                time.sleep(moments.uniform(0, 0.002))
                guest.block.detach()
        except PyvirtError as error:
            failures.append(error)
        finally:
            done.set()

    plugger = threading.Thread(target=plug)
    plugger.start()
    seen: dict[int, int] = {}
    while not done.is_set():
        places = [guest.send(IN, 0, b"", 512) for _ in range(moments.randint(1, 5))]
        guest.collect(len(places))
        for place in places:
            status = guest.status(place)
            seen[status] = seen.get(status, 0) + 1
            if status == OK:
                data = guest.memory.read(DATA + 0x2000 * place, 512)
                assert data in [letter * 512 for letter in (b"a", b"b", b"c")]
    plugger.join(PATIENCE)
    assert failures == []
    assert set(seen) == {OK, IOERR}
    assert guest.get(r.STATUS) == RUNNING
    assert guest.log == []
    for image in images:
        image.close()


def test_resets_while_disks_come_and_go(guest: Guest, image: Image) -> None:
    done = threading.Event()

    def plug() -> None:
        while not done.is_set():
            guest.block.attach(image)
            guest.block.detach()

    plugger = threading.Thread(target=plug)
    plugger.start()
    try:
        for _ in range(100):
            guest.bind()
            guest.send(IN, 0, b"", 512)
    finally:
        done.set()
        plugger.join(PATIENCE)
    assert not plugger.is_alive()
    guest.bind()
    assert guest.ask(IN, 0, b"", 512) == IOERR
    guest.block.attach(image)
    assert guest.read(0)[:1] == b"A"
    guest.block.detach()


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Counting:
    """The C side, whose objects are counted."""

    def __init__(self) -> None:
        self.alive = 0

    def __getattr__(self, name: str) -> Any:
        function = getattr(lib, name)
        step = {"pv_block_new": 1, "pv_block_free": -1}.get(name, 0)

        def call(*arguments: Any) -> Any:
            self.alive += step
            return function(*arguments)

        return call if step else function


def test_nothing_is_left_behind(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(served, "lib", counting)
    path = make_image(tmp_path / "a")
    config = BlockConfig("a", str(path))
    guest.bind()
    before = threads(), descriptors()
    for _ in range(200):
        image = Image(config)
        guest.block.attach(image)
        assert guest.ask(FLUSH) == OK
        guest.block.detach()
        image.close()
    assert (threads(), descriptors()) == before
    assert counting.alive == 0


def test_a_guest_that_cannot_be_told(memory: GuestMemory, image: Image) -> None:
    """KVM may refuse to hide the registers for the moment of a change."""
    fails = False

    def exclusively(change: Callable[[], None]) -> None:
        if fails:
            raise KvmError("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM)
        change()

    block = Block()
    guest = Guest(memory, block, exclusively=exclusively)
    guest.bind()
    fails = True
    with pytest.raises(KvmError):
        block.attach(image)
    assert block.backend == ""
    assert guest.ask(IN, 0, b"", 512) == IOERR
    fails = False
    block.attach(image)
    assert guest.read(0)[:1] == b"A"
    fails = True
    with pytest.raises(KvmError):
        block.detach()
    assert block.backend == ""
    assert guest.ask(IN, 0, b"", 512) == IOERR
    guest.close()
    block.close()


class Failing:
    """The C side, in which some functions fail."""

    def __init__(self, **results: int) -> None:
        self.results = results

    def __getattr__(self, name: str) -> Any:
        if name in self.results:
            return lambda *_: self.results[name]
        return getattr(lib, name)


def test_a_worker_that_cannot_start_leaves_things_as_they_were(
    guest: Guest, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.bind()
    before = bytes(guest.map[:])
    monkeypatch.setattr(served, "lib", Failing(pv_block_start=-24))
    with pytest.raises(PyvirtError, match="disk a: cannot start"):
        guest.block.attach(image)
    monkeypatch.undo()
    assert bytes(guest.map[:]) == before
    assert guest.block.backend == ""
    assert guest.block.name == "disk slot 1"
    assert guest.ask(IN, 0, b"", 512) == IOERR
    guest.block.attach(image)
    assert guest.read(0)[:1] == b"A"
    guest.block.detach()


def test_when_nothing_can_serve_the_queues_the_device_breaks(
    guest: Guest, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest.bind()
    guest.block.attach(image)
    monkeypatch.setattr(served, "lib", Failing(pv_block_start=-11, pv_vacant_start=-11))
    with pytest.raises(PyvirtError, match="disk slot 1: cannot start"):
        guest.block.detach()
    monkeypatch.undo()
    guest.transport.report()
    assert len(guest.log) == 1
    assert guest.log[0].startswith("disk a: disk a: cannot start")
    assert guest.get(r.STATUS) == RUNNING | r.NEEDS_RESET
    assert guest.block.backend == "a"
    guest.bind()
    assert guest.read(0)[:1] == b"A"
    guest.block.detach()


def test_a_broken_device_is_served_again_after_its_reset(guest: Guest, image: Image) -> None:
    guest.bind()
    guest.block.attach(image)
    guest.driver.add([(HEADERS, 16)], [])
    guest.driver.publish()
    os.eventfd_write(guest.kicks[0], 1)
    assert select.select([guest.broken_fd], [], [], PATIENCE)[0]
    guest.block.detach()
    assert guest.capacity == 0
    guest.block.attach(image)
    place = guest.send(IN, 0, b"", 512)
    os.eventfd_write(guest.kicks[0], 1)
    time.sleep(0.05)
    assert guest.status(place) == UNANSWERED
    guest.transport.report()
    assert guest.log == ["disk a: a block request without a status byte; it needs a reset"]
    assert guest.get(r.STATUS) == RUNNING | r.NEEDS_RESET
    guest.bind()
    assert guest.read(0)[:1] == b"A"
    guest.block.detach()


def test_counters_are_the_images(guest: Guest, image: Image) -> None:
    guest.bind()
    guest.ask(IN, 0, b"", 512)
    assert bytes(ffi.buffer(guest.block.stats())) == bytes(ffi.sizeof("struct pv_block_stats"))
    guest.block.attach(image)
    guest.read(0)
    assert guest.block.stats().bytes_read == 512
    guest.block.detach()
    assert guest.block.stats().bytes_read == 0


def test_failures_of_the_host_are_told_one_a_second(guest: Guest, image: Image) -> None:
    guest.bind()
    guest.block.attach(image)
    assert guest.ask(IN, SECTORS, b"", 512) == IOERR
    assert guest.block.take_failure() is None, "the guest's own fault"
    os.truncate(image.config.path, 4096)
    took = time.monotonic()
    for _ in range(10):
        assert guest.ask(IN, 100, b"", 512) == IOERR
    assert take(guest.broken_fd) == 1 or time.monotonic() - took > 0.5
    assert guest.block.take_failure() == ("read", errno.EIO)
    assert guest.block.stats().errors == 11
    guest.block.detach()
    assert guest.block.take_failure() is None


def test_a_full_file_system_is_a_failure_to_write(guest: Guest, image: Image) -> None:
    guest.bind()
    guest.block.attach(image)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert guest.ask(OUT, 100, bytes(512)) == IOERR
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert guest.block.take_failure() == ("write", errno.EFBIG)
    guest.block.detach()
