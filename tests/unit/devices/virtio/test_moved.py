"""What each kind of device goes on with when its driver is moved to another: data and settings.

That nothing of the rings is lost, of any device, is test_state.py's.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.balloon import Balloon, BalloonConfig
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.console import Console, ConsoleConfig, PortConfig
from pyvirt.devices.virtio.net import Net, NetConfig
from pyvirt.devices.virtio.python import LATER, PythonDevice, Request
from pyvirt.devices.virtio.vsock import VsockConfig
from pyvirt.errors import BackendError, ConfigError, StateError
from pyvirt.state import Fields

from .nic_bench import NicBench, SocketBackend, frame
from .port_bench import PORT_OPEN, PortBench, noise, read_all
from .queue_bench import DATA, QueueBench
from .test_conformance import _wait_for
from .vsock_bench import BUFFERS, CID, EVENT, REQUEST, RESPONSE, SECONDS, VsockBench

MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
GROUP = bytes.fromhex("01005e000001")
SECTOR = 512


def refused(bench: QueueBench, device: Any) -> str:
    """Return why another device does not go on."""
    with pytest.raises(StateError) as caught:
        bench.move(device)
    return str(caught.value)


@pytest.fixture
def benches() -> Iterator[list[Any]]:
    """Return a list of what is to be closed at the end."""
    made: list[Any] = []
    yield made
    for bench in made:
        bench.close()


# Disks


def disk(path: Path, **options: Any) -> Block:
    return Block(BlockConfig("d", str(path), raw=True, **options), 0)


def test_no_write_is_lost_or_done_twice(
    benches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The device before still has the image.
    monkeypatch.setattr("pyvirt.devices.disk.lock_image", lambda _fd, readonly: not readonly)
    fd = os.memfd_create("disk")
    os.truncate(fd, 256 * SECTOR)
    path = Path(f"/proc/{os.getpid()}/fd/{fd}")
    bench = QueueBench(disk(path, direct=False))
    benches.append(bench)
    bench.start(1 << 9)
    driver, written = bench.drivers[0], 0

    def is_done() -> bool:
        driver.collect()
        return len(driver.free) == driver.ring.layout.size

    for turn in range(40):
        for _ in range(1 + turn % 8):
            if len(driver.free) < 2:
                break
            place = DATA + written * 0x1000
            data = b"%04d" % written * (SECTOR // 4)
            bench.ram.view(place, 16 + SECTOR)[:] = struct.pack("<IIQ", 1, 0, written) + data
            driver.add([(place, 16 + SECTOR)], [(place + 0x800, 1)])
            written += 1
        bench.publish(0)
        bench.move(disk(path, direct=False))
        # One that is moved at once need not have begun with anything.
        if turn % 2:
            _wait_for(is_done)
    _wait_for(is_done)
    assert written > 100
    for number in range(written):
        assert bench.ram.view(DATA + number * 0x1000 + 0x800, 1)[0] == 0
        assert os.pread(fd, SECTOR, number * SECTOR) == b"%04d" % number * (SECTOR // 4)
    os.close(fd)


@pytest.fixture
def memory_disk() -> Iterator[Callable[..., Block]]:
    """Return what makes disks of as many sectors as are asked for."""
    fds: list[int] = []

    def make(sectors: int = 64, **options: Any) -> Block:
        fds.append(os.memfd_create("disk"))
        os.truncate(fds[-1], sectors * SECTOR)
        path = Path(f"/proc/{os.getpid()}/fd/{fds[-1]}")
        return disk(path, direct=False, **options)

    yield make
    for fd in fds:
        os.close(fd)


def test_a_disk_that_is_larger(benches: list[Any], memory_disk: Callable[..., Block]) -> None:
    bench = QueueBench(memory_disk(64))
    benches.append(bench)
    bench.start()
    generation = bench.get(r.CONFIG_GENERATION)
    bench.move(memory_disk(128))
    assert bench.get(r.CONFIG) == 128
    assert bench.get(r.CONFIG_GENERATION) != generation
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


def test_a_disk_that_is_another(benches: list[Any], memory_disk: Callable[..., Block]) -> None:
    for device, text in (
        (memory_disk(63), "disk d has 63 sectors of 512 bytes, and had 64 when it was saved"),
        (Block(None, 3), "disk slot 3 is an empty slot, and had 64 when it was saved"),
        (memory_disk(64, readonly=True), "disk d is read-only, which it was not when saved"),
    ):
        bench = QueueBench(memory_disk(64))
        benches.append(bench)
        bench.start()
        assert refused(bench, device).endswith(f": {text}")


def test_a_disk_in_a_slot_that_was_empty(
    benches: list[Any], memory_disk: Callable[..., Block]
) -> None:
    bench = QueueBench(Block(None, 0))
    benches.append(bench)
    bench.start(1 << 13 | 1 << 14)  # DISCARD, WRITE_ZEROES
    size = bench.get(r.CONFIG + 20)  # of a block, as the driver has read
    bench.move(memory_disk(64, logical_block=4096))
    assert bench.get(r.CONFIG) == 64
    assert bench.get(r.CONFIG + 20) == size
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    bench.ram.view(DATA, 16)[:] = struct.pack("<IIQ", 0, 0, 0)
    bench.drivers[0].add([(DATA, 16)], [(DATA + 0x1000, SECTOR + 1)])
    bench.publish(0)
    assert bench.used(0)[0][1] == SECTOR + 1
    assert bench.ram.view(DATA + 0x1000 + SECTOR, 1)[0] == 0


def test_features_that_the_new_device_lacks(
    benches: list[Any], memory_disk: Callable[..., Block]
) -> None:
    bench = QueueBench(memory_disk(64, queues=2))
    benches.append(bench)
    bench.start(1 << 12)  # MQ
    text = "the guest uses features that there are not here: 0x1000"
    assert refused(bench, memory_disk(64)) == f"state: driver_features: {text}"


def test_queues_that_the_new_device_lacks(
    benches: list[Any], memory_disk: Callable[..., Block]
) -> None:
    bench = QueueBench(memory_disk(64, queues=2))
    benches.append(bench)
    bench.start()
    text = "queues: has 2 entries, and 1 are the most"
    assert refused(bench, memory_disk(64)) == f"state: {text}"
    bench.transport.reset()


def test_a_queue_that_is_larger_than_the_new_device_has(
    benches: list[Any], memory_disk: Callable[..., Block]
) -> None:
    bench = QueueBench(memory_disk(64))
    benches.append(bench)
    bench.start()
    text = refused(bench, memory_disk(64, queue_size=8))
    assert text.endswith("disk d: the driver's queue 0 has a size or an address that cannot be")


# NICs


@pytest.fixture
def nic() -> Iterator[tuple[NicBench, SocketBackend, Callable[..., None]]]:
    """Return a NIC, its backend, and what moves it to another device."""
    with SocketBackend(pairs=2) as backend:
        bench = NicBench(NetConfig("n", MAC, queue_pairs=2), backend)

        def move(mac: bytes = MAC) -> None:
            bench.nic = Net(NetConfig("n", mac, queue_pairs=2), backend)
            bench.move(bench.nic)

        yield bench, backend, move
        bench.close()


FEATURES = net.CTRL_VQ | net.CTRL_RX | net.CTRL_VLAN | net.CTRL_MAC_ADDR | net.MQ | net.STATUS
CONTROL = 4


def test_packets_of_both_directions(
    nic: tuple[NicBench, SocketBackend, Callable[..., None]],
) -> None:
    bench, backend, move = nic
    bench.start(FEATURES)
    bench.offer_buffers(40)
    for turn in range(20):
        backend.peers[0].send(bytes(12) + frame(MAC, 60 + turn))
        bench.send(frame(OTHER, 60 + turn))
        if turn % 2:
            move()
    for turn in range(20):
        assert backend.peers[0].recv(2048)[12:] == frame(OTHER, 60 + turn)
        assert bench.receive()[1] == frame(MAC, 60 + turn)


def test_what_a_driver_receives(
    nic: tuple[NicBench, SocketBackend, Callable[..., None]],
) -> None:
    bench, _, move = nic
    bench.start(FEATURES)
    count = struct.pack("<I", 1)
    for group, number, data in (
        (0, 0, b"\0"),  # not promiscuous
        (1, 1, OTHER),  # its own address
        (1, 0, count + OTHER + count + GROUP),
        (2, 0, struct.pack("<H", 7)),
        (2, 0, struct.pack("<H", 4095)),
        (4, 0, struct.pack("<H", 2)),
    ):
        assert bench.command(CONTROL, group, number, data) == 0
    before = bench.state()["device"]
    assert before["driver"] == {
        "pairs": 2,
        "mac": OTHER.hex(),
        "promiscuous": False,
        "all_multicast": False,
        "filters_vlans": True,
        "offloads": 0,
        "vlans": [7, 4095],
        "unicast": {"all": False, "list": OTHER.hex()},
        "multicast": {"all": False, "list": GROUP.hex()},
    }
    move(bytes.fromhex("020000000099"))
    assert bench.config(0, 6) == OTHER
    assert bench.state()["device"] == before
    bench.transport.resume()
    assert bytes(bench.nic.rx_filter().mac) == OTHER
    # The next driver finds what this machine was given.
    bench.set(r.STATUS, 0)
    assert bench.config(0, 6) == bytes.fromhex("020000000099")
    bench.start(FEATURES)
    assert bench.state()["device"]["driver"]["promiscuous"]


def test_the_network_is_told_of_the_move(
    nic: tuple[NicBench, SocketBackend, Callable[..., None]],
) -> None:
    bench, _, move = nic
    bench.start(FEATURES | net.GUEST_ANNOUNCE)
    bench.set(r.INTERRUPT_ACK, 3)
    move()

    def asked() -> bool:
        bench.transport.report()
        return bool(bench.config(6, 1)[0] & 2)

    _wait_for(asked)
    assert bench.command(CONTROL, 3, 0, b"") == 0
    assert not bench.config(6, 1)[0] & 2


def test_a_driver_that_cannot_be_asked_sees_no_link_for_a_moment(
    nic: tuple[NicBench, SocketBackend, Callable[..., None]],
) -> None:
    """So that it looks at its network anew."""
    bench, _, move = nic
    bench.start(FEATURES)
    assert bench.config(6, 1) == b"\1"
    bench.set(r.INTERRUPT_ACK, 3)
    generation = bench.get(r.CONFIG_GENERATION)
    move()
    # The link is back when the monitor has looked, as its main thread does soon.
    assert bench.config(6, 1) == b"\0"
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    assert bench.get(r.CONFIG_GENERATION) > generation
    assert bench.nic.link

    def is_back() -> bool:
        bench.transport.report()
        return bench.config(6, 1) == b"\1"

    _wait_for(is_back)


def test_a_link_that_is_down_stays_down(
    nic: tuple[NicBench, SocketBackend, Callable[..., None]],
) -> None:
    bench, _, move = nic
    bench.start(FEATURES)
    bench.nic.set_link(False)
    move()
    assert not bench.nic.link
    assert not bench.config(6, 1)[0] & 1
    bench.nic.set_link(True)
    assert bench.nic.link


def test_a_nic_that_has_lost_its_backend(benches: list[Any]) -> None:
    with SocketBackend() as backend:
        bench = NicBench(NetConfig("n", MAC), backend)
        benches.append(bench)
        bench.start(net.STATUS)
        bench.nic = Net(NetConfig("n", MAC))
        bench.move(bench.nic)
        assert not bench.config(6, 1)[0] & 1
        assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


# Ports


def ports(bench: PortBench, listener: Path | None = None) -> Console:
    """Return another device with the same end as port 1 of the bench, or where nobody is yet."""
    # Both devices have the socket, of which the first takes no notice any more.
    inner = bench.device.chardevs()[0][0].in_fd
    if listener is None:
        chardev = ChardevConfig("c", fd=os.dup(inner))
    else:
        chardev = ChardevConfig("c", path=str(listener))
    return ConsoleConfig("serial0", (PortConfig(1, chardev, "agent"),), 2).make()


@pytest.fixture
def port(benches: list[Any]) -> PortBench:
    """Return a device with one port, open on both sides."""
    bench = PortBench("agent")
    benches.append(bench)
    bench.start()
    bench.introduce(1)
    return bench


def test_bytes_of_both_directions(port: PortBench) -> None:
    text = noise(200_000)
    port.offer(4, 8, 4096)
    for turn in range(10):
        piece = text[turn * 20_000 :][:20_000]
        port.add(5, piece, DATA + 0x100_0000 + turn * 0x1_0000)
        port.host[1].sendall(piece[:3000])
        port.move(ports(port))
        assert read_all(port.host[1], 20_000) == piece
        assert port.receive(1, 3000) == piece[:3000]


def test_a_buffer_that_was_sent_in_part_is_not_sent_twice(port: PortBench) -> None:
    text = noise(60_000 * 20)
    for turn in range(20):
        port.add(5, text[turn * 60_000 :][:60_000], DATA + 0x100_0000 + turn * 0x1_0000)
    port.wait_stat("blocked", 1)
    state = port.move(ports(port))
    assert state["device"]["ports"]["1"]["taken"] > 0
    assert read_all(port.host[1], len(text)) == text


def test_messages_that_the_driver_had_no_buffers_for(benches: list[Any]) -> None:
    bench = PortBench("agent")
    benches.append(bench)
    bench.start(buffers=0)
    bench.tell(0xFFFFFFFF, 0, 1)
    bench.tell(1, 3, 1)
    bench.move(ports(bench))
    bench.offer(2, 8, 512)
    assert [bench.hear()[1] for _ in range(2)] == [7, PORT_OPEN]  # its name


def test_a_host_end_that_is_not_there_any_more(port: PortBench, tmp_path: Path) -> None:
    port.move(ports(port, tmp_path / "s"))
    assert port.hear() == (1, PORT_OPEN, 0, b"")


# The balloon, and the socket device


def test_what_is_in_the_balloon(benches: list[Any]) -> None:
    bench = QueueBench(BalloonConfig("b").make())
    benches.append(bench)
    bench.start()
    before: Any = bench.device
    before.set_target(1 << 20)
    bench.set(r.INTERRUPT_ACK, 3)
    bench.set(r.CONFIG + 4, 100)
    after = BalloonConfig("b").make()
    assert isinstance(after, Balloon)
    bench.move(after)
    assert after.target == 1 << 20
    assert after.ballooned == 100 * 4096
    assert [bench.get(r.CONFIG), bench.get(r.CONFIG + 4)] == [256, 100]
    assert not bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


@pytest.fixture
def sockets(benches: list[Any], tmp_path: Path) -> VsockBench:
    bench = VsockBench(VsockConfig("v", CID, str(tmp_path / "v")).make())
    benches.append(bench)
    bench.start()
    return bench


def connect(bench: VsockBench, path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(SECONDS)
    client.connect(str(path))
    client.sendall(b"CONNECT 99\n")
    header = bench.hear()
    assert header[6] == REQUEST
    bench.say(RESPONSE, 99, header[2])
    assert client.recv(100) == b"OK %d\n" % header[2]
    return client


def test_connections_go_on_where_they_are(sockets: VsockBench, tmp_path: Path) -> None:
    with connect(sockets, tmp_path / "v") as client:
        sockets.state()
        assert not select.select([client], [], [], 0.05)[0]
        sockets.transport.resume()
        with connect(sockets, tmp_path / "v"):
            # The client hears of it first.
            _wait_for(lambda: sockets.stat("of_host") == 2)
            assert sockets.stat("ended") == 0


@pytest.mark.parametrize("buffers", [0, 1])
def test_a_driver_is_told_that_its_connections_are_over(
    sockets: VsockBench, tmp_path: Path, buffers: int
) -> None:
    driver = sockets.drivers[EVENT]
    place = BUFFERS + 0x10_0000
    sockets.ram.view(place, 8)[:] = b"?" * 8
    for _ in range(buffers):
        driver.add(writable=[(place, 8)])
    driver.publish()
    with connect(sockets, tmp_path / "v"):
        sockets.move(VsockConfig("v", CID + 1, str(tmp_path / "w")).make())
        assert [length for _, length in driver.collect()] == [4] * buffers
        if buffers:
            assert bytes(sockets.ram.view(place, 8)) == bytes(4) + b"????"
        # And has another address.
        assert sockets.get(r.CONFIG) == CID + 1
        assert sockets.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


def test_an_event_that_does_not_fit_breaks_the_device(sockets: VsockBench, tmp_path: Path) -> None:
    sockets.drivers[EVENT].add(writable=[(BUFFERS + 0x10_0000, 3)])
    sockets.drivers[EVENT].publish()
    sockets.move(VsockConfig("v", CID, str(tmp_path / "w")).make())
    sockets.transport.report()
    assert sockets.log == ["vsock v: a buffer that an event does not fit; it needs a reset"]


# Devices in Python


class Slow(PythonDevice):
    """Puts its chains off."""

    device_id = 42
    config_space = bytearray(b"abc")

    def __init__(self) -> None:
        self.held: list[Request] = []
        self.served = 0
        self.config_space = bytearray(b"abc")

    def handle(self, queue: int, request: Request) -> object:
        self.held.append(request)
        return LATER

    def config_written(self, offset: int, data: bytes) -> None:
        self.config_space[offset : offset + len(data)] = data

    def save_state(self) -> object:
        return {"served": self.served}

    def restore_state(self, state: object) -> None:
        assert isinstance(state, dict)
        self.served = int(state["served"])
        assert self.config_space[:1] == b"x"


def slow() -> Slow:
    device = Slow()
    device.prepare("slow")
    return device


def test_a_class_that_holds_chains_is_not_saved(benches: list[Any]) -> None:
    device = slow()
    bench = QueueBench(device)
    benches.append(bench)
    bench.start()
    bench.add(0, 16, writable=True)
    _wait_for(lambda: len(device.held) == 1)
    # Without a name: its frames would keep what serves the queues, and its descriptor.
    with pytest.raises(BackendError, match=r"^slow: its class has not completed 1 chains within"):
        bench.transport.drain(0.05)
    # It goes on, and so does a save once they are complete.
    bench.add(0, 16, writable=True)
    _wait_for(lambda: len(device.held) == 2)
    device.complete(device.held[0])
    device.complete(device.held[1])
    assert len(bench.used(0)) > 0
    bench.set(r.CONFIG, ord("x"), 1)
    device.served = 2
    after = slow()
    bench.move(after)
    assert after.served == 2
    assert bytes(after.config_space) == b"xbc"


def test_what_a_class_does_wrong(benches: list[Any]) -> None:
    device = slow()
    bench = QueueBench(device)
    benches.append(bench)
    bench.start()
    text = refused(bench, slow())  # the configuration space says abc
    assert text.startswith("state: device.own: slow: restore_state: AssertionError")
    for value, why in ((object(), "TypeError"), (float("nan"), "ValueError")):
        device.served = value  # type: ignore[assignment]
        with pytest.raises(BackendError, match=f"slow: save_state: {why}"):
            device.save()


def test_a_class_without_a_state() -> None:
    class Plain(PythonDevice):
        device_id = 42

    device = Plain()
    device.prepare("plain")
    with pytest.raises(ConfigError) as caught:
        device.save()
    assert str(caught.value).startswith("plain: cannot be saved: its class has no save_state")
    with pytest.raises(StateError):
        device.restore(Fields({"config_space": "", "own": None}))
