"""A disk of another process comes and goes under the eyes of a slot's driver."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import block as vhost_user
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.plugged import Export
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import Block, BlockConfig, Image
from pyvirt.errors import BackendError, ConfigError, PyvirtError

from ...refusal import refusal
from ..virtio.bench import NEGOTIATED
from .back_end import FEATURES
from .bench import VhostUserBench, wait
from .conftest import Hurry, Make

DISK = vhost_user.FLUSH | vhost_user.DISCARD | vhost_user.WRITE_ZEROES
TOLD = vhost_user.SEG_MAX | vhost_user.BLK_SIZE | vhost_user.TOPOLOGY
ALL = FEATURES | DISK | TOLD
ACCEPTED = r.VERSION_1 | r.EVENT_IDX | DISK | TOLD
IOERR = 1
SECTORS = 2048


def space(**words: int) -> bytes:
    """Return the configuration space of a disk that fits."""
    config = bytearray(60)
    fields = {"seg_max": 126, "blk_size": 512, "discard": 32768, "discards": 1, "zeroes": 32768}
    fields |= {"zeroings": 1, "sectors": SECTORS, **words}
    places = {"seg_max": 12, "blk_size": 20, "discard": 36, "discards": 40, "zeroes": 48}
    struct.pack_into("<Q", config, 0, fields.pop("sectors"))
    for name, value in fields.items():
        struct.pack_into("<I", config, places.get(name, 52), value)
    return bytes(config)


class Slot(VhostUserBench):
    """A disk slot behind its transport, empty at first."""

    def __init__(self, config: BlockConfig | None = None, *, shared: bool = True) -> None:
        self.block = Block(config, slot=1)
        super().__init__(self.block, shared=shared)

    @property
    def capacity(self) -> int:
        return self.get(r.CONFIG, 8)

    def offered(self) -> int:
        found = 0
        for word in range(4):
            self.set(r.DEVICE_FEATURES_SEL, word)
            found |= self.get(r.DEVICE_FEATURES) << 32 * word
        return found

    def answer_of_nobody(self) -> bytes:
        return self.ask(b"\0" * 16)[-1:]

    def unplug(self) -> None:
        resource = self.block.detach()
        assert resource is not None
        resource.close()


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot()
    yield slot
    slot.close()


@pytest.fixture
def export(path: Path) -> Callable[[], Export]:
    """Return what connects to a back end."""

    def connect() -> Export:
        where = SocketBackEnd("chardev c", str(path))
        config = vhost_user.BlockConfig("d1", where, queue_size=256, config_wce=False)
        return Export(config)

    return connect


def refused(slot: Slot, disk: Export) -> str:
    """Return why a disk is not taken, which the slot does not show then."""
    generation = slot.get(r.CONFIG_GENERATION)
    message = refusal(lambda: slot.block.attach(disk))
    disk.close()
    assert slot.block.resource is None
    assert (slot.capacity, slot.get(r.CONFIG_GENERATION)) == (0, generation)
    assert slot.answer_of_nobody() == bytes([IOERR])
    return message


def test_comes_and_goes_while_a_driver_is_at_work(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    back_end = make(features=ALL, config=space())
    assert slot.start(ACCEPTED) == 0xF
    for life in range(3):
        assert slot.answer_of_nobody() == bytes([IOERR])
        generation = slot.get(r.CONFIG_GENERATION)
        slot.block.attach(export())
        assert slot.capacity == SECTORS
        assert slot.get(r.CONFIG_GENERATION) == generation + 1
        assert slot.block.backend == "d1"
        for number in range(20):
            assert slot.ask(b"%d" % number) == b"%d" % number
        slot.unplug()
        assert slot.capacity == 0
        assert slot.block.backend == ""
        assert back_end.heard.count(p.GET_VRING_BASE) == life + 1
    assert slot.answer_of_nobody() == bytes([IOERR])
    assert slot.report() == []


def test_is_what_a_later_driver_finds(make: Make, slot: Slot, export: Callable[[], Export]) -> None:
    back_end = make(features=FEATURES & ~r.INDIRECT_DESC | vhost_user.RO, config=space())
    slot.block.attach(export())
    ours = r.VERSION_1 | r.EVENT_IDX | vhost_user.RO
    assert slot.offered() == ours
    assert slot.capacity == SECTORS
    for _ in range(2):
        assert slot.start(ours) == 0xF
        assert slot.ask(b"x") == b"x"
        slot.set(r.STATUS, 0)
    assert back_end.driver_features & ours == ours
    slot.unplug()
    assert slot.offered() & DISK == DISK
    assert slot.start(ACCEPTED) == 0xF
    assert slot.answer_of_nobody() == bytes([IOERR])


def test_the_back_end_hears_of_no_feature_that_it_lacks(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    """The fake one would stop at one."""
    back_end = make(features=FEATURES | DISK, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    assert slot.ask(b"x") == b"x"
    assert back_end.driver_features & (DISK | TOLD) == DISK


@pytest.mark.parametrize(
    ("lacks", "word"),
    [
        (vhost_user.FLUSH, "FLUSH"),
        (vhost_user.DISCARD, "DISCARD"),
        (vhost_user.WRITE_ZEROES, "WRITE_ZEROES"),
        (r.EVENT_IDX, "EVENT_IDX"),
    ],
)
def test_features_that_the_driver_uses_are_needed(
    make: Make, slot: Slot, export: Callable[[], Export], lacks: int, word: str
) -> None:
    make(features=ALL & ~lacks, config=space())
    slot.start(ACCEPTED)
    message = refused(slot, export())
    assert message.startswith("chardev c: /tmp/")
    assert f"the back end lacks {word}, which the guest's driver of the slot uses" in message
    # And others are not.
    slot.set(r.STATUS, 0)
    slot.start(ACCEPTED & ~lacks)
    slot.block.attach(export())
    assert slot.ask(b"x") == b"x"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"blk_size": 4096}, "has blocks of 4096 bytes, and the slot's driver of 512"),
        ({"blk_size": 0}, "has blocks of 0 bytes"),
        ({"seg_max": 125}, "takes 125 segments in a request, and the slot's driver sends 126"),
        ({"discard": 1}, "takes 1 sectors in a discard, and the slot's driver sends 32768"),
        ({"discards": 0}, "takes 0 ranges in a discard"),
        ({"zeroes": 1}, "takes 1 sectors in a write of zeroes"),
        ({"zeroings": 0}, "takes 0 ranges in a write of zeroes"),
    ],
)
def test_what_the_driver_knows_has_to_be_so(
    make: Make, slot: Slot, export: Callable[[], Export], words: dict[str, int], why: str
) -> None:
    make(features=ALL, config=space(**words))
    slot.start(ACCEPTED)
    assert why in refused(slot, export())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"discard": 1 << 22}, "2097152 sectors in a discard"),
        ({"discards": 17}, "16 ranges in a discard"),
        ({"zeroes": 1 << 22}, "2097152 sectors in a write of zeroes"),
        ({"zeroings": 17}, "16 ranges in a write of zeroes"),
    ],
)
def test_an_image_under_a_driver_of_a_disk_that_took_more(
    make: Make,
    slot: Slot,
    export: Callable[[], Export],
    path: Path,
    words: dict[str, int],
    why: str,
) -> None:
    """Requests that the driver counts on would fail."""
    make(features=ALL, config=space(**words))
    slot.block.attach(export())
    slot.start(ACCEPTED)
    slot.unplug()
    file = path.with_name("image")
    file.write_bytes(bytes(1 << 20))
    image = Image(BlockConfig("i", str(file)))
    assert f"disk i: an image takes {why}, and the" in refusal(lambda: slot.block.attach(image))
    assert slot.answer_of_nobody() == bytes([IOERR])
    slot.set(r.STATUS, 0)
    slot.block.attach(image)
    slot.start(ACCEPTED)
    slot.unplug()


def test_a_slot_of_several_queues(make: Make, export: Callable[[], Export], path: Path) -> None:
    """One that an image had at the start, with queues of its own size."""
    make(features=ALL, config=space())
    image = path.with_name("image")
    image.write_bytes(bytes(1 << 20))
    slot = Slot(BlockConfig("i", str(image), queues=2, queue_size=64, unmap=True))
    slot.start(ACCEPTED | vhost_user.MQ)
    slot.unplug()
    disk = export()
    assert "has one queue here" in refusal(lambda: slot.block.attach(disk))
    slot.set(r.STATUS, 0)
    slot.block.attach(disk)
    assert slot.start(ACCEPTED) == 0xF
    assert slot.get(r.CONFIG + 34, 2) == 1
    assert slot.ask(b"x") == b"x"
    slot.unplug()
    slot.close()


def test_a_read_only_disk_under_a_driver_that_writes(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    make(features=ALL | vhost_user.RO, config=space())
    slot.start(ACCEPTED)
    assert "disk d1: read-only, and the guest's driver took its slot" in refused(slot, export())


def test_a_driver_that_has_not_said_which_may_use_all_that_is_offered(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    make(features=ALL & ~vhost_user.DISCARD, config=space())
    assert slot.negotiate(ACCEPTED) == NEGOTIATED
    disk = export()
    assert "lacks DISCARD" in refusal(lambda: slot.block.attach(disk))
    disk.close()


def test_nobody_is_there(path: Path, export: Callable[[], Export]) -> None:
    assert refusal(export) == (
        f"chardev c: {path}: No such file or directory; start the back end first, or name its "
        "socket"
    )


@pytest.mark.parametrize("request_", [p.GET_FEATURES, p.GET_CONFIG])
@pytest.mark.parametrize("garbage", [b"", b"\xff" * 12, b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9])
def test_rubbish(
    make: Make, export: Callable[[], Export], hurry: Hurry, request_: int, garbage: bytes
) -> None:
    """Nothing is left, which `make` sees to."""
    back_end = make(features=ALL, config=space())
    if garbage:
        back_end.answers[request_] = lambda _: back_end.send(garbage)
    else:
        back_end.answers[request_] = lambda _: back_end.say(request_)
    with pytest.raises(PyvirtError) as info:
        export()
    assert str(info.value).startswith("chardev c: ")
    assert "\n" not in str(info.value)


def test_one_that_fails_as_it_gets_the_queues_leaves_the_slot_as_it_was(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    disk = export()
    back_end.answers[p.SET_VRING_ADDR] = lambda _: back_end.number(p.SET_VRING_ADDR, 1)
    with pytest.raises(BackendError, match="vhost-user-blk d1: its back end"):
        slot.block.attach(disk)
    disk.close()
    assert slot.block.resource is None
    assert slot.capacity == 0
    assert slot.answer_of_nobody() == bytes([IOERR])
    back_end.answers.clear()
    slot.block.attach(export())
    assert slot.ask(b"x") == b"x"
    assert slot.report() == []


def test_what_one_has_answered_before_it_failed_is_not_answered_again(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    disk = export()

    def answer_and_fail(_: bytes) -> None:
        slot.offer(b"y")
        # As it would be found by; and who still looks at the ring might answer the next one too.
        os.eventfd_read(back_end._rings[0].kick)
        back_end._serve(0)
        back_end.say(p.GET_FEATURES)

    back_end.answers[p.GET_FEATURES] = answer_and_fail
    with pytest.raises(BackendError, match="vhost-user-blk d1: its back end"):
        slot.block.attach(disk)
    disk.close()
    assert [length for _, length in slot.used()] == [1]
    assert slot.answer_of_nobody() == bytes([IOERR])
    assert slot.report() == []


def test_memory_that_it_cannot_see(make: Make, export: Callable[[], Export]) -> None:
    make(features=ALL, config=space())
    slot = Slot(shared=False)
    slot.start(ACCEPTED)
    disk = export()
    with pytest.raises(BackendError, match="guest memory; give -machine mem-share=on"):
        slot.block.attach(disk)
    disk.close()
    assert slot.answer_of_nobody() == bytes([IOERR])
    slot.close()


def test_another_back_end_may_come(make: Make, slot: Slot, export: Callable[[], Export]) -> None:
    first = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    assert slot.ask(b"x") == b"x"
    first.die()
    wait(lambda: slot.report() and "requests wait" in slot.log[-1])
    slot.offer(b"y")
    make(features=ALL, config=space())
    slot.used()
    wait(lambda: slot.report()[-1] == "vhost-user-blk d1: there is a back end again")
    slot.unplug()
    assert slot.answer_of_nobody() == bytes([IOERR])


def test_none_comes(make: Make, slot: Slot, export: Callable[[], Export], hurry: Hurry) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    hurry()
    back_end.die()
    wait(lambda: slot.is_broken)
    hurry(on=False)
    slot.unplug()
    assert slot.capacity == 0
    slot.set(r.STATUS, 0)
    assert slot.start(ACCEPTED) == 0xF
    assert slot.answer_of_nobody() == bytes([IOERR])


def test_one_that_has_gone_can_be_unplugged_at_once(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    assert slot.ask(b"x") == b"x"
    back_end.die()
    slot.unplug()
    assert slot.answer_of_nobody() == bytes([IOERR])


def test_one_that_keeps_the_queues_stays_plugged(
    make: Make, slot: Slot, export: Callable[[], Export], hurry: Hurry
) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    features: list[bytes] = []
    back_end.answers[p.GET_FEATURES] = features.append
    hurry()
    with pytest.raises(BackendError, match="vhost-user-blk d1: its back end"):
        slot.block.detach()
    hurry(on=False)
    assert slot.block.backend == "d1"
    assert slot.capacity == SECTORS
    back_end.die()
    slot.unplug()


def test_a_change_of_its_size_is_shown(
    make: Make, slot: Slot, export: Callable[[], Export]
) -> None:
    back_end = make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    slot.ask(b"x")
    back_end.config[:8] = struct.pack("<Q", 2 * SECTORS)
    assert back_end.channel
    back_end.channel.sendall(p.message(p.BACKEND_CONFIG_CHANGE, need_reply=True))
    wait(lambda: slot.report() == [] and slot.capacity == 2 * SECTORS)


def test_what_is_not_for_it(make: Make, slot: Slot, export: Callable[[], Export]) -> None:
    make(features=ALL, config=space())
    slot.start(ACCEPTED)
    slot.block.attach(export())
    assert slot.block.operations() == ()
    assert "its back end says how large it is" in refusal(lambda: slot.block.resize(1 << 20))
    with pytest.raises(ConfigError, match="was plugged, and a machine that is restored has no"):
        slot.state()
    slot.transport.resume()
    assert slot.ask(b"x") == b"x"
