"""Links between VMs: the switch, and what runs it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.errors import BackendError
from pyvirt.harness.vm import config, fork_server, link
from pyvirt.harness.vm.fork_server import ForkServer
from pyvirt.harness.vm.switch import Switch

SECONDS = 30.0


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


made: list[Vm] = []


@pytest.fixture(autouse=True)
def vms_end() -> Iterator[None]:
    yield
    while made:
        made.pop().socket.close()


class Vm:
    """What a stream netdev does."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(SECONDS)
        self.socket.connect(path)
        made.append(self)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the switch has closed it"
            data += piece
        return data

    def receive(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4), "big"))

    def is_closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # with something unread in it
            return True


def meet(*vms: Vm) -> None:
    """Wait until the switch knows all of them, which it takes up in its own time."""
    for vm in vms:
        for other in vms:
            if other is not vm:
                other.socket.settimeout(0.05)
                while True:
                    vm.send(frame(b"hello"))
                    try:
                        other.receive()
                        break
                    except TimeoutError:
                        continue
    for vm in vms:
        drain(vm)
        vm.socket.settimeout(SECONDS)


def drain(vm: Vm) -> None:
    vm.socket.settimeout(0.2)
    try:
        while vm.receive():
            pass
    except TimeoutError:
        return


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def path(server: ForkServer, tmp_path: Path) -> Iterator[str]:
    place = str(tmp_path / "switch")
    switch = fork_server.Switch(server.path, place)
    yield place
    switch.close()


def test_a_frame_reaches_all_others(path: str) -> None:
    one, two, three = (Vm(path) for _ in range(3))
    meet(one, two, three)
    data = frame(b"x" * 1514)
    one.send(data[:3])
    one.send(data[3:700])
    one.send(data[700:] + frame(b"second"))
    for other in (two, three):
        assert [other.receive(), other.receive()] == [b"x" * 1514, b"second"]
    two.send(frame(b"back"))
    assert one.receive() == three.receive() == b"back"


def test_one_goes_and_another_comes(path: str) -> None:
    one, two = Vm(path), Vm(path)
    meet(one, two)
    two.socket.close()
    three = Vm(path)
    meet(one, three)
    one.send(frame(b"on"))
    assert three.receive() == b"on"


@pytest.mark.parametrize("data", [bytes(4), b"\xff" * 4, b"GET / HTTP/1.1\r\n"])
def test_what_sends_no_frames_is_cut_off(path: str, data: bytes) -> None:
    one, two, bad = Vm(path), Vm(path), Vm(path)
    meet(one, two, bad)
    bad.send(data)
    assert bad.is_closed()
    one.send(frame(b"on"))
    assert two.receive() == b"on"


def test_one_that_does_not_read_holds_up_nobody() -> None:
    """What is kept for it is limited, and the rest lost."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an abstract name of the kernel's choice
        listener.listen()
        switch = Switch(listener)
        one, two, _ = (Vm(listener.getsockname()) for _ in range(3))
        for vm in (one, two):
            vm.socket.setblocking(False)
        data, got = memoryview(frame(b"x" * 65536) * 64), 0
        at = 0
        while got < len(data):
            if at < len(data):
                with contextlib.suppress(BlockingIOError):
                    at += one.socket.send(data[at:])
            switch.turn(0)
            with contextlib.suppress(BlockingIOError):
                got += len(two.socket.recv(1 << 20))
        kept = [len(port.to_send) for port in switch._ports]
        assert 1 << 20 < max(kept) <= (1 << 20) + (1 << 18) + 65540
        for port in switch._ports:
            port.socket.close()


def test_it_ends_with_its_owner(server: ForkServer, tmp_path: Path) -> None:
    place = tmp_path / "switch"
    switch = fork_server.Switch(server.path, str(place))
    one = Vm(str(place))
    with pytest.raises(BackendError, match=r"a link between VMs: .*switch: Address already in use"):
        fork_server.Switch(server.path, str(place))
    switch.close()
    assert one.is_closed()
    again = None
    for _ in range(1000):  # the path is free in a moment
        try:
            again = fork_server.Switch(server.path, str(place))
            break
        except BackendError:
            continue
    assert again is not None
    again.close()


def test_vms_of_one_link_have_one_socket(server: ForkServer) -> None:
    links = link.Links()

    def words(*nets: str) -> list[str]:
        found = config.words(config.VmConfig(nets=nets), Path("k"), Path("i"), link=links.path)
        return found[9:]

    one = words("link:a,mac=52:54:00:12:34:56", "tap0", "link:b")
    path, other = links.path("a"), links.path("b")
    assert path != other
    assert one == [
        *("-netdev", f"stream,id=link0,path={path},mac=52:54:00:12:34:56"),
        *("-net", "tap0"),
        *("-netdev", f"stream,id=link2,path={other}"),
    ]
    assert words("link:a") == ["-netdev", f"stream,id=link0,path={path}"]
    links.start(["link:a", "tap0"], server.path)
    links.start(["link:a,mac=52:54:00:12:34:56"], server.path)
    vm = Vm(path)
    links.close()
    assert vm.is_closed()
