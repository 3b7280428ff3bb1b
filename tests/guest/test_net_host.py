"""NICs and what is behind them on the host: links, queues, vhost, passt, a way out."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.nic import NicConfig
from pyvirt.devices.serial import Serial
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio.net import Net
from pyvirt.harness.guest import initramfs, kernel
from pyvirt.harness.lab import module
from pyvirt.vmm import layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.log import Log
from pyvirt.vmm.machine import Machine

from ..kvm.support import wait_readable
from ..unit.namespace import ip, network_namespace
from .network import (
    CMDLINE,
    LARGE_SEGMENTS,
    PATIENCE,
    TOOLS,
    Guest,
    interface,
    md5,
    pyvirt,
    running,
    serving,
    tools_disk,
    until,
)

MIB = 1 << 20
SEGMENT = 10000  # bytes: more than a frame of any size that is used here
ETH_P_ALL = 3
NOBODY = 65534
# Tells who connects the address that it is seen as.
SEEN_AS = """
import socket
from pyvirt.harness.lab import module
server = socket.create_server(("192.0.2.2", 5000))
print("ready", flush=True)
peer, (host, _) = server.accept()
peer.sendall(host.encode())
"""


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with network_namespace():
        ip("link set lo up")
        yield


def test_the_link_goes_down_and_up(micro: kernel.Kernel, tmp_path: Path) -> None:
    """The guest sees each change at once, and packets pass again after the last."""
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24")
    script = (
        interface("eth0", "10.0.0.2/24")
        + """
        wait_for() { while [ "$(cat /sys/class/net/eth0/carrier)" != $1 ]; do sleep 0.1; done; }
        ping -c 1 10.0.0.1 && echo first
        for round in 1 2 3; do
            echo up; wait_for 0; echo down; wait_for 1
        done
        ping -c 1 10.0.0.1 && echo last
        """
    )
    console = tmp_path / "console"
    config = MachineConfig(
        str(micro.image),
        initrd=str(initramfs.build(micro, script=script)),
        cmdline=CMDLINE,
        nics=(NicConfig("n0", TapConfig("tap0")),),
    )
    machine = Machine(config, Log(), lambda _: None)
    try:
        machine.load()
        irq_fd = machine.interrupt_line(layout.COM1_IRQ).fd
        with Serial(ChardevConfig("serial0", "file", path=str(console)), irq_fd=irq_fd) as serial:
            serial.attach(machine.bus, layout.COM1)
            serial.start()
            machine.start()
            assert machine.slots
            nic = machine.slots.transports[0].device
            assert isinstance(nic, Net)

            def said(word: str, times: int) -> bool:
                return console.read_text(errors="replace").split().count(word) == times

            for turn in range(1, 4):
                until(partial(said, "up", turn))
                assert nic.link
                nic.set_link(False)
                until(partial(said, "down", turn))
                nic.set_link(True)
            wait_readable(machine.ended_fd, "the guest's end")
            machine.stop()
            serial.flush(1000)
    finally:
        machine.close()
    assert {"first", "last"} <= set(console.read_text(errors="replace").split())


def test_four_queues_share_what_four_processors_send(cloud: kernel.Kernel) -> None:
    """Each processor sends by a queue of its own, as the kernel's queue discipline counts."""
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24", "-multi-queue")
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


def test_vhost_moves_the_packets(micro: kernel.Kernel) -> None:
    """The kernel serves the rings; the monitor has no part in it, and its counters stay at 0."""
    module.load("vhost_net")
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24")
    script = (
        interface("eth0", "10.0.0.2/24") + "ping -A -q -c 100 10.0.0.1\nnc 10.0.0.1 5000 | md5sum"
    )
    data = os.urandom(MIB) * 8
    with serving(data), running(script, "-net", "tap0,vhost=on", "-stats") as guest:
        ended = guest.end()
    assert ended.status == 0
    assert "100 packets transmitted, 100 packets received" in ended.console
    assert md5(data) in ended.console
    assert "received 0 " in ended.messages


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
    pyvirt("net", "up", "tap0", "-address", "10.0.0.1/24")
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


def test_a_guest_reaches_others_through_the_host() -> None:
    """With -nat: another namespace, beyond the host, sees the host's address."""
    module.load("veth")
    pyvirt("net", "up", "tap0", "-bridge", "br0", "-address", "10.0.0.1/24", "-nat")
    with subprocess.Popen(["unshare", "--net", "sleep", str(PATIENCE)]) as beyond:
        try:
            here = os.readlink("/proc/thread-self/ns/net")
            until(lambda: os.readlink(f"/proc/{beyond.pid}/ns/net") != here)
            ip(f"link add out type veth peer name in netns {beyond.pid}")
            ip("addr add 192.0.2.1/24 dev out")
            ip("link set out up")
            inside = ["nsenter", "--net", "--target", str(beyond.pid)]
            for words in ("addr add 192.0.2.2/24 dev in", "link set in up"):
                subprocess.run([*inside, "ip", *words.split()], check=True, timeout=PATIENCE)
            with subprocess.Popen(
                [*inside, sys.executable, "-c", SEEN_AS], stdout=subprocess.PIPE
            ) as server:
                assert server.stdout
                assert server.stdout.readline() == b"ready\n"
                script = interface("eth0", "10.0.0.2/24") + (
                    "ip route add default via 10.0.0.1\n"
                    'echo "seen as $(nc 192.0.2.2 5000 </dev/null)"\n'
                )
                with running(script, "-net", "tap0") as guest:
                    ended = guest.end()
                server.kill()
        finally:
            beyond.kill()
    assert ended.status == 0
    assert "seen as 192.0.2.1" in ended.console.splitlines()
    pyvirt("net", "down", "tap0")


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


def test_a_guest_reaches_the_host_without_privileges(micro: kernel.Kernel) -> None:
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
    with serving(data, "127.0.0.1"), running(script, "-net", "user", prefix=prefix) as guest:
        ended = guest.end()
    assert (ended.status, ended.messages) == (0, "")
    assert "leased" in ended.console.splitlines()
    assert md5(data) in ended.console
    assert processes("passt") == []
