"""NICs on taps under Linux's own driver: one guest, with a NIC for each thing that is tried."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest
from pyvirt.devices.nic import NicConfig
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio.mmio import Mmio
from pyvirt.devices.virtio.net import Net
from pyvirt.harness.guest import kernel
from pyvirt.harness.lab import module

from ..unit.namespace import ip, network_namespace
from .live import Live, live, reporting
from .network import PATIENCE, md5, net_up, serving

MIB = 1 << 20
RATE = MIB  # bytes a second of the NIC that has a limit
ETH_P_IP = 0x0800
MANUALS_MAC = "00:e0:fc:01:16:06"
# Places in the guest.
MANUALS, VHOST = 0, 3


@pytest.fixture(scope="module")
def guest(micro: kernel.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A guest whose NICs are set up: 10.0.N.2, and the host is 10.0.N.1."""
    module.load("vhost_net")
    with network_namespace():
        ip("link set lo up")
        net_up("tap0", "-bridge", "qbr0", "-address", "10.0.0.1/24")
        net_up("tap1", "-address", "10.0.1.1/24", "-mtu", "9000")
        net_up("tap2", "-address", "10.0.2.1/24")
        net_up("tap3", "-address", "10.0.3.1/24")
        net_up("tap4", "-address", "10.0.4.1/24", "-nat")
        nics = (
            NicConfig("net0", TapConfig("tap0"), mac=bytes.fromhex(MANUALS_MAC.replace(":", ""))),
            NicConfig("net1", TapConfig("tap1")),
            NicConfig("net2", TapConfig("tap2"), rx_bytes=RATE, tx_bytes=RATE),
            NicConfig("net3", TapConfig("tap3", vhost=True)),
            NicConfig("net4", TapConfig("tap4")),
        )
        folder = tmp_path_factory.mktemp("net")
        with live(micro, folder, nics=nics) as running, reporting(running.machine):
            for number in range(len(nics)):
                running.run(f"ip addr add 10.0.{number}.2/24 dev eth{number}")
                running.run(f"ip link set eth{number} up")
            yield running


def transport(guest: Live, number: int) -> Mmio:
    assert guest.machine.slots
    return guest.machine.slots.transports[number]


def nic(guest: Live, number: int) -> Net:
    device = transport(guest, number).device
    assert isinstance(device, Net)
    return device


def test_packets_of_a_guest_behind_a_bridge(guest: Live) -> None:
    """Exits of registers are for setting up, none for packets."""
    assert guest.run("cat /sys/class/net/eth0/address") == MANUALS_MAC
    guest.run("until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done", PATIENCE)
    seen = transport(guest, MANUALS)
    before = seen.writes
    said = guest.run("ping -A -q -c 200 10.0.0.1", PATIENCE)
    assert "200 packets transmitted, 200 packets received" in said
    shown = nic(guest, MANUALS).stats()
    assert shown.rx_packets > 200
    assert shown.tx_packets > 200
    assert seen.reads == 0
    assert seen.writes == before < 100


def test_the_link_goes_down_and_up(guest: Live) -> None:
    """The guest sees each change at once, and packets pass again after the last."""
    device = nic(guest, MANUALS)
    for _ in range(3):
        assert device.link
        for up in (False, True):
            device.set_link(up)
            guest.run(f"until [ $(cat /sys/class/net/eth0/carrier) = {up:d} ]; do sleep 0.1; done")
    guest.run("until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done", PATIENCE)


def test_vhost_moves_the_packets(guest: Live) -> None:
    """The kernel serves the rings; the monitor has no part in it, and its counters stay at 0."""
    data = os.urandom(MIB) * 4
    with serving(data, "10.0.3.1"):
        said = guest.run("ping -A -q -c 100 10.0.3.1; nc 10.0.3.1 5000 | md5sum", PATIENCE)
    assert "100 packets transmitted, 100 packets received" in said
    assert md5(data) in said
    shown = nic(guest, VHOST).stats()
    assert shown.rx_packets == shown.tx_packets == 0


def accept(server: socket.socket) -> socket.socket:
    peer, _ = server.accept()
    peer.settimeout(PATIENCE)
    return peer


def test_limits_hold(guest: Live) -> None:
    """1 MiB at 1 MiB a second each way, less the tenth of a second that a bucket holds at first."""
    payload = bytes(MIB)
    with socket.create_server(("10.0.2.1", 5000)) as server:
        server.settimeout(PATIENCE)
        guest.begin(
            "read -r start rest </proc/uptime; nc 10.0.2.1 5000 </dev/null | wc -c; "
            "read -r half rest </proc/uptime; "
            f"dd if=/dev/zero bs={MIB} count=1 2>/dev/null | nc 10.0.2.1 5000; "
            'read -r end rest </proc/uptime; echo "at $start $half $end"'
        )
        with accept(server) as peer:
            peer.sendall(payload)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(65536) == b""
        with accept(server) as peer:
            received = b"".join(iter(lambda: peer.recv(65536), b""))
        output, status = guest.finish(PATIENCE)
    assert (received, status) == (payload, 0)
    assert str(len(payload)) in output.splitlines()
    found = re.search(r"at ([\d.]+) ([\d.]+) ([\d.]+)", output)
    assert found
    start, half, end = map(float, found.groups())
    # How much longer is the machine's affair.
    assert half - start >= 0.8
    assert end - half >= 0.8


@contextmanager
def beyond() -> Iterator[socket.socket]:
    """Yield a server of another namespace, which knows no way but to its neighbour, this one."""
    module.load("veth")
    # A thread, for that is what a namespace is of.
    with ThreadPoolExecutor(1) as there, ExitStack() as stack:
        there.submit(stack.enter_context, network_namespace()).result()
        try:
            thread = there.submit(threading.get_native_id).result()
            ip(f"link add out type veth peer name in netns {thread}")
            ip("addr add 192.0.2.1/24 dev out")
            ip("link set out up")
            for words in ("addr add 192.0.2.2/24 dev in", "link set in up"):
                there.submit(ip, words).result()
            with there.submit(socket.create_server, ("192.0.2.2", 5000)).result() as server:
                server.settimeout(PATIENCE)
                yield server
        finally:
            there.submit(stack.close).result()


def test_a_guest_reaches_others_through_the_host(guest: Live) -> None:
    """With -nat: another namespace, beyond the host, sees the host's address."""
    guest.run("ip route add default via 10.0.4.1")
    with beyond() as server:
        guest.begin("nc 192.0.2.2 5000 </dev/null")
        peer, (host, _) = server.accept()
        with closing(peer):
            peer.sendall(b"answer")
        assert guest.finish(PATIENCE) == ("answer", 0)
    assert host == "192.0.2.1"


def test_jumbo_frames_until_the_tap_is_removed(guest: Live) -> None:
    """The guest finds the tap's MTU, and frames of that size pass in one piece.

    Then it loses its link and is well otherwise; the monitor says so and lives on.
    """
    assert guest.run("cat /sys/class/net/eth1/mtu") == "9000"
    guest.run("! ip link set eth1 mtu 9001 2>/dev/null")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP)) as host:
        host.bind(("tap1", ETH_P_IP))
        said = guest.run("ping -A -c 2 -s 8972 10.0.1.1; ping -c 1 -s 100 10.0.1.1", PATIENCE)
        host.setblocking(False)
        sizes = []
        while True:
            try:
                sizes.append(len(host.recv(65536)))
            except BlockingIOError:
                break
    assert "2 packets transmitted, 2 packets received" in said
    # Of what came from the guest: two large echo requests, a small one.
    assert sorted(sizes)[-3:] == [142, 9014, 9014]
    ip("link del tap1")
    guest.run("until [ $(cat /sys/class/net/eth1/carrier) = 0 ]; do sleep 0.1; done", PATIENCE)
    assert "3 packets received" in guest.run("ping -A -c 3 10.0.0.1", PATIENCE)
    told = "pyvirt: NIC net1: its tap was removed; the link is down\n"
    assert guest.log.read_text() == told
