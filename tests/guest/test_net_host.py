"""NICs and what is behind them on the host: queues, a bridge, large segments, passt.

These want a kernel, processors or a user of their own; what one guest shows is in test_net.py.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from pyvirt.harness.guest import kernel
from pyvirt.harness.lab import module

from ..unit.namespace import ip, network_namespace
from .network import (
    LARGE_SEGMENTS,
    PATIENCE,
    TOOLS,
    Guest,
    interface,
    md5,
    net_up,
    running,
    serving,
    tools_disk,
)

MIB = 1 << 20
PARTS = 1  # of 16 MiB
SEGMENT = 10000  # bytes: more than a frame of any size that is used here
ETH_P_ALL = 3
NOBODY = 65534
# Four threads that share one processor would else take turns for each packet.
BATCH = ("chrt", "--batch", "0")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        yield


def test_what_the_guest_knows_of_a_nic() -> None:
    net_up("tap0", "-multi-queue")
    script = """
    cd /sys/class/net/eth0
    echo "queues=$(ls queues | grep -c tx) mac=$(cat address) carrier=$(cat carrier 2>/dev/null)"
    ip link set eth0 up; echo "carrier=$(cat carrier)"; cat device/features
    """
    with running(script, "-net", "tap0,queues=2", "-smp", "2") as guest:
        one = guest.end()
    assert one.status == 0
    assert "carrier=1" in one.console.splitlines()
    address = re.search(r"queues=2 mac=([0-9a-f:]{17})", one.console)
    assert address
    # One that nobody has bought.
    assert int(address[1][:2], 16) & 3 == 2
    features = re.search(r"^([01]{64})$", one.console, re.MULTILINE)
    assert features
    bits = {index for index, bit in enumerate(features[1]) if bit == "1"}
    # CSUM, GUEST_CSUM, MAC, TSO both ways, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, MQ, INDIRECT,
    # EVENT_IDX, VERSION_1.
    assert {0, 1, 5, 7, 8, 11, 12, 15, 16, 17, 18, 22, 28, 29, 32} <= bits


def test_four_queues_share_what_four_processors_send(cloud: kernel.Kernel) -> None:
    """Each processor sends by a queue of its own, as the kernel's queue discipline counts."""
    net_up("tap0", "-address", "10.0.0.1/24", "-multi-queue")
    script = (
        TOOLS
        + interface("eth0", "10.0.0.2/24")
        + """
        for cpu in 0 1 2 3; do
            taskset $((1 << cpu)) ping -A -q -c $((50 * (cpu + 1))) 10.0.0.1 | grep received
        done
        tool /sbin/tc -s qdisc show dev eth0
        """
    )
    options = ("-net", "tap0,queues=4", "-smp", "4", "-m", "512", tools_disk())
    modules = ("virtio_mmio", "virtio_blk", "virtio_net", "ext4")
    with running(script, *options, "-stats", image=cloud, modules=modules) as guest:
        ended = guest.end()
    assert ended.status == 0
    for count in (50, 100, 150, 200):
        assert f"{count} packets transmitted, {count} packets received" in ended.console
    found = re.findall(r"parent :(\d).*\n Sent \d+ bytes (\d+) pkt", ended.console)
    assert len(found) == 4, ended.console
    # One of them asked for the neighbour, besides.
    assert all(0 <= int(sent) - 50 * int(queue) < 25 for queue, sent in found), found
    assert ended.messages.count("NIC net0") == 1


@contextmanager
def longest_packets(tap: str) -> Iterator[dict[str, int]]:
    """Keep the length of the longest packet that the guest received and that it sent, in bytes."""
    longest = {"received": 0, "sent": 0}
    watch = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    watch.bind((tap, ETH_P_ALL))
    watch.settimeout(0.1)
    over = threading.Event()

    def read() -> None:
        header = bytearray(64)
        while not over.is_set():
            with suppress(TimeoutError):
                length, sender = watch.recvfrom_into(header, 0, socket.MSG_TRUNC)
                way = "received" if sender[2] == socket.PACKET_OUTGOING else "sent"
                longest[way] = max(longest[way], length)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield longest
    finally:
        over.set()
        thread.join()
        watch.close()


def test_segments_of_both_families_pass_whole(cloud: kernel.Kernel) -> None:
    """A stock kernel with IPv6: segments of many frames, both ways, arrive as they were sent."""
    families = (("10.0.0.1", socket.AF_INET), ("fd00::1", socket.AF_INET6))
    net_up("tap0", "-address", "10.0.0.1/24")
    ip("-6 addr add fd00::1/64 dev tap0 nodad")
    data = os.urandom(MIB) * 4
    Path(LARGE_SEGMENTS[0]).write_text(LARGE_SEGMENTS[1])
    script = f"""
        echo {LARGE_SEGMENTS[1].strip()} >{LARGE_SEGMENTS[0]}
        echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
        ip addr add 10.0.0.2/24 dev eth0; ip -6 addr add fd00::2/64 dev eth0
        ip link set eth0 up
        for host in {" ".join(host for host, _ in families)}; do
            until ping -c 1 -W 1 $host >/dev/null; do :; done
            read -r word
            nc $host 5000 >/tmp/data; md5sum </tmp/data
            read -r word; nc $host 5000 </tmp/data
        done
        """
    modules = ("virtio_mmio", "virtio_net")
    options = ("-net", "tap0", "-m", "512")
    with running(script, *options, image=cloud, modules=modules) as guest:
        for number, (host, family) in enumerate(families, 1):
            with longest_packets("tap0") as longest:
                received = exchange(guest, data, host, family, number)
            assert received == data
            assert longest["received"] > SEGMENT
            assert longest["sent"] > SEGMENT
        ended = guest.end()
    assert ended.status == 0
    assert ended.console.count(md5(data)) == len(families)


def exchange(guest: Guest, data: bytes, host: str, family: int, number: int) -> bytes:
    """Have the guest receive the data, as the `number`th, and send it; return what it sent."""
    with serving(data, host, family):
        guest.say("receive")
        guest.wait_for(rf"(?s)(^[0-9a-f]{{32}}  -.*){{{number}}}")
    with socket.create_server((host, 5000), family=family) as server:
        server.settimeout(PATIENCE)
        guest.say("send")
        peer, _ = server.accept()
        peer.settimeout(PATIENCE)
        # The guest writes 1 KiB at a time: it makes segments of what piles up meanwhile.
        time.sleep(1)
        with peer:
            return b"".join(iter(lambda: peer.recv(1 << 20), b""))


def test_two_guests_on_one_bridge(tmp_path: Path) -> None:
    """They ping, measure with iperf3, and move much that arrives as it was sent."""
    tools = tools_disk()
    for tap in ("tap0", "tap1"):
        net_up(tap, "-bridge", "br0")
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


def processes(name: str) -> list[str]:
    """Return the ids of the processes of that name."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip().startswith(name):
                found.append(comm.parent.name)
        except OSError:
            continue
    return found


def test_a_guest_reaches_the_host_without_privileges() -> None:
    """All of it runs as nobody; passt gives the guest an address, and ends with it.

    Little is transferred: Debian 12's passt repeats bytes to a guest this slow, under QEMU too.
    """
    module.load("veth")
    ip("link add out type veth peer name wire")
    ip("link set wire up")
    ip("addr add 10.7.0.2/24 dev out")
    ip("link set out up")
    ip("route add default via 10.7.0.1")
    os.chmod("/dev/kvm", 0o666)
    data = os.urandom(1000)
    script = """
        ip link set eth0 up
        udhcpc -i eth0 -n -q -f -s /bin/true && echo leased
        ip addr add 10.7.0.2/24 dev eth0; ip route add default via 10.7.0.1
        timeout 20 nc 10.7.0.1 5000 </dev/null | md5sum
        """
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
    words = ("-net", "user", "-stats")
    with serving(data, "127.0.0.1"), running(script, *words, prefix=prefix) as guest:
        ended = guest.end()
    assert ended.status == 0
    assert not any(line.startswith("pyvirt:") for line in ended.messages.splitlines())
    assert re.search(r"^NIC \S+: register exits .*\n  received \d+ ", ended.messages, re.MULTILINE)
    assert "leased" in ended.console.splitlines()
    assert md5(data) in ended.console
    assert processes("passt") == []
