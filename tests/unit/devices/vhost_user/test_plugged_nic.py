"""A switch of another process comes and goes under the eyes of a slot's driver."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices import nic
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.net import NetConfig
from pyvirt.devices.vhost_user.plugged_nic import Uplink
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import BackendError, ConfigError

from ...refusal import refusal
from .back_end import FEATURES
from .bench import DATA, STEP, VhostUserBench, wait
from .conftest import Hurry
from .switch import HEADER, MAC, PROTOCOL, RX, TX, Switch

CTRL = 2
ROOM = DATA + 0x90_0000  # for frames
GUEST = bytes.fromhex("525400112233")
SENT = net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.HOST_ECN | net.MRG_RXBUF
TAKEN = net.GUEST_CSUM | net.GUEST_TSO4 | net.GUEST_TSO6 | net.GUEST_ECN
ALL = FEATURES | SENT | TAKEN
# What Linux's driver takes of what an empty slot offers.
USED = (
    r.VERSION_1 | r.EVENT_IDX | SENT | TAKEN | net.MAC | net.STATUS | net.CTRL_VQ | net.CTRL_RX
    | net.CTRL_VLAN | net.CTRL_MAC_ADDR | net.GUEST_ANNOUNCE | net.CTRL_GUEST_OFFLOADS
)  # fmt: skip
FRAME = MAC + GUEST + b"\x88\xb5" + bytes(50)
STATUS = r.CONFIG + 6
LINK, ANNOUNCE = 1, 2
Plug = Callable[..., None]


class Slot(VhostUserBench):
    """An empty slot for NICs, and its driver."""

    def __init__(self, device: net.Net | None = None, *, shared: bool = True) -> None:
        self.nic = device or nic.empty(1, "machine")
        super().__init__(self.nic, shared=shared)
        self._received = 0

    def begin(self, features: int = USED) -> int:
        status = self.start(features)
        self._received = 0
        for index in range(8):
            self.drivers[RX].add([], [(ROOM + index * STEP, 2048)])
        self.drivers[RX].publish()
        self.transport.kick()
        return status

    def send(self, frame: bytes, head: bytes = bytes(HEADER)) -> None:
        place = DATA + 0x80_0000
        self.memory.write(place, head + frame)
        self.drivers[TX].add([(place, HEADER + len(frame))])
        self.drivers[TX].publish()
        self.transport.kick()

    def exchange(self, frame: bytes = FRAME) -> bytes:
        """Return what comes back for a frame."""
        self.send(frame)
        ((_, length),) = self.used(1, RX)
        self._received += 1
        self.used(1, TX)
        return self.memory.read(ROOM + (self._received - 1) * STEP, length)[HEADER:]

    def lose(self) -> None:
        """Send a frame to where nobody is: it is used, and gone."""
        self.send(FRAME)
        self.used(1, TX)

    def command(self, data: bytes) -> bytes:
        place = self.offer(data, CTRL, 1)
        self.transport.kick()
        ((_, length),) = self.used(1, CTRL)
        return self.memory.read(place, length)

    def offered(self) -> int:
        found = 0
        for word in range(4):
            self.set(r.DEVICE_FEATURES_SEL, word)
            found |= self.get(r.DEVICE_FEATURES) << 32 * word
        return found

    @property
    def link(self) -> int:
        return self.get(STATUS, 2) & LINK

    def unplug(self) -> None:
        resource = self.nic.detach()
        assert resource is not None
        resource.close()


@pytest.fixture
def slot() -> Iterator[Slot]:
    slot = Slot()
    yield slot
    slot.close()


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Switch]]:
    made: list[Switch] = []

    def one(**options: object) -> Switch:
        made.append(Switch(path, protocol=PROTOCOL, **options))
        return made[-1]

    yield one
    if path.exists():
        made[-1].die()


@pytest.fixture
def uplink(path: Path) -> Callable[[], Uplink]:
    """Return what connects to a switch."""
    return lambda: Uplink(NetConfig("n1", SocketBackEnd("chardev c", str(path)), bytes(6)))


def refused(slot: Slot, way: Uplink) -> str:
    """Return why it is not taken, which the slot does not show then."""
    generation = slot.get(r.CONFIG_GENERATION)
    message = refusal(lambda: slot.nic.attach(way))
    way.close()
    assert slot.nic.resource is None
    assert (slot.link, slot.get(r.CONFIG_GENERATION)) == (0, generation)
    slot.lose()
    return message


def test_comes_and_goes_while_a_driver_is_at_work(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = make(features=ALL)
    assert slot.begin() == 0xF
    for life in range(3):
        slot.lose()
        generation = slot.get(r.CONFIG_GENERATION)
        slot.nic.attach(uplink(), id="n1")
        assert slot.link == LINK
        assert slot.get(r.CONFIG_GENERATION) > generation
        assert slot.nic.backend == "n1"
        assert slot.exchange() == FRAME
        slot.unplug()
        assert slot.link == 0
        assert switch.heard.count(p.GET_VRING_BASE) == 2 * (life + 1)
        assert switch.driver_features & (SENT | TAKEN) == SENT | TAKEN
    slot.lose()
    assert slot.report() == []


def test_the_slot_serves_commands_meanwhile(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    make(features=ALL)
    slot.begin()
    slot.nic.attach(uplink())
    assert slot.command(b"\0\0\1") == b"\0"  # promiscuous
    assert slot.command(b"\1\1" + GUEST) == b"\0"  # an address
    assert slot.command(b"\5\0" + bytes(8)) == b"\1"  # offloads: a back end cannot be told
    assert slot.nic.stats()["commands"] == 3
    assert slot.get(r.CONFIG, 6).to_bytes(6, "little") == GUEST
    assert slot.exchange() == FRAME
    slot.unplug()
    assert slot.command(b"\5\0" + bytes(8)) == b"\0"


def test_the_driver_is_asked_to_announce_itself(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    make(features=ALL)
    slot.begin()
    slot.nic.attach(uplink())
    wait(lambda: slot.report() == [] and slot.get(STATUS, 2) == LINK | ANNOUNCE)
    assert slot.command(b"\3\0") == b"\0"


def test_offloads_that_the_driver_switched_off_stay_off(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = make(features=ALL)
    slot.begin()
    assert slot.command(b"\5\0" + struct.pack("<Q", net.GUEST_CSUM)) == b"\0"
    slot.nic.attach(uplink())
    assert slot.exchange() == FRAME
    assert switch.driver_features & (SENT | TAKEN) == SENT | net.GUEST_CSUM


def test_the_back_end_hears_of_no_feature_that_it_lacks(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    """What it may make use of it need not know; the fake one would stop at one."""
    switch = make(features=FEATURES | SENT)
    slot.begin()
    slot.nic.attach(uplink())
    assert slot.exchange() == FRAME
    assert switch.driver_features & (SENT | TAKEN) == SENT


@pytest.mark.parametrize(
    ("lacks", "word"),
    [
        (net.CSUM, "CSUM"),
        (net.HOST_TSO4, "HOST_TSO4"),
        (net.HOST_TSO6, "HOST_TSO6"),
        (net.HOST_ECN, "HOST_ECN"),
        (net.MRG_RXBUF, "MRG_RXBUF"),
        (r.EVENT_IDX, "EVENT_IDX"),
    ],
)
def test_features_that_the_driver_uses_are_needed(
    make: Callable[..., Switch],
    slot: Slot,
    uplink: Callable[[], Uplink],
    lacks: int,
    word: str,
) -> None:
    make(features=ALL & ~lacks)
    slot.begin()
    message = refused(slot, uplink())
    assert message.startswith("chardev c: /tmp/")
    assert f"the back end lacks {word}, which the guest's driver of the slot uses" in message
    # And others are not.
    slot.set(r.STATUS, 0)
    slot.begin(USED & ~lacks)
    slot.nic.attach(uplink())
    assert slot.exchange() == FRAME


def test_is_what_a_later_driver_finds(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    before = slot.offered()
    switch = make(features=FEATURES & ~r.INDIRECT_DESC | net.CSUM)
    slot.nic.attach(uplink())
    control = net.CTRL_VQ | net.CTRL_RX | net.CTRL_VLAN | net.CTRL_MAC_ADDR | net.GUEST_ANNOUNCE
    ours = r.VERSION_1 | r.EVENT_IDX | net.MAC | net.STATUS | net.CSUM | control
    assert slot.offered() == ours
    for _ in range(2):
        assert slot.begin(ours) == 0xF
        assert slot.exchange() == FRAME
        slot.set(r.STATUS, 0)
    assert switch.driver_features & net.CSUM
    slot.unplug()
    assert slot.offered() == before
    assert slot.begin() == 0xF
    slot.lose()


def test_a_driver_that_has_not_said_which_may_use_all_that_is_offered(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    make(features=ALL & ~net.HOST_ECN)
    slot.negotiate(USED)
    way = uplink()
    assert "lacks HOST_ECN" in refusal(lambda: slot.nic.attach(way))
    way.close()


def at_work(make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]) -> Switch:
    """Return a switch that the slot's NIC is plugged to, and has exchanged a frame with."""
    switch = make(features=ALL)
    slot.begin()
    slot.nic.attach(uplink())
    assert slot.exchange() == FRAME
    return switch


def test_a_link_that_is_taken_down(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = at_work(make, slot, uplink)
    slot.nic.set_link(up=False)
    assert slot.link == 0
    assert [switch._rings[index].enabled for index in (RX, TX)] == [False, False]
    slot.unplug()
    # So it is for who comes then.
    slot.nic.attach(uplink())
    assert slot.link == 0
    assert [switch._rings[index].enabled for index in (RX, TX)] == [False, False]
    slot.nic.set_link(up=True)
    assert slot.link == LINK
    assert slot.exchange() == FRAME


def test_the_link_is_down_without_a_switch_until_another_comes(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = at_work(make, slot, uplink)
    switch.die()
    wait(lambda: slot.report() and not slot.link)
    assert "its back end has gone; requests wait 5 s for another" in slot.log[0]
    assert slot.nic.stats()["connected"] == 0
    make(features=ALL)
    wait(lambda: slot.report() and slot.link)
    assert slot.exchange() == FRAME
    assert slot.nic.stats()["connections"] == 2
    slot.unplug()
    slot.lose()


def test_none_comes(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink], hurry: Hurry
) -> None:
    switch = at_work(make, slot, uplink)
    hurry()
    switch.die()
    wait(lambda: slot.is_broken)
    hurry(on=False)
    slot.unplug()
    slot.set(r.STATUS, 0)
    assert slot.begin() == 0xF
    slot.lose()


def test_one_that_has_gone_can_be_unplugged_at_once(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = at_work(make, slot, uplink)
    switch.die()
    slot.unplug()
    slot.lose()


def test_one_that_keeps_the_queues_stays_plugged(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink], hurry: Hurry
) -> None:
    switch = make(features=ALL)
    slot.begin()
    slot.nic.attach(uplink())
    unanswered: list[bytes] = []
    switch.answers[p.GET_FEATURES] = unanswered.append
    hurry()
    with pytest.raises(BackendError, match="NIC n1: its back end"):
        slot.nic.detach()
    hurry(on=False)
    assert slot.nic.resource is not None
    assert slot.link == LINK
    switch.die()
    slot.unplug()


def test_one_that_fails_as_it_gets_the_queues_leaves_the_slot_as_it_was(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    switch = make(features=ALL)
    slot.begin()
    way = uplink()
    switch.answers[p.SET_VRING_ADDR] = lambda _: switch.number(p.SET_VRING_ADDR, 1)
    with pytest.raises(BackendError, match="NIC n1: its back end"):
        slot.nic.attach(way)
    way.close()
    assert slot.nic.resource is None
    slot.lose()
    switch.answers.clear()
    slot.nic.attach(uplink())
    assert slot.exchange() == FRAME
    assert slot.report() == []


def test_memory_that_it_cannot_see(
    make: Callable[..., Switch], uplink: Callable[[], Uplink]
) -> None:
    make(features=ALL)
    slot = Slot(shared=False)
    slot.begin()
    way = uplink()
    with pytest.raises(BackendError, match="guest memory; give -machine mem-share=on"):
        slot.nic.attach(way)
    way.close()
    slot.lose()
    slot.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"queue_pairs": 2}, "has 2 pairs of queues, and what is plugged by vhost-user has one"),
        ({"rx_bytes": 1000}, "vhost-user knows no limits"),
    ],
)
def test_slots_that_cannot_have_it(
    make: Callable[..., Switch], uplink: Callable[[], Uplink], words: dict[str, Any], why: str
) -> None:
    """As a NIC of the command line has left them."""
    make(features=ALL)
    device = net.Net(net.NetConfig("n0", GUEST, **words))
    way = uplink()
    assert why in refusal(lambda: device.attach(way))
    way.close()
    assert device.resource is None
    device.close()


def test_what_is_not_for_it(
    make: Callable[..., Switch], slot: Slot, uplink: Callable[[], Uplink]
) -> None:
    make(features=ALL)
    slot.begin()
    slot.nic.attach(uplink(), id="n1")
    assert slot.nic.operations() == ()
    with pytest.raises(ConfigError, match="NIC n1: was plugged, and a machine that is restored"):
        slot.state()
    slot.transport.resume()
    assert slot.exchange() == FRAME
    wait(lambda: slot.nic.stats()["waiting"] == 7)  # room for frames
