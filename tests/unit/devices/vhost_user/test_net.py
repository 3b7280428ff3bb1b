"""A NIC whose packets a back end moves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.net import Net, NetConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r

from ...refusal import refusal
from .bench import DATA, STEP, VhostUserBench, wait
from .switch import HEADER, MAC, PROTOCOL, RX, TX, Switch

ROOM = DATA + 0x90_0000  # for frames
GUEST = bytes.fromhex("525400112233")


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("n") / "s"


@pytest.fixture
def switch(path: Path) -> Iterator[Switch]:
    switch = Switch(path, protocol=PROTOCOL)
    yield switch
    if path.exists():
        switch.die()


def nic(path: Path, **options: int) -> Net:
    back_end = SocketBackEnd("-chardev id=c", str(path))
    return NetConfig("n0", back_end, GUEST, **options).make()


class Nic(VhostUserBench):
    """A driver with room for frames."""

    _received = 0

    def begin(self, features: int = 0) -> int:
        status = self.start(r.VERSION_1 | r.EVENT_IDX | net.MAC | net.STATUS | features)
        for index in range(8):
            self.drivers[RX].add([], [(ROOM + index * STEP, 2048)])
        self.drivers[RX].publish()
        return status

    def exchange(self, frame: bytes) -> bytes:
        """Return what comes back for a frame."""
        place = DATA + 0x80_0000
        self.memory.write(place, bytes(HEADER) + frame)
        self.drivers[TX].add([(place, HEADER + len(frame))])
        self.drivers[TX].publish()
        self.transport.kick()
        ((head, length),) = self.used(1, RX)
        # Buffers are used in order, so the place is found by the count.
        self._received += 1
        assert head >= 0
        return self.memory.read(ROOM + (self._received - 1) * STEP, length)[HEADER:]


def test_what_the_driver_is_told(switch: Switch, path: Path) -> None:
    device = nic(path, mtu=9000)
    assert device.features == net.MAC | net.STATUS | net.MTU
    assert struct.unpack("<6sHHH", device.config()) == (GUEST, 1, 1, 9000)
    bench = Nic(device)
    assert bench.begin(net.MTU) == 0xF
    # What is between driver and monitor is nothing to the back end.
    assert switch.driver_features & 0x3FFFFFFF == r.EVENT_IDX
    bench.close()


def test_one_that_counts_pairs(path: Path) -> None:
    switch = Switch(path, protocol=PROTOCOL, queues=1)
    bench = Nic(nic(path))
    assert bench.begin() == 0xF
    bench.close()
    switch.die()


def test_frames_go_both_ways(switch: Switch, path: Path) -> None:
    bench = Nic(nic(path))
    bench.begin()
    for number in range(3):
        frame = MAC + GUEST + b"\x88\xb5" + b"%d" % number * 50
        assert bench.exchange(frame) == frame
    assert [index for index, _ in switch.served] == [TX] * 3
    bench.close()


def test_the_link_is_up_while_there_is_a_back_end(switch: Switch, path: Path) -> None:
    bench = Nic(nic(path))
    bench.begin()
    status = r.CONFIG + 6
    assert bench.get(status, 2) == 1
    switch.die()
    wait(lambda: bench.report() and bench.get(status, 2) == 0)
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    another = Switch(path, protocol=PROTOCOL)
    wait(lambda: bench.report() and bench.get(status, 2) == 1)
    frame = MAC + GUEST + b"\x88\xb5" + bytes(50)
    assert bench.exchange(frame) == frame
    bench.close()
    another.die()


# Several pairs of queues

SEVERAL = net.CTRL_VQ | net.MQ
PAIRS = 3


class Commands(Nic):
    """A driver of a NIC with PAIRS pairs, and its control queue."""

    def command(self, data: bytes, room: int = 1) -> bytes:
        """Return what a command is answered with."""
        control = 2 * PAIRS
        place = self.offer(data, control, room)
        self.transport.kick()
        ((_, length),) = self.used(1, control)
        return self.memory.read(place, length)

    def set_pairs(self, number: int) -> bytes:
        return self.command(struct.pack("<BBH", 4, 0, number))


def enabled(switch: Switch) -> list[bool]:
    return [switch._rings[index].enabled for index in range(2 * PAIRS)]


@pytest.fixture
def several(switch: Switch, path: Path) -> Iterator[Commands]:
    bench = Commands(nic(path, pairs=PAIRS))
    yield bench
    bench.close()


def test_a_driver_asks_for_more_pairs(several: Commands, switch: Switch) -> None:
    assert struct.unpack("<6sHHH", several.device.config())[2] == PAIRS
    assert several.begin(SEVERAL) == 0xF
    assert enabled(switch) == [True] * 2 + [False] * 4
    assert several.set_pairs(3) == b"\0"
    assert enabled(switch) == [True] * 6
    assert several.set_pairs(2) == b"\0"
    assert enabled(switch) == [True] * 4 + [False] * 2
    frame = MAC + GUEST + b"\x88\xb5" + bytes(50)
    assert several.exchange(frame) == frame
    # Another driver begins with one again.
    several.set(r.STATUS, 0)
    several.begin(SEVERAL)
    assert enabled(switch) == [True] * 2 + [False] * 4


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<BBH", 4, 0, 0),
        struct.pack("<BBH", 4, 0, PAIRS + 1),
        struct.pack("<BBH", 4, 1, 1),
        struct.pack("<BBH", 0, 0, 1),
        b"\4\0\1",
    ],
)
def test_commands_that_are_none(several: Commands, switch: Switch, data: bytes) -> None:
    several.begin(SEVERAL)
    before = enabled(switch)
    assert several.command(data) == b"\1"
    assert enabled(switch) == before
    assert several.set_pairs(PAIRS) == b"\0"


def test_without_several_pairs_the_control_queue_is_the_third(several: Commands) -> None:
    several.begin(net.CTRL_VQ)
    place = several.offer(struct.pack("<BBH", 4, 0, 1), 2, 1)
    several.transport.kick()
    several.used(1, 2)
    assert several.memory.read(place, 1) == b"\1"


def test_a_broken_control_queue_breaks_the_device(several: Commands) -> None:
    several.begin(SEVERAL)
    several.drivers[2 * PAIRS].ring.offer(0, 99)
    several.drivers[2 * PAIRS].ring.avail_idx = 1
    several.transport.kick()
    wait(lambda: several.is_broken)
    assert several.report() == ["NIC n0: head 99 in a queue of 16; it needs a reset"]


def test_a_switch_that_comes_back_is_told_of_the_pairs(
    several: Commands, switch: Switch, path: Path
) -> None:
    several.begin(SEVERAL)
    several.set_pairs(2)
    switch.die()
    wait(lambda: not several.device.stats()["connected"])  # type: ignore[attr-defined]
    assert several.set_pairs(3) == b"\0"  # nobody is there, and it is kept in mind
    another = Switch(path, protocol=PROTOCOL)
    wait(lambda: "there is a back end again" in " ".join(several.report()))
    assert enabled(another) == [True] * 6
    several.set(r.STATUS, 0)
    another.die()


def test_a_flood_of_commands_keeps_nobody(several: Commands) -> None:
    several.begin(SEVERAL)
    for number in range(8):
        several.offer(struct.pack("<BBH", 4, 0, 1 + number % PAIRS), 2 * PAIRS, 1)
    several.transport.kick()
    several.set(r.STATUS, 0)
    assert several.get(r.STATUS) == 0


def test_a_switch_of_fewer_pairs_is_refused(path: Path) -> None:
    for protocol, queues, said in (
        (PROTOCOL, 2, "queues: it has 2, and 3 are asked for"),
        (p.REPLY_ACK, 9, "has one pair of queues; leave queues out"),
    ):
        switch = Switch(path, protocol=protocol, queues=queues)
        assert said in refusal(lambda: nic(path, pairs=PAIRS))
        switch.die()
