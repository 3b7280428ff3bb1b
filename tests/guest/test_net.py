"""NICs on taps under Linux's own driver: between guests, and between guest and host."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..unit.namespace import ip, network_namespace
from .network import LARGE_SEGMENTS, PATIENCE, TOOLS, interface, md5, pyvirt, running, tools_disk

MIB = 1 << 20
PARTS = 3  # of 16 MiB
# Four threads that share one processor would else take turns for each packet.
BATCH = ("chrt", "--batch", "0")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        yield


def counters(messages: str) -> dict[str, int]:
    """Return what `-stats` shows of a NIC by its names."""
    return {name: int(value) for name, value in re.findall(r"([a-z][a-z -]*[a-z]) (\d+)", messages)}


def test_the_manuals_example() -> None:
    """Bridge qbr0, tap0, and a guest that reaches the host: nothing of it is left behind."""
    pyvirt("net", "up", "tap0", "-bridge", "qbr0", "-address", "1.1.1.1/24")
    script = (
        interface("eth0", "1.1.1.2/24")
        + "ping -c 3 1.1.1.1; cat /sys/class/net/eth0/address; ping -A -q -c 200 1.1.1.1\n"
    )
    netdev = "tap,id=hostnet0,ifname=tap0"
    device = "virtio-net-device,netdev=hostnet0,id=net0,mac=00:e0:fc:01:16:06"
    with running(script, "-netdev", netdev, "-device", device, "-stats") as guest:
        ended = guest.end()
    assert ended.status == 0
    assert "3 packets transmitted, 3 packets received" in ended.console
    assert "200 packets transmitted, 200 packets received" in ended.console
    assert "00:e0:fc:01:16:06" in ended.console.splitlines()
    shown = counters(ended.messages)
    assert shown["received"] > 200
    assert shown["sent"] > 200
    # Exits of registers are for setting up, none for packets.
    exits = re.search(r"register exits \d+ \((\d+) reads, (\d+) writes\)", ended.messages)
    assert exits
    assert int(exits[1]) == 0
    assert int(exits[2]) < 100
    pyvirt("net", "down", "tap0")
    assert {line.split()[0] for line in ip("-br link").splitlines()} == {"lo"}


def test_jumbo_frames_until_the_tap_is_removed() -> None:
    """The guest finds the tap's MTU, and frames of that size pass in one piece.

    Then it loses its link and is well otherwise; the monitor says so and lives on.
    """
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24", "-mtu", "9000")
    pyvirt("net", "up", "tap1", "-address", "10.0.1.1/24")
    script = (
        interface("eth0", "10.0.0.2/24")
        + interface("eth1", "10.0.1.2/24")
        + """
        cat /sys/class/net/eth0/mtu; ip link set eth0 mtu 9001 || echo no more
        ping -c 2 -s 8972 10.0.0.1; ping -c 1 -s 100 10.0.0.1
        echo ready
        while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
        echo lost
        ping -c 3 10.0.1.1
        cat /sys/class/net/eth1/carrier
        """
    )
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0008) as host:  # ETH_P_IP
        host.bind(("tap0", 0x0800))
        with running(script, "-net", "tap0", "-net", "tap1") as guest:
            guest.wait_for("^ready$")
            host.setblocking(False)
            sizes = []
            while True:
                try:
                    sizes.append(len(host.recv(65536)))
                except BlockingIOError:
                    break
            ip("link del tap0")
            guest.wait_for("^lost$")
            ended = guest.end()
    assert "9000" in ended.console.splitlines()
    assert "no more" in ended.console.splitlines()
    assert "2 packets transmitted, 2 packets received" in ended.console
    # Of what came from the guest: two large echo requests, a small one.
    assert sorted(sizes)[-3:] == [142, 9014, 9014]
    assert ended.status == 0
    assert "3 packets transmitted, 3 packets received" in ended.console
    assert ended.messages == "pyvirt: NIC net0: its tap was removed; the link is down\n"


def accept(server: socket.socket) -> socket.socket:
    peer, _ = server.accept()
    peer.settimeout(PATIENCE)
    return peer


def test_limits_hold() -> None:
    """4 MiB at 2 MiB a second each way, less the tenth of a second that a bucket holds at first."""
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24")
    payload = bytes(4 * MIB)
    script = interface("eth0", "10.0.0.2/24") + (
        "read -r start rest </proc/uptime\n"
        "nc 10.0.0.1 5000 </dev/null | wc -c\n"
        "read -r half rest </proc/uptime\n"
        f"dd if=/dev/zero bs={MIB} count=4 2>/dev/null | nc 10.0.0.1 5000\n"
        'read -r end rest </proc/uptime; echo "at $start $half $end"\n'
    )
    limits = "throttling.rx-bytes=2M,throttling.tx-bytes=2M"
    with socket.create_server(("10.0.0.1", 5000)) as server:
        server.settimeout(PATIENCE)
        with running(script, "-net", f"tap0,{limits}") as guest:
            with accept(server) as peer:
                peer.sendall(payload)
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(65536) == b""
            with accept(server) as peer:
                received = b"".join(iter(lambda: peer.recv(65536), b""))
            ended = guest.end()
    assert received == payload
    assert str(len(payload)) in ended.console.splitlines()
    found = re.search(r"at ([\d.]+) ([\d.]+) ([\d.]+)", ended.console)
    assert found
    start, half, end = map(float, found.groups())
    # How much longer is the machine's affair.
    assert half - start >= 1.8
    assert end - half >= 1.8


def test_what_the_guest_knows_of_a_nic() -> None:
    """And a NIC that is refused leaves the other's tap free."""
    pyvirt("net", "up", "tap0", "-multi-queue")
    script = """
    cd /sys/class/net/eth0
    echo "queues=$(ls queues | grep -c tx) mac=$(cat address) carrier=$(cat carrier 2>/dev/null)"
    ip link set eth0 up; echo "carrier=$(cat carrier)"; cat device/features
    """
    nic = ("-net", "tap0,queues=2")
    with running(script, *nic, "-smp", "2") as first:
        one = first.end()
    with running(script, *nic, "-net", "tap9") as guest:
        refused = guest.end()
    with running(script, *nic) as second:
        other = second.end()
    assert one.status == 0
    assert "carrier=1" in one.console.splitlines()
    address = re.search(r"queues=2 mac=([0-9a-f:]{17})", one.console)
    assert address
    # The same address every time, and one that nobody has bought.
    assert f"mac={address[1]}" in other.console
    assert int(address[1][:2], 16) & 3 == 2
    features = re.search(r"^([01]{64})$", one.console, re.MULTILINE)
    assert features
    bits = {index for index, bit in enumerate(features[1]) if bit == "1"}
    # CSUM, GUEST_CSUM, MAC, TSO both ways, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, MQ, INDIRECT,
    # EVENT_IDX, VERSION_1.
    assert {0, 1, 5, 7, 8, 11, 12, 15, 16, 17, 18, 22, 28, 29, 32} <= bits
    assert refused.status == 2
    assert refused.messages.startswith("pyvirt: -net tap9: there is no such tap")
    assert other.status == 0


def test_two_guests_on_one_bridge(tmp_path: Path) -> None:
    """They ping, measure with iperf3, and move much that arrives as it was sent."""
    tools = tools_disk()
    for tap in ("tap0", "tap1"):
        pyvirt("net", "up", tap, "-bridge", "br0")
    large_segments = f"echo {LARGE_SEGMENTS[1].strip()} >{LARGE_SEGMENTS[0]}\n"
    send = (
        TOOLS
        + interface("eth0", "10.0.0.1/24")
        + large_segments
        + f"""
        dd if=/dev/vdb of=/tmp/part bs={MIB} count=16 2>/dev/null
        echo 'for part in $(seq {PARTS}); do cat /tmp/part; done' >/tmp/send
        tool iperf3 -s -1 >/dev/null &
        nc -l -p 5000 -e /bin/sh /tmp/send &
        for port in 5000 5201; do until netstat -ltn | grep -q :$port; do sleep 0.1; done; done
        echo ready
        wait
        """
    )
    # A sum for each part, and one for what is behind the last, which is nothing.
    sums = f"""
        exec 3<>/dev/tcp/10.0.0.1/5000
        for part in {{0..{PARTS}}}; do dd bs={MIB} count=16 iflag=fullblock <&3 | md5sum; done
        """
    receive = (
        TOOLS
        + interface("eth0", "10.0.0.2/24")
        + large_segments
        + f"""
        ping -c 3 10.0.0.1
        tool iperf3 -c 10.0.0.1 -t 3 -J | grep -A 9 '"sum_received"' | grep bytes
        tool bash -c '{sums}' 2>/dev/null
        """
    )
    part = os.urandom(16 * MIB)
    disk = tmp_path / "part"
    disk.write_bytes(part)
    with running(send, "-net", "tap0", tools, f"-disk={disk},readonly=on", prefix=BATCH) as server:
        server.wait_for("^ready$")
        with running(receive, "-net", "tap1", tools, prefix=BATCH) as client:
            received = client.end()
        sent = server.end()
    assert (sent.status, sent.messages) == (0, "")
    assert (received.status, received.messages) == (0, "")
    assert "3 packets transmitted, 3 packets received" in received.console
    moved = re.search(r'"bytes":\s*(\d+)', received.console)
    assert moved
    assert int(moved[1]) > MIB
    found = re.findall("^([0-9a-f]{32})  -$", received.console, re.MULTILINE)
    assert found == [md5(part)] * PARTS + [md5(b"")]
