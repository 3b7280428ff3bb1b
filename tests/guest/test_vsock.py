"""Sockets between a guest under Linux's own driver and the host, through either kind of device."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.devices.virtio.vsock import Vsock, VsockConfig
from pyvirt.harness.guest import kernel
from pyvirt.harness.guest.program import program

from .live import Live, live

MIB = 1 << 20
CID = 42
ECHO, SINK, SOURCE, HOST, NOBODY = 1, 2, 3, 4, 5
BYTES = 16 * MIB + 12345
MANY = 250
SECONDS = 60.0
MODULES = ("virtio_mmio", "vmw_vsock_virtio_transport")
SERVERS = (
    f"peer echo vsock:-1:{ECHO}",
    f"peer sink vsock:-1:{SINK}",
    f"peer source vsock:-1:{SOURCE} {BYTES}",
)


class Kind:
    """One kind of device: the guest that has it, and how the ends of connections are called."""

    def __init__(self, guest: Live, peer: Path, path: str = "") -> None:
        self.guest = guest
        self._peer = peer
        self._path = path

    def serve(self) -> None:
        """Start the guest's servers, and wait until they are there."""
        for index, server in enumerate(SERVERS):
            self.guest.run(f"{server} >/tmp/{index} &")
            self.guest.run(f"until grep -q ready /tmp/{index}; do sleep 0.01; done")

    def client(self, role: str, port: int, *number: int) -> str:
        """Run a client on the host to its end; return what it prints after the time."""
        address = f"hybrid:{self._path}:{port}" if self._path else f"vsock:{CID}:{port}"
        done = subprocess.run(
            [self._peer, role, address, *map(str, number)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return after_time(done.stdout)

    def guests_client(self, role: str, port: int, *number: int) -> str:
        """Run one in the guest."""
        words = " ".join(map(str, number))
        return after_time(self.guest.run(f"peer {role} vsock:2:{port} {words}", SECONDS))

    @contextmanager
    def server(self, role: str, port: int) -> Iterator[None]:
        """Have a server on the host."""
        address = f"unix:{self._path}_{port}" if self._path else f"vsock:-1:{port}"
        with subprocess.Popen([self._peer, role, address], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                assert process.stdout.readline() == b"ready\n"
                yield
            finally:
                process.kill()
                if self._path:
                    os.unlink(f"{self._path}_{port}")

    def connect(self, port: int) -> socket.socket:
        """Return a connection to a port of the guest's, which it has accepted."""
        client = socket.socket(socket.AF_UNIX if self._path else socket.AF_VSOCK)
        client.settimeout(SECONDS)
        client.connect(self._path or (CID, port))
        if self._path:
            client.sendall(b"CONNECT %d\n" % port)
            assert client.recv(3) == b"OK "
            while client.recv(1) != b"\n":
                pass
        return client

    def stat(self, name: str) -> int:
        """Return a counter of the device's."""
        assert self.guest.machine.slots
        device = self.guest.machine.slots.transports[-1].device
        assert isinstance(device, Vsock)
        return int(getattr(device.stats(), name))


def after_time(line: str) -> str:
    time_ns, _, rest = line.partition(" ")
    print(f"{int(time_ns) / 1e9:.3f} s {rest}")
    return rest.strip()


@pytest.fixture(scope="module")
def peer() -> Path:
    return program("vsock-peer", Path(__file__).with_name("vsock"))


@pytest.fixture(scope="module")
def own(
    cloud: kernel.Kernel, peer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kind]:
    """A guest with the monitor's own device."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = f"{folder}/v"
        with live(
            cloud,
            tmp_path_factory.mktemp("vsock"),
            modules=MODULES,
            files={"/bin/peer": peer},
            devices=(VsockConfig("v", CID, path),),
        ) as guest:
            kind = Kind(guest, peer, path)
            kind.serve()
            yield kind


@pytest.fixture
def kind(own: Kind) -> Kind:
    return own


def test_bytes_to_the_guest_arrive_whole(kind: Kind) -> None:
    assert kind.client("send", SINK, BYTES) == f"{BYTES} whole"


def test_bytes_from_the_guest_arrive_whole(kind: Kind) -> None:
    assert kind.client("read", SOURCE) == f"{BYTES} whole"


def test_the_guest_connects(kind: Kind) -> None:
    with kind.server("sink", HOST):
        assert kind.guests_client("send", HOST, BYTES) == f"{BYTES} whole"


def test_round_trips(kind: Kind) -> None:
    kind.client("trips", ECHO, 100)


def test_many_connections_to_the_guest_at_once(kind: Kind) -> None:
    kind.client("many", ECHO, MANY)


def test_many_connections_of_the_guest_at_once(kind: Kind) -> None:
    with kind.server("echo", HOST):
        kind.guests_client("many", HOST, MANY)


def test_what_nobody_listens_for_is_refused(kind: Kind) -> None:
    kind.guest.begin(f"peer trips vsock:2:{NOBODY} 0")
    output, status = kind.guest.finish()
    assert (output.strip(), status) == ("connect: Connection reset by peer", 1)


def test_a_client_of_the_host_is_refused(own: Kind) -> None:
    with pytest.raises(AssertionError, match="CONNECT"):
        own.client("trips", NOBODY, 0)


def test_nothing_was_lost_or_out_of_order(own: Kind) -> None:
    deadline = time.monotonic() + SECONDS
    while own.stat("of_host") + own.stat("of_guest") > own.stat("ended"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert own.stat("malformed") == own.stat("dropped") == 0
    assert own.stat("bytes_in") > BYTES
    assert own.stat("bytes_out") > 2 * BYTES


def test_connections_end_with_the_driver_and_the_next_one_begins_anew(kind: Kind) -> None:
    driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    with kind.connect(ECHO) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        device = kind.guest.run(f"cd {driver} && echo virtio*")
        kind.guest.run(f"echo {device} >{driver}/unbind")
        assert client.recv(1) == b""
    kind.guest.run(f"echo {device} >{driver}/bind")
    assert kind.client("send", SINK, MIB) == f"{MIB} whole"
