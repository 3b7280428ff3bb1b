"""The virtio network device: what it offers, and its life between transport, worker and backend."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from pyvirt.devices.iothread import IoThread
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.net import Net, NetConfig
from pyvirt.errors import BackendError, ConfigError
from pyvirt.native import lib

from ...refusal import refusal
from .bench import take
from .nic_bench import NicBench, SocketBackend, frame

SHARED = IoThread("io")
MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
BITS = {
    "csum": 0,
    "guest_csum": 1,
    "ctrl_guest_offloads": 2,
    "mtu": 3,
    "mac": 5,
    "guest_tso4": 7,
    "guest_tso6": 8,
    "guest_ecn": 9,
    "host_tso4": 11,
    "host_tso6": 12,
    "host_ecn": 13,
    "mrg_rxbuf": 15,
    "status": 16,
    "ctrl_vq": 17,
    "ctrl_rx": 18,
    "ctrl_vlan": 19,
    "guest_announce": 21,
    "mq": 22,
    "ctrl_mac_addr": 23,
    "guest_uso4": 54,
    "guest_uso6": 55,
    "host_uso": 56,
}
ALWAYS = {"mac", "mrg_rxbuf", "status", "ctrl_vq", "ctrl_rx", "ctrl_vlan", "ctrl_mac_addr"}
ALWAYS |= {"guest_announce"}
CSUM = {"csum", "guest_csum", "ctrl_guest_offloads"}
TSO = {"guest_tso4", "guest_tso6", "guest_ecn", "host_tso4", "host_tso6", "host_ecn"}
USO = {"guest_uso4", "guest_uso6", "host_uso"}


def offered(offloads: int = 0, **options: Any) -> set[str]:
    pairs = options.get("queue_pairs", 1)
    with SocketBackend(offloads=offloads, pairs=pairs) as backend:
        features = Net(NetConfig("n", MAC, **options), backend).features
        names = {name for name, bit in BITS.items() if features >> bit & 1}
        assert features == sum(1 << BITS[name] for name in names)
        return names


def test_features() -> None:
    assert offered() == ALWAYS
    assert offered(net.TUN_CSUM) == ALWAYS | CSUM
    assert offered(net.TAP_OFFLOADS) == ALWAYS | CSUM | TSO
    assert offered(net.TAP_OFFLOADS | net.TUN_USO4) == ALWAYS | CSUM | TSO
    assert offered(net.TAP_OFFLOADS | net.TUN_USO4 | net.TUN_USO6) == ALWAYS | CSUM | TSO | USO
    assert offered(mtu=9000, queue_pairs=4) == ALWAYS | {"mtu", "mq"}


def test_a_nic_without_a_backend_offers_what_every_tap_has() -> None:
    nic = Net(NetConfig("n", MAC))
    with SocketBackend(offloads=net.TAP_OFFLOADS) as backend:
        assert nic.features == Net(NetConfig("n", MAC), backend).features
    assert not nic.link
    nic.close()


def test_configuration_space() -> None:
    nic = Net(NetConfig("n", MAC, mtu=9000, queue_pairs=3))
    assert struct.unpack("<6sHHH", nic.config()) == (MAC, 0, 3, 9000)
    with SocketBackend(offloads=net.TAP_OFFLOADS, pairs=3) as backend:
        nic.attach(backend)
        assert struct.unpack("<6sHHH", nic.config()) == (MAC, 1, 3, 9000)
        nic.set_link(False)
        assert struct.unpack("<6sHHH", nic.config()) == (MAC, 0, 3, 9000)
        assert nic.detach() is backend
        assert nic.detach() is None
        nic.close()


def test_queues() -> None:
    assert Net(NetConfig("n", MAC)).queue_sizes == (256, 256, 64)
    nic = Net(NetConfig("n", MAC, queue_pairs=4, queue_size=512))
    assert nic.queue_sizes == (512,) * 8 + (64,)


def test_what_python_allows_is_what_c_allows() -> None:
    assert net.QUEUE_PAIRS_MAX == lib.PV_NET_PAIRS
    assert net.QUEUE_SIZE_MAX == lib.PV_VIRTQUEUE_SIZE_MAX


def test_a_backend_that_does_not_fit_is_refused() -> None:
    nic = Net(NetConfig("n", MAC, queue_pairs=2))
    with SocketBackend() as poor, SocketBackend(offloads=net.TAP_OFFLOADS) as narrow:
        message = refusal(lambda: nic.attach(narrow))
        assert message.startswith("NIC n: 2 queue pairs need as many queues of the backend")
        assert "give queues=2" in message
        nic = Net(NetConfig("n", MAC))
        assert "lacks (0xf); attach a tap" in refusal(lambda: nic.attach(poor))
        nic.attach(narrow)
        assert "detach that first" in refusal(lambda: nic.attach(narrow))
        nic.detach()
        narrow.vhost_fds = (99,)
        limited = Net(NetConfig("n", MAC, tx_bytes=1000))
        assert "give vhost=off" in refusal(lambda: limited.attach(narrow))
        with pytest.raises(BackendError, match="NIC n: cannot use its backend: Bad file"):
            nic.attach(narrow)
        assert not nic.link


def test_close_closes_the_backend() -> None:
    with SocketBackend() as backend:
        nic = Net(NetConfig("n", MAC), backend)
        nic.close()
        nic.close()
        assert backend.closed == 1


@pytest.fixture(params=["own thread", "shared thread"])
def bench(request: pytest.FixtureRequest) -> Iterator[NicBench]:
    iothread = SHARED if request.param == "shared thread" else None
    with SocketBackend(offloads=net.TAP_OFFLOADS) as backend:
        bench = NicBench(NetConfig("n", MAC, iothread=iothread), backend)
        yield bench
        bench.close()


def test_an_address_of_ones_own_while_no_driver_is_at_work(bench: NicBench) -> None:
    backend = bench.nic.detach()
    assert backend is not None
    bench.nic.attach(backend, mac=OTHER)
    assert bench.config(0, 6) == OTHER
    bench.start()
    assert bytes(bench.nic.rx_filter().mac) == OTHER
    bench.nic.detach()
    with pytest.raises(ConfigError) as info:
        bench.nic.attach(backend, mac=MAC)
    assert str(info.value) == (
        f"NIC n: the guest's driver knows this slot by the address {OTHER.hex(':')}, which it asks "
        "only when it starts; give that mac or none, and set yours in the guest (ip link set dev "
        "NAME address MAC), or unbind the driver there first"
    )
    assert not bench.nic.link
    bench.nic.attach(backend, mac=OTHER)
    bench.nic.detach()
    bench.set(r.STATUS, 0)
    assert bench.config(0, 6) == OTHER
    bench.nic.attach(backend, mac=MAC)
    assert bench.config(0, 6) == MAC


def test_an_address_stays_where_a_backend_is_refused() -> None:
    nic = Net(NetConfig("n", MAC))
    with SocketBackend() as poor:
        assert "attach a tap" in refusal(lambda: nic.attach(poor, mac=OTHER))
    assert nic.config()[:6] == MAC


def test_packets_both_ways(bench: NicBench) -> None:
    bench.start()
    peer = bench.backend.peers[0]
    bench.send(frame(MAC, 100))
    assert peer.recv(4096) == bytes(12) + frame(MAC, 100)
    bench.offer_buffers(4)
    peer.send(bytes(12) + frame(MAC, 900))
    assert bench.receive() == (b"\0" * 10 + b"\1\0", frame(MAC, 900))
    stats = bench.nic.stats()
    assert (stats.rx_packets, stats.rx_bytes, stats.tx_packets, stats.tx_bytes) == (1, 900, 1, 100)


def test_a_thread_serves_as_long_as_the_backend_that_names_it() -> None:
    with SocketBackend(offloads=net.TAP_OFFLOADS) as backend:
        bench = NicBench(NetConfig("n", MAC), backend)
        bench.start()
        for chosen in (SHARED, None, SHARED):
            bench.nic.detach()
            assert SHARED.thread_id == 0
            bench.nic.attach(backend, iothread=chosen)
            bench.send(frame(MAC, 100))
            assert backend.peers[0].recv(4096) == bytes(12) + frame(MAC, 100)
            assert bool(SHARED.thread_id) == (chosen is not None)
        bench.close()


def test_the_kernels_data_path_has_no_iothread() -> None:
    with SocketBackend(offloads=net.TAP_OFFLOADS) as backend:
        backend.vhost_fds = backend.fds
        nic = Net(NetConfig("n", MAC))
        assert refusal(lambda: nic.attach(backend, iothread=SHARED)) == (
            "NIC n: with vhost the kernel moves the packets, and no iothread; give vhost=off or "
            "leave iothread out"
        )


def test_a_driver_without_queues_needs_a_reset(bench: NicBench) -> None:
    bench.negotiate(r.VERSION_1)
    status = bench.set_status(r.DRIVER_OK)
    assert status & r.NEEDS_RESET
    assert bench.log == ["NIC n: the driver made its first two queues not ready; it needs a reset"]


def test_the_control_queue_is_behind_the_pairs() -> None:
    """Of which there is one without MQ, however many the device has."""
    for features, index in ((0, 2), (net.MQ, 6)):
        with SocketBackend(pairs=3) as backend:
            bench = NicBench(NetConfig("n", MAC, queue_pairs=3), backend)
            bench.start(features | net.CTRL_VQ | net.CTRL_RX)
            assert bench.command(index, 0, 0, b"\1") == 0
            assert bench.command(index, 0, 9, b"\1") == 1
            bench.close()


def test_the_driver_finds_the_address_that_it_set(bench: NicBench) -> None:
    bench.start(net.CTRL_VQ | net.CTRL_MAC_ADDR | net.MAC)
    other = bytes.fromhex("020000000099")
    assert bench.command(2, 1, 1, other) == 0
    assert bench.config(0, 6) == other
    bench.nic.set_link(False)
    assert bench.config(0, 6) == other
    bench.set(r.STATUS, 0)
    assert bench.config(0, 6) == MAC


def test_the_first_change_of_the_filter_is_told_until_it_is_read(bench: NicBench) -> None:
    bench.start(net.CTRL_VQ | net.CTRL_RX | net.CTRL_VLAN)
    assert not bench.nic.take_filter_change()
    assert bench.command(2, 0, 9, b"\1") == 1  # refused: nothing changes
    assert not bench.nic.take_filter_change()
    for _ in range(3):
        assert bench.command(2, 0, 0, b"\0") == 0
        assert bench.command(2, 2, 0, b"\7\0") == 0
    assert bench.nic.take_filter_change()
    assert not bench.nic.take_filter_change()
    mode = bench.nic.rx_filter()
    assert (mode.promiscuous, mode.filters_vlans, mode.vlans[0]) == (False, True, 1 << 7)
    assert bench.command(2, 2, 1, b"\7\0") == 0
    assert bench.nic.take_filter_change()
    assert bench.nic.rx_filter().vlans[0] == 0


def test_the_filter_of_a_nic_without_backend_is_nobodys(bench: NicBench) -> None:
    bench.start(net.CTRL_VQ | net.CTRL_RX)
    backend = bench.nic.detach()
    assert backend
    try:
        assert bench.command(2, 0, 0, b"\0") == 0
        assert not bench.nic.take_filter_change()
    finally:
        backend.close()


def test_the_driver_is_told_of_the_link(bench: NicBench) -> None:
    bench.start(net.STATUS)
    assert bench.config(6, 2) == b"\1\0"
    generation = bench.get(r.CONFIG_GENERATION)
    bench.nic.set_link(True)
    assert bench.get(r.INTERRUPT_STATUS) == 0
    for up in (False, True):
        bench.nic.set_link(up)
        assert bench.nic.link == up
        assert bench.config(6, 2) == bytes([up, 0])
        assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
        bench.set(r.INTERRUPT_ACK, r.INTERRUPT_CONFIG)
    assert bench.get(r.CONFIG_GENERATION) == generation + 2


def test_a_peer_that_has_gone_takes_the_link_down(bench: NicBench) -> None:
    bench.start(net.STATUS)
    bench.backend.peers[0].shutdown(socket.SHUT_RDWR)
    assert select.select([bench.broken_fd], [], [], 10)[0]
    bench.transport.report()
    assert bench.log == ["NIC n: its tap was removed; the link is down"]
    assert bench.config(6, 2) == b"\0\0"
    assert not bench.nic.link
    bench.transport.report()
    assert len(bench.log) == 1
    bench.send(frame(MAC, 100))
    assert bench.nic.stats().tx_no_link == 1


def test_a_lost_link_comes_back_with_another_backend(bench: NicBench) -> None:
    bench.start(net.STATUS)
    bench.backend.peers[0].shutdown(socket.SHUT_RDWR)
    assert select.select([bench.broken_fd], [], [], 10)[0]
    bench.transport.report()
    bench.nic.set_link(True)
    assert bench.config(6, 2) == b"\0\0"
    assert bench.nic.detach() is bench.backend
    with SocketBackend(offloads=net.TAP_OFFLOADS) as other:
        bench.nic.attach(other)
        assert bench.nic.link
        bench.send(frame(MAC, 100))
        assert other.peers[0].recv(4096) == bytes(12) + frame(MAC, 100)
        bench.nic.detach()


UP, ANNOUNCE = 1, 2
ACKNOWLEDGE = 3, 0  # VIRTIO_NET_CTRL_ANNOUNCE, and its one command
ANNOUNCES = net.STATUS | net.CTRL_VQ | net.GUEST_ANNOUNCE


def ask_to_announce(bench: NicBench, other: SocketBackend) -> None:
    """Put another backend behind a NIC whose driver goes on, and wait for what comes of it."""
    bench.nic.detach()
    take(bench.broken_fd)
    bench.nic.attach(other)
    bench.set(r.INTERRUPT_ACK, r.INTERRUPT_CONFIG)
    assert bench.config(6, 2) == bytes([UP, 0])
    assert select.select([bench.broken_fd], [], [], 10)[0]
    bench.transport.report()
    assert bench.config(6, 2) == bytes([UP | ANNOUNCE, 0])
    assert bench.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG


def test_a_driver_is_to_announce_itself_to_another_backend(bench: NicBench) -> None:
    bench.start(ANNOUNCES)
    assert bench.config(6, 2) == bytes([UP, 0])
    with SocketBackend(offloads=net.TAP_OFFLOADS) as other:
        ask_to_announce(bench, other)
        assert bench.command(2, *ACKNOWLEDGE, b"") == 0
        assert bench.config(6, 2) == bytes([UP, 0])
        bench.nic.detach()


def test_a_reset_ends_an_announcement(bench: NicBench) -> None:
    bench.start(ANNOUNCES)
    with SocketBackend(offloads=net.TAP_OFFLOADS) as other:
        ask_to_announce(bench, other)
        bench.set(r.STATUS, 0)
        assert bench.config(6, 2) == bytes([UP, 0])
        bench.nic.detach()


def test_a_broken_ring_is_reported_once(bench: NicBench) -> None:
    bench.start()
    bench.drivers[1].ring.avail_idx = 500
    bench.kick(1)
    assert select.select([bench.broken_fd], [], [], 10)[0]
    bench.transport.report()
    assert bench.log == ["NIC n: avail idx is 500, 500 ahead in a queue of 64; it needs a reset"]
    assert bench.get(r.STATUS) & r.NEEDS_RESET
    bench.set(r.STATUS, 0)
    bench.start()
    bench.send(frame(MAC, 60))
    assert bench.backend.peers[0].recv(4096) == bytes(12) + frame(MAC, 60)


def test_activated_a_hundred_times(bench: NicBench) -> None:
    for _ in range(100):
        bench.start()
        bench.send(frame(MAC, 60))
        assert bench.backend.peers[0].recv(4096) == bytes(12) + frame(MAC, 60)
        bench.set(r.STATUS, 0)
    assert bench.nic.stats().tx_packets == 100
