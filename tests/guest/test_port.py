"""Ports under Linux's own driver: what a guest sees of them, and what goes through."""

from __future__ import annotations

import hashlib
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from pyvirt.devices.chardev import ChardevConfig
from pyvirt.devices.virtio.console import Console, ConsoleConfig, PortConfig
from pyvirt.harness.guest import kernel

from .live import Live, live

MIB = 1 << 20
BULK = 4 * MIB
# The lab moves some 10 MiB a second when its host is busy.
BULK_SECONDS = 100.0
PORT = "/dev/vport0p1"


@pytest.fixture(scope="module")
def host() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return both ends of the connection of port 1; the second becomes the guest's."""
    ours, theirs = socket.socketpair()
    ours.settimeout(BULK_SECONDS)
    with ours:
        yield ours, theirs


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    """Return where clients of port 5 connect to."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield f"{folder}/port"


@pytest.fixture(scope="module")
def guest(
    micro: kernel.Kernel,
    host: tuple[socket.socket, socket.socket],
    path: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    ports = (
        PortConfig(1, ChardevConfig("a", fd=host[1].detach()), "pyvirt.agent"),
        PortConfig(5, ChardevConfig("b", path=path), "by path"),
    )
    console = ConsoleConfig("serial0", ports, 6)
    with live(micro, tmp_path_factory.mktemp("port"), devices=(console,)) as running:
        yield running


def stats(guest: Live, name: str) -> int:
    assert guest.machine.slots
    device = guest.machine.slots.transports[-1].device
    assert isinstance(device, Console)
    return int(getattr(device.stats(), name))


def test_names(guest: Live) -> None:
    seen = guest.run("cd /sys/class/virtio-ports && grep . */name")
    assert seen.splitlines() == ["vport0p1/name:pyvirt.agent", "vport0p5/name:by path"]


def test_a_guest_is_seen_to_open_and_close(
    guest: Live, host: tuple[socket.socket, socket.socket]
) -> None:
    ours = host[0]
    ours.sendall(b"kept until somebody reads\n")
    assert guest.run(f"head -n 1 {PORT}") == "kept until somebody reads"
    guest.run(f"echo from the guest >{PORT}")
    assert ours.recv(100) == b"from the guest\n"


def test_4_mib_each_way_arrive_whole(
    guest: Live, host: tuple[socket.socket, socket.socket]
) -> None:
    data = random.Random(1).randbytes(BULK)
    ours = host[0]
    sender = threading.Thread(target=ours.sendall, args=(data,))
    guest.begin(f"dd if={PORT} of=/tmp/bulk bs=64k count={BULK // 65536} iflag=fullblock")
    start = time.monotonic()
    sender.start()
    output, status = guest.finish(BULK_SECONDS)
    sender.join()
    print(f"to the guest: {BULK / MIB / (time.monotonic() - start):.1f} MiB/s")
    assert status == 0, output
    summed = guest.run("md5sum /tmp/bulk", BULK_SECONDS).split()[0]
    assert summed == hashlib.md5(data).hexdigest()

    got = bytearray()
    guest.begin(f"dd if=/tmp/bulk of={PORT} bs=64k")
    start = time.monotonic()
    while len(got) < BULK:
        piece = ours.recv(MIB)
        assert piece
        got += piece
    print(f"from the guest: {BULK / MIB / (time.monotonic() - start):.1f} MiB/s")
    assert guest.finish(BULK_SECONDS)[1] == 0
    assert got == data
    guest.run("rm /tmp/bulk")
    assert stats(guest, "dropped") == 0


def test_a_round_trip_costs_a_process_of_the_guest_no_exit_to_python(
    guest: Live, host: tuple[socket.socket, socket.socket]
) -> None:
    ours = host[0]
    assert guest.machine.slots
    transport = guest.machine.slots.transports[-1]
    guest.begin(f"exec 3<>{PORT}; for i in $(seq 20); do read -r line <&3; echo $line >&3; done")
    ours.sendall(b"first\n")
    assert ours.recv(100) == b"first\n"
    before = transport.reads + transport.writes
    start = time.monotonic()
    for index in range(19):
        ours.sendall(b"%d\n" % index)
        assert ours.recv(100) == b"%d\n" % index
    print(f"round trip {(time.monotonic() - start) / 19 * 1000:.2f} ms")
    assert guest.finish()[1] == 0
    assert transport.reads + transport.writes == before
    guest.run("exec 3>&-")


def test_a_guest_sees_clients_come_and_go(guest: Live, path: str) -> None:
    port = "/dev/vport0p5"
    for name in (b"first", b"second"):
        # Reads end at once while nobody is connected.
        guest.begin(f"while ! read -r line; do sleep 0.01; done <{port}; cat {port}; echo $line")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(name + b"\n")
        output, status = guest.finish()
        assert (output.strip(), status) == (name.decode(), 0)
    assert stats(guest, "opened") - stats(guest, "closed") == 1


def test_a_reset_keeps_the_connection(
    guest: Live, host: tuple[socket.socket, socket.socket]
) -> None:
    guest.machine.reset()
    host[0].sendall(b"after the reset\n")
    guest.ready()
    assert guest.run(f"head -n 1 {PORT}") == "after the reset"


def test_the_host_closes_for_good(guest: Live, host: tuple[socket.socket, socket.socket]) -> None:
    guest.begin(f"cat {PORT}")
    host[0].sendall(b"the end")
    host[0].close()
    assert guest.finish() == ("the end", 0)
