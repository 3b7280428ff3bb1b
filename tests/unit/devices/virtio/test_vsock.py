"""The socket device behind its transport; what its connections do is native/tests/vsock's."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio import vsock
from pyvirt.devices.virtio.fault import Fault
from pyvirt.devices.virtio.vsock import CONNECTIONS, VhostVsockConfig, Vsock, VsockConfig
from pyvirt.errors import PyvirtError
from pyvirt.native import lib

from ...refusal import refusal, unprivileged
from .vsock_bench import CID, REQUEST, RESPONSE, RST, RX, SECONDS, TX, VsockBench


def make(path: Path) -> Vsock:
    return VsockConfig("v", CID, str(path)).make()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[VsockBench]:
    bench = VsockBench(make(tmp_path / "v"))
    yield bench
    bench.close()


def test_what_the_driver_sees(bench: VsockBench) -> None:
    assert bench.get(r.DEVICE_ID) == 19
    assert struct.pack("<II", bench.get(0x100), bench.get(0x104)) == struct.pack("<Q", CID)
    bench.set(r.DEVICE_FEATURES_SEL, 0)
    # Stream sockets alone: no feature of its own.
    assert bench.get(r.DEVICE_FEATURES) & 0xFFFFFF == 0
    assert bench.device.queue_sizes == (256, 256, 16)


def test_a_connection_of_each_side(bench: VsockBench, tmp_path: Path) -> None:
    bench.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(str(tmp_path / "v"))
        client.sendall(b"CONNECT 99\n")
        header = bench.hear()
        assert header[:2] == (2, CID)
        assert header[3:7] == (99, 0, 1, REQUEST)
        bench.say(RESPONSE, 99, header[2])
        assert client.recv(100) == b"OK %d\n" % header[2]
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(SECONDS)
        server.bind(str(tmp_path / "v_7"))
        server.listen()
        bench.say(REQUEST, 1234, 7)
        server.accept()[0].close()
    assert (bench.stat("of_host"), bench.stat("of_guest")) == (1, 1)


def test_a_device_without_its_queues_does_not_run(bench: VsockBench) -> None:
    bench.negotiate(r.VERSION_1)
    bench.set_queue(RX)
    assert bench.set_status(r.DRIVER_OK) & r.NEEDS_RESET
    assert bench.log == [
        "vsock v: cannot start: the driver has not made both queues; it needs a reset"
    ]
    bench.set(r.STATUS, 0)
    # The event queue is not missed.
    assert not bench.start(queues=2) & r.NEEDS_RESET


def test_again_and_again(bench: VsockBench) -> None:
    for _ in range(50):
        bench.start()
        bench.say(REQUEST, 1, 2)
        assert bench.hear()[6] == RST
        bench.set(r.STATUS, 0)
    assert bench.stat("refused") == bench.stat("resets") == 50


def test_a_broken_ring_needs_a_reset(bench: VsockBench) -> None:
    bench.start()
    bench.drivers[TX].ring.avail_idx = 500
    bench.set(r.QUEUE_NOTIFY, TX)
    assert select.select([bench.broken_fd], [], [], SECONDS)[0]
    bench.transport.report()
    assert bench.log == ["vsock v: avail idx is 500, 500 ahead in a queue of 32; it needs a reset"]
    bench.set(r.STATUS, 0)
    bench.start()
    bench.say(REQUEST, 1, 2)
    assert bench.hear()[6] == RST


def test_packets_that_a_fault_loses(bench: VsockBench) -> None:
    assert bench.device.operations() == ("rx", "tx", "interrupt")
    bench.start()
    bench.device.faults().add(Fault("drop", ["tx"], count=1))
    bench.device.faults().add(Fault("drop", ["rx"], count=1))
    for port in (1, 2, 3):
        bench.say(REQUEST, port, 9)
    # The first is lost on its way, the answer to the second on its own.
    assert bench.hear()[3] == 3


def test_the_socket_goes_with_the_device(tmp_path: Path) -> None:
    bench = VsockBench(make(tmp_path / "v"))
    assert (tmp_path / "v").stat().st_mode & 0o777 == 0o600
    bench.close()
    assert list(tmp_path.iterdir()) == []


MEND = "name another path, in a folder that can be written"


@pytest.mark.parametrize(
    ("name", "number"),
    [("none/v", errno.ENOENT), ("file", errno.EADDRINUSE), ("file/v", errno.ENOTDIR)],
)
def test_a_path_that_cannot_be(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    message = f"-device vsock-device,uds={path}: {os.strerror(number)}; {MEND}"
    assert refusal(lambda: make(path)) == message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_path_that_another_has(tmp_path: Path) -> None:
    first = make(tmp_path / "v")
    assert refusal(lambda: make(tmp_path / "v")).endswith(f"v: Address already in use; {MEND}")
    first.close()
    make(tmp_path / "v").close()


def test_no_more_connections_than_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    infinite = resource.RLIM_INFINITY
    for given, raised, connections in (
        ((1024, 1024), 1024, 768),
        ((1024, 4000), 4000, 3744),
        ((1024, 1 << 20), CONNECTIONS + 256, CONNECTIONS),
        ((1024, infinite), CONNECTIONS + 256, CONNECTIONS),
        ((infinite, infinite), 0, CONNECTIONS),
        ((100, 100), 100, 1),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, given=given: given)
        assert vsock._connections() == connections
        assert (limits.pop()[0] if limits else 0) == raised


def test_a_failure_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> int:
        return -errno.EMFILE

    class Lib:
        def __getattr__(self, name: str) -> Any:
            return fail if name == "pv_vsock_new" else getattr(lib, name)

    monkeypatch.setattr(vsock, "lib", Lib())
    with pytest.raises(PyvirtError, match="vsock v: Too many open files"):
        make(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []


def vhost(fd: int = -1) -> VhostVsockConfig:
    return VhostVsockConfig("v", 3, fd, driver="vhost-vsock-device")


def test_a_host_without_vhost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vsock, "VHOST_DEVICE", str(tmp_path / "none"))
    assert refusal(vhost().make) == (
        f"-device vhost-vsock-device: {tmp_path}/none: No such file or directory; run: sudo "
        "modprobe vhost_vsock; or take the device that needs no module: "
        "vsock-device,guest-cid=3,uds=PATH"
    )
    monkeypatch.setattr(vsock, "VHOST_DEVICE", "/etc/passwd")
    with unprivileged():
        assert refusal(vhost().make).startswith(
            "-device vhost-vsock-device: /etc/passwd: Permission denied; run as root, or allow it: "
            "sudo chmod a+rw /etc/passwd; or take the device that needs no module: "
        )


def test_a_file_that_is_no_vhost(tmp_path: Path) -> None:
    message = (
        "-device vhost-vsock-device,vhostfd={}: not a file of /dev/vhost-vsock; "
        "give the number of an open one"
    )
    with (tmp_path / "file").open("w") as file:
        fd = file.fileno()
        assert refusal(vhost(fd).make) == message.format(fd)
    assert refusal(vhost(fd).make) == message.format(fd)
