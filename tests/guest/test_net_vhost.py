"""The kernel's vhost-net and a mock driver: it takes the queues over, and gives them back."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio import net
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.net import Net, NetConfig
from pyvirt.harness.lab import module

from ..unit.devices.virtio.nic_bench import NicBench, frame
from ..unit.devices.virtio.test_net_tap import HOST, MAC, host_socket
from ..unit.namespace import ip, network_namespace


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    module.load("vhost_net")
    with network_namespace():
        yield


@contextmanager
def running(features: int = net.MRG_RXBUF, *, queues: int = 1) -> Iterator[NicBench]:
    """A tap that is up and in the kernel's hands, and a driver behind it."""
    ip("tuntap add tap0 mode tap" + (" multi_queue" if queues > 1 else ""))
    ip("link set tap0 up")
    tap = TapConfig("tap0", queues=queues, vhost=True).open()
    bench = NicBench(NetConfig("n", MAC, queue_pairs=queues), tap)
    try:
        bench.start(features)
        yield bench
    finally:
        bench.close()


def exchange(bench: NicBench, length: int = 100) -> None:
    """Send a packet each way; what the host's own stack sends is passed over."""
    with host_socket() as host:
        bench.offer_buffers(4)
        bench.send(frame(HOST, length))
        while host.recv(1 << 16) != frame(HOST, length):
            pass
        host.send(frame(MAC, length + 1))
        while bench.receive()[1] != frame(MAC, length + 1):
            bench.offer_buffers(1)


def test_packets_both_ways_past_the_monitor() -> None:
    with running() as bench:
        assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_USED
        for length in (60, 1000, 1400):
            exchange(bench, length)
        bench.set(r.INTERRUPT_ACK, r.INTERRUPT_USED)
        assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_USED
        assert select.select([bench.irq_fd], [], [], 10)[0]
        stats = bench.nic.stats()
        assert stats.rx_packets == stats.tx_packets == stats.kicks == 0


def test_every_feature_of_the_ring() -> None:
    with running(net.MRG_RXBUF | r.EVENT_IDX | r.INDIRECT_DESC) as bench:
        exchange(bench)
    ip("link del tap0")
    with running(0) as bench:
        exchange(bench)


def test_started_again_and_again() -> None:
    with running() as bench:
        for _ in range(20):
            exchange(bench)
            bench.set(r.STATUS, 0)
            assert bench.get(r.INTERRUPT_STATUS) == 0
            bench.start(net.MRG_RXBUF)
        exchange(bench)


def test_without_a_link_nothing_passes() -> None:
    """The threads drop packets then; after that the kernel goes on where they stand."""
    with running(net.STATUS | net.MRG_RXBUF) as bench:
        for count in (1, 2):
            exchange(bench)
            bench.nic.set_link(False)
            bench.send(frame(HOST, 100))
            assert bench.nic.stats().tx_no_link == count
            bench.nic.set_link(True)
        exchange(bench)


def test_the_queues_change_hands_while_they_run() -> None:
    """From the kernel to the threads, and back."""
    with running() as bench:
        for vhost in (False, True, False, True):
            exchange(bench)
            old = bench.nic.detach()
            assert old
            old.close()
            bench.nic.attach(TapConfig("tap0", vhost=vhost).open())
            exchange(bench)


def test_commands_are_served_beside_it() -> None:
    features = net.MRG_RXBUF | net.CTRL_VQ | net.CTRL_RX | net.MQ
    with running(features, queues=2) as bench:
        assert bench.command(4, 0, 0, b"\1") == 0
        assert bench.command(4, 4, 0, b"\2\0") == 0
        assert "numqueues 2" in ip("-d link show tap0")
        bench.send(frame(HOST, 100), pair=1)
        assert bench.command(4, 4, 0, b"\1\0") == 0
        exchange(bench)


def test_another_device_goes_on_where_the_kernel_stood() -> None:
    """And the kernel where another device stood, or that one itself."""
    with running(net.MRG_RXBUF | r.EVENT_IDX) as bench:

        def make(vhost: bool) -> Net:
            bench.nic = Net(NetConfig("n", MAC), TapConfig("tap0", vhost=vhost).open())
            return bench.nic

        for vhost in (True, False, True, True):
            exchange(bench)
            queues = bench.state()["queues"]
            assert all(queue["next_avail"] > 0 for queue in queues[:2])
            assert queues[1]["next_avail"] == bench.drivers[1].ring.used_idx
            bench.transport.resume()
            exchange(bench)
            bench.move_on(partial(make, vhost))
            exchange(bench)


def test_a_broken_ring_needs_a_reset() -> None:
    with running() as bench:
        bench.drivers[1].ring.avail_idx = 500
        bench.kick(1)
        assert select.select([bench.broken_fd], [], [], 10)[0]
        bench.transport.report()
        assert bench.log == [
            "NIC n: vhost-net found a ring whose rules are broken; it needs a reset"
        ]
        bench.set(r.STATUS, 0)
        bench.start(net.MRG_RXBUF)
        exchange(bench)


def test_a_tap_that_is_removed() -> None:
    with running(net.STATUS) as bench:
        ip("link del tap0")
        assert select.select([bench.broken_fd], [], [], 30)[0]
        bench.transport.report()
        assert bench.log == ["NIC n: its tap was removed; the link is down"]
        assert bench.config(6, 2) == b"\0\0"
        time.sleep(1.5)
        bench.transport.report()
        assert len(bench.log) == 1
