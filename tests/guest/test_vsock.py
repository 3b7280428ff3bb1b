"""Sockets between a guest under Linux's own driver and the host, through either kind of device."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.vsock import Socket, VhostVsockConfig, VsockConfig
from pyvirt.errors import ConfigError
from pyvirt.harness.agent.image import agent
from pyvirt.harness.agent.protocol import VSOCK_PORT
from pyvirt.harness.guest import kernel
from pyvirt.harness.guest.program import program
from pyvirt.harness.lab import module

from ..unit.devices.virtio.vsock_bench import BUFFERS, EVENT, REQUEST, RESPONSE, RST, TX, VsockBench
from ..unit.devices.virtio.vsock_bench import CID as BENCH_CID
from ..unit.devices.virtio.vsock_bench import SECONDS as BENCH_SECONDS
from .conftest import PYVIRT
from .live import Live, live

MIB = 1 << 20
CID = 42
ECHO, SINK, SOURCE, HOST, NOBODY = 1, 2, 3, 4, 5
BYTES = 4 * MIB + 12345
MANY = 100
SECONDS = 60.0
_SHUTDOWN = 4
MODULES = ("virtio_mmio", "vmw_vsock_virtio_transport", "vsock_loopback")
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

    @property
    def place(self) -> str:
        """Return what `pyvirt exec` calls the guest."""
        return f"vsock:{self._path or CID}"

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

    @property
    def is_own(self) -> bool:
        """Tell whether the monitor serves it."""
        return bool(self._path)

    def stat(self, name: str) -> int:
        """Return a counter of the device's."""
        assert self.guest.machine.slots
        device = self.guest.machine.slots.transports[-1].device
        assert isinstance(device, Socket)
        return int(getattr(device.stats(), name))


def after_time(line: str) -> str:
    time_ns, _, rest = line.partition(" ")
    print(f"{int(time_ns) / 1e9:.3f} s {rest}")
    return rest.strip()


@pytest.fixture(scope="module")
def peer() -> Path:
    return program("vsock-peer", Path(__file__).with_name("vsock"))


@contextmanager
def running(kind: str, image: kernel.Kernel, peer: Path, folder: Path) -> Iterator[Kind]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as sockets:
        path = f"{sockets}/v" if kind == "own" else ""
        device = VsockConfig("v", CID, path) if path else vhost(CID)
        files = {"/bin/peer": peer, "/bin/pyvirt-agent": agent()}
        with live(image, folder, modules=MODULES, files=files, devices=(device,)) as guest:
            found = Kind(guest, peer, path)
            found.serve()
            yield found


def vhost(cid: int, fd: int = -1) -> VhostVsockConfig:
    module.load("vhost_vsock")
    return VhostVsockConfig("v", cid, fd, driver="vhost-vsock-device")


@pytest.fixture(scope="module", params=["own", "vhost"])
def kind(
    request: pytest.FixtureRequest,
    micro: kernel.Kernel,
    peer: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Kind]:
    """A guest with a device of each kind, the monitor's own and the kernel's."""
    with running(request.param, micro, peer, tmp_path_factory.mktemp("vsock")) as found:
        yield found


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


def test_commands_in_the_guest(kind: Kind) -> None:
    # It goes on without its port, in the process that listens here.
    kind.guest.run("pyvirt-agent 2>/dev/null &")
    listens = f"peer trips vsock:1:{VSOCK_PORT} 0 >/dev/null 2>&1"
    kind.guest.run(f"until {listens}; do sleep 0.05; done")
    words = [str(PYVIRT), "exec", kind.place, "--", "sh", "-c", "uname -r; wc -c; exit 5"]
    done = subprocess.run(
        words, input=bytes(MIB), capture_output=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 5, done.stderr
    assert done.stdout.decode().split() == [kind.guest.run("uname -r"), str(MIB)]
    # It is not for the guest's own processes.
    seen = kind.guest.run(f"peer read vsock:1:{VSOCK_PORT}")
    assert after_time(seen).startswith("0 ")


def test_what_nobody_listens_for_is_refused(kind: Kind) -> None:
    kind.guest.begin(f"peer trips vsock:2:{NOBODY} 0")
    output, status = kind.guest.finish()
    assert (output.strip(), status) == ("connect: Connection reset by peer", 1)

    with pytest.raises(AssertionError, match=r"CONNECT|Connection reset"):
        kind.client("trips", NOBODY, 0)


def test_what_the_device_has_counted(kind: Kind) -> None:
    if not kind.is_own:
        assert kind.stat("bytes_in") == kind.stat("kicks") == 0
        return
    deadline = time.monotonic() + SECONDS
    while kind.stat("of_host") + kind.stat("of_guest") > kind.stat("ended"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert kind.stat("malformed") == kind.stat("dropped") == 0
    assert kind.stat("bytes_in") > BYTES
    assert kind.stat("bytes_out") > 2 * BYTES


def test_connections_end_with_the_driver_and_the_next_one_begins_anew(kind: Kind) -> None:
    driver = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    with kind.connect(ECHO) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        device = kind.guest.run(f"cd {driver} && echo virtio*")
        kind.guest.run(f"echo {device} >{driver}/unbind")
        if not kind.is_own:
            # The host learns of it from the next driver.
            kind.guest.run(f"echo {device} >{driver}/bind")
            client.sendall(b"x")
        assert client.recv(1) == b""
    if kind.is_own:
        kind.guest.run(f"echo {device} >{driver}/bind")
    assert kind.client("send", SINK, MIB) == f"{MIB} whole"


def test_an_address_that_another_guest_has() -> None:
    device = vhost(CID + 1).make()
    with pytest.raises(ConfigError) as refused:
        vhost(CID + 1).make()
    assert str(refused.value) == (
        f"-device vhost-vsock-device,guest-cid={CID + 1}: another guest of this host has that "
        "address; give another"
    )
    device.close()
    fd = os.open("/dev/vhost-vsock", os.O_RDWR)
    vhost(CID + 1, fd).make().close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_file_of_another_vhost() -> None:
    fd = os.open("/dev/vhost-net", os.O_RDWR)
    with pytest.raises(ConfigError, match=f"vhostfd={fd}: not a file of /dev/vhost-vsock"):
        vhost(CID + 1, fd).make()


def test_a_ring_that_the_kernel_finds_broken() -> None:
    bench = VsockBench(vhost(CID + 1).make())
    for _ in range(3):
        bench.start()
        bench.drivers[TX].ring.avail_idx = 500
        bench.set(r.QUEUE_NOTIFY, TX)
        assert select.select([bench.broken_fd], [], [], BENCH_SECONDS)[0]
        os.eventfd_read(bench.broken_fd)
        bench.transport.report()
        assert bench.log.pop() == (
            "vsock v: vhost-vsock found a ring whose rules are broken; it needs a reset"
        )
        bench.set(r.STATUS, 0)
    bench.close()


def test_another_device_goes_on_where_the_kernel_stood() -> None:
    """A connection goes on with the same device; with another one the driver is told to end it."""
    bench = VsockBench(vhost(BENCH_CID).make())
    bench.start()
    for _ in range(2):
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            assert client.connect_ex((BENCH_CID, 99)) == errno.EINPROGRESS
            header = bench.hear()
            assert header[6] == REQUEST
            bench.state()
            bench.transport.resume()
            bench.say(RESPONSE, 99, header[2])
            assert select.select([], [client], [], BENCH_SECONDS)[1]
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert bench.hear()[6] in {_SHUTDOWN, RST}
        events = bench.drivers[EVENT]
        events.add(writable=[(BUFFERS + 0x10_0000, 8)])
        events.publish()
        bench.move_on(lambda: vhost(BENCH_CID).make())
        assert [length for _, length in events.collect()] == [4]
    bench.close()
