"""The network device on a real tap, in a network namespace: offloads, queues, and its removal."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.net import NetConfig

from ...namespace import ip, network_namespace
from .nic_bench import NicBench, frame

MAC = bytes.fromhex("020000000001")
HOST = bytes.fromhex("020000000002")
ETH_P_ALL = 3
ETH_P_TEST = 0x88B5
SOL_PACKET, PACKET_VNET_HDR = 263, 15
CTRL_MQ, CTRL_OFFLOADS = 4, 5
GUEST_ALL = net.GUEST_CSUM | net.GUEST_TSO4 | net.GUEST_TSO6 | net.GUEST_ECN
HOST_ALL = net.CSUM | net.HOST_TSO4 | net.HOST_TSO6 | net.HOST_ECN
NEEDS_CSUM, GSO_TCPV4 = 1, 1
MSS = 1448


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@contextmanager
def running(features: int, *, queues: int = 1, flags: str = "") -> Iterator[NicBench]:
    """A tap that is up, and a driver behind it that has accepted `features`."""
    ip(f"tuntap add tap0 mode tap {flags}")
    Path("/proc/sys/net/ipv6/conf/tap0/disable_ipv6").write_text("1")
    ip("link set tap0 up")
    tap = TapConfig("tap0", queues=queues).open()
    bench = NicBench(NetConfig("n", MAC, queue_pairs=queues), tap)
    try:
        bench.start(features)
        yield bench
    finally:
        bench.close()


@contextmanager
def host_socket(*, vnet_headers: bool = False) -> Iterator[socket.socket]:
    """A socket on the tap's link, as the host's stack has it."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as packets:
        packets.bind(("tap0", ETH_P_ALL))
        packets.settimeout(10)
        if vnet_headers:
            packets.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        yield packets


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(payload: int) -> bytes:
    """A TCP segment in a frame, its checksum that of the pseudo header alone."""
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    length = 20 + payload
    ipv4 = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 6, 0) + addresses
    ipv4 = ipv4[:10] + struct.pack("!H", checksum(ipv4)) + ipv4[12:]
    pseudo = ~checksum(addresses + struct.pack("!HH", 6, length)) & 0xFFFF
    header = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 1000, pseudo, 0)
    return MAC + HOST + b"\x08\x00" + ipv4 + header + bytes(i % 251 for i in range(payload))


def has_good_checksum(packet: bytes) -> bool:
    addresses, segment = packet[26:34], packet[34:]
    return checksum(addresses + struct.pack("!HH", 6, len(segment)) + segment) == 0


TSO_HEADER = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, MSS, 34, 16)
CSUM_HEADER = struct.pack("<BBHHHH", NEEDS_CSUM, 0, 0, 0, 34, 16)


def test_packets_both_ways() -> None:
    with running(net.MRG_RXBUF) as bench, host_socket() as host:
        bench.offer_buffers(8)
        bench.send(frame(HOST, 100))
        assert host.recv(4096) == frame(HOST, 100)
        host.send(frame(MAC, 900))
        header, data = bench.receive()
        assert (header, data) == (bytes(10) + b"\1\0", frame(MAC, 900))


def test_a_large_segment_reaches_a_driver_that_takes_it_whole() -> None:
    packet = tcp(60000)
    with (
        running(net.MRG_RXBUF | GUEST_ALL) as bench,
        host_socket(vnet_headers=True) as host,
    ):
        bench.offer_buffers(60)
        host.send(TSO_HEADER + packet)
        header, data = bench.receive()
        assert struct.unpack_from("<BB", header) == (NEEDS_CSUM, GSO_TCPV4)
        assert struct.unpack_from("<H", header, 4) == (MSS,)
        assert struct.unpack_from("<H", header, 10) == (-(-(12 + len(packet)) // 2048),)
        assert data == packet


def test_a_large_segment_reaches_any_other_driver_in_pieces() -> None:
    """Each of them with a checksum: the tap is never left to hand over more than was accepted."""
    payload, received = 20000, 0
    with running(net.MRG_RXBUF) as bench, host_socket(vnet_headers=True) as host:
        bench.offer_buffers(60)
        host.send(TSO_HEADER + tcp(payload))
        while received < payload:
            header, data = bench.receive()
            assert header[:10] == bytes(10)
            assert has_good_checksum(data)
            received += len(data) - 54
        assert bench.nic.stats().rx_unfit == 0


def test_a_command_takes_offloads_away() -> None:
    features = net.MRG_RXBUF | GUEST_ALL | net.CTRL_VQ | net.CTRL_GUEST_OFFLOADS
    with running(features) as bench, host_socket(vnet_headers=True) as host:
        bench.offer_buffers(60)
        host.send(CSUM_HEADER + tcp(100))
        assert bench.receive()[0][0] == NEEDS_CSUM
        assert bench.command(2, CTRL_OFFLOADS, 0, bytes(8)) == 0
        host.send(CSUM_HEADER + tcp(100))
        header, data = bench.receive()
        assert header[0] == 0
        assert has_good_checksum(data)


def test_the_driver_sends_large_segments() -> None:
    packet = tcp(60000)
    with running(HOST_ALL) as bench, host_socket(vnet_headers=True) as host:
        bench.send(packet, TSO_HEADER + bytes(2))
        got = host.recv(1 << 17)
        assert got[:2] == bytes([NEEDS_CSUM, GSO_TCPV4])
        assert got[10:] == packet


def test_what_the_kernel_refuses_is_dropped() -> None:
    with running(HOST_ALL) as bench, host_socket() as host:
        header = struct.pack("<BBHHHH2x", NEEDS_CSUM, GSO_TCPV4, 54, MSS, 90, 9000)
        bench.send(frame(HOST, 9100), header)
        bench.send(frame(HOST, 60))
        assert host.recv(1 << 17) == frame(HOST, 60)
        stats = bench.nic.stats()
        assert stats.tx_errors + stats.tx_packets == 2


def test_a_link_that_is_down_on_the_host_drops_packets() -> None:
    with running(0) as bench, host_socket() as host:
        ip("link set tap0 down")
        bench.send(frame(HOST, 60))
        assert bench.nic.stats().tx_errors == 1
        ip("link set tap0 up")
        with host_socket() as again:
            bench.send(frame(HOST, 60))
            assert again.recv(4096) == frame(HOST, 60)
        assert bench.nic.link
        assert host


@pytest.mark.parametrize("buffers", [0, 8])
def test_a_tap_that_is_removed_takes_the_link_down(buffers: int) -> None:
    with running(net.STATUS) as bench:
        bench.offer_buffers(buffers)
        assert bench.nic.link
        ip("link del tap0")
        assert select.select([bench.broken_fd], [], [], 10)[0]
        bench.transport.report()
        assert bench.log == ["NIC n: its tap was removed; the link is down"]
        bench.send(frame(HOST, 60))
        assert bench.nic.stats().tx_no_link == 1
        bench.set(r.STATUS, 0)
        bench.start(net.STATUS)
        assert bench.config(6, 2) == b"\0\0"


def attached_queues() -> int:
    return int(ip("-d link show tap0").split("numqueues ")[1].split()[0])


def disabled_queues() -> int:
    return int(ip("-d link show tap0").split("numdisabled ")[1].split()[0])


def test_the_driver_chooses_how_many_pairs_are_used() -> None:
    features = net.MRG_RXBUF | net.MQ | net.CTRL_VQ
    with running(features, queues=3, flags="multi_queue") as bench:
        assert (attached_queues(), disabled_queues()) == (1, 2)
        for pairs in (3, 2, 1, 3):
            assert bench.command(6, CTRL_MQ, 0, struct.pack("<H", pairs)) == 0
            assert (attached_queues(), disabled_queues()) == (pairs, 3 - pairs)
        assert bench.command(6, CTRL_MQ, 0, struct.pack("<H", 4)) == 1
        bench.set(r.STATUS, 0)
        bench.start(net.MRG_RXBUF)
        assert attached_queues() == 1


def test_every_pair_carries_packets() -> None:
    """The tap gives a flow back to the queue that it came from."""
    features = net.MRG_RXBUF | net.MQ | net.CTRL_VQ
    with running(features, queues=3, flags="multi_queue") as bench, host_socket() as host:
        assert bench.command(6, CTRL_MQ, 0, struct.pack("<H", 3)) == 0
        for pair in range(3):
            bench.offer_buffers(16, pair=pair)
            bench.send(frame(HOST, 100 + pair), pair=pair)
            assert host.recv(4096) == frame(HOST, 100 + pair)
        for _ in range(60):
            host.send(tcp(100))
        deadline = time.monotonic() + 10
        while bench.nic.stats().rx_packets < 16:
            assert time.monotonic() < deadline
        assert bench.nic.stats().tx_packets == 3


def test_a_tap_takes_the_place_of_another() -> None:
    with running(net.MRG_RXBUF | net.STATUS | GUEST_ALL) as bench:
        bench.offer_buffers(8)
        old = bench.nic.detach()
        assert old is bench.backend
        assert bench.config(6, 2) == b"\0\0"
        old.close()
        ip("link del tap0")
        ip("tuntap add tap0 mode tap")
        ip("link set tap0 up")
        bench.nic.attach(TapConfig("tap0").open())
        assert bench.config(6, 2) == b"\1\0"
        with host_socket(vnet_headers=True) as host:
            bench.send(frame(HOST, 100))
            while (got := host.recv(4096)[10:]) != frame(HOST, 100):
                assert got[12:14] != ETH_P_TEST.to_bytes(2, "big")
            host.send(CSUM_HEADER + tcp(100))
            while (data := bench.receive()[1]) != tcp(100):
                assert data[12:14] != b"\x08\x00"
