"""Every virtio device there is, for what must hold for all of them: a new one joins by a line."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import NamedTuple

from pyvirt.devices import nic
from pyvirt.devices.chardev import RINGBUF, ChardevConfig
from pyvirt.devices.iothread import IoThread
from pyvirt.devices.stream import Stream
from pyvirt.devices.virtio.balloon import BalloonConfig
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.console import ConsoleConfig, PortConfig
from pyvirt.devices.virtio.device import Device
from pyvirt.devices.virtio.net import Net, NetConfig
from pyvirt.devices.virtio.python import PythonDevice, Request
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.devices.virtio.vsock import VsockConfig

from . import vhost_user

Chain = tuple[bytes, int]  # what it says, and the room behind that

_MAC = bytes.fromhex("525400000001")
_SHARED = IoThread("io")


# A block request that reads a sector, with the room for that and the status.
_READ = struct.pack("<IIQ", 0, 0, 0), 513
# Headers of 12 bytes, and what a NIC receives; promiscuous mode on.
_FRAME, _ROOM, _PROMISCUOUS = (bytes(12 + 60), 0), (b"", 2048), (b"\0\0\1", 1)
_NIC = {0: _ROOM, 1: _FRAME, 2: _PROMISCUOUS}
# A page to be put into the balloon, or out of it; a statistic; room that is free.
_PAGE, _STATISTIC, _FREE = (struct.pack("<I", 0x500), 0), (bytes(10), 0), (b"", 4096)
# A port's input and output; that there is a driver.
_INPUT, _OUTPUT, _READY = (b"", 64), (b"hello", 0), (struct.pack("<IHH", 0, 0, 1), 0)
_PORTS = {0: _INPUT, 1: _OUTPUT, 2: _INPUT, 3: _READY, 4: _INPUT, 5: _OUTPUT, 6: _INPUT, 7: _OUTPUT}
# The end of a connection that there is not: the device says nothing to that.
_RST = struct.pack("<QQIIIHHIII", 3, 2, 1, 1, 0, 1, 3, 0, 0, 0), 0


class Subject(NamedTuple):
    """A device under test.

    `make` returns one, and leaves in the stack what is the host's part in it. `served` are the
    queues that it looks at when it is kicked, whatever came before: it must find what is wrong
    with their rings, and complete what is right, but for those that it `keeps` buffers of. Of the
    others it need only survive what is wrong. It needs memory that is `shared`, or not. `traffic`
    has for each queue what a chain says that it takes without complaint, and the room in it. Those
    of the queues that it `completes` come back: None are all that are `served` and not kept.
    """

    make: Callable[[ExitStack], Device]
    served: tuple[int, ...] = (0,)
    keeps: tuple[int, ...] = ()
    traffic: Mapping[int, Chain] = MappingProxyType({0: (b"", 64)})
    shared: bool = False
    completes: tuple[int, ...] | None = None


class _Echo(PythonDevice):
    device_id = 42
    queue_sizes = (16, 64)
    features = 1 << 3
    config_space = b"0123456789"

    handled = 0

    def handle(self, _queue: int, request: Request) -> int:
        self.handled += 1
        return request.write(request.read())

    def save_state(self) -> object:
        return {"handled": self.handled}

    def restore_state(self, state: object) -> None:
        assert isinstance(state, dict)
        assert isinstance(state["handled"], int)
        self.handled = state["handled"]


def _python(_: ExitStack) -> Device:
    device = _Echo()
    device.prepare("echo")
    return device


def _socket(stack: ExitStack) -> int:
    """Return an end of a connection whose other end says nothing and takes nothing."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    return theirs.detach()


def _deaf_socket(stack: ExitStack) -> int:
    """Return one whose other end will never take anything: what is sent is lost."""
    ours, theirs = socket.socketpair()
    stack.enter_context(ours).shutdown(socket.SHUT_RD)
    return theirs.detach()


def _block(stack: ExitStack, queues: int = 1) -> Device:
    fd = os.memfd_create("disk")
    stack.callback(os.close, fd)
    os.truncate(fd, 1 << 20)
    # Its locks are this process's own.
    path = f"/proc/{os.getpid()}/fd/{fd}"
    return Block(BlockConfig("d", path, direct=False, unmap=True, raw=True, queues=queues), 0)


def _console(stack: ExitStack) -> Device:
    ports = tuple(PortConfig(n, ChardevConfig(f"c{n}", fd=_deaf_socket(stack))) for n in (1, 2))
    return ConsoleConfig("s", ports, 4).make()


def _consoles(_: ExitStack, count: int) -> Device:
    chardevs = [ChardevConfig(f"c{n}", RINGBUF) for n in range(count)]
    ports = [PortConfig(n, one, is_console=True) for n, one in enumerate(chardevs)]
    return ConsoleConfig("s", tuple(ports), count).make()


def _vsock(stack: ExitStack) -> Device:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return VsockConfig("v", 3, f"{folder}/v").make()


EVERY = {
    "block": Subject(_block, traffic={0: _READ}),
    "block of 3 queues": Subject(
        lambda stack: _block(stack, queues=3), (0, 1, 2), traffic=dict.fromkeys(range(3), _READ)
    ),
    "empty disk slot": Subject(lambda _: Block(None, 0), traffic={0: _READ}),
    "net": Subject(
        lambda stack: Net(NetConfig("n", _MAC), Stream(_socket(stack), "s")),
        (1, 2),
        keeps=(1,),
        traffic=_NIC,
    ),
    "net on a shared thread": Subject(
        lambda stack: Net(NetConfig("n", _MAC, iothread=_SHARED), Stream(_socket(stack), "s")),
        (1, 2),
        keeps=(1,),
        traffic=_NIC,
    ),
    "empty NIC slot": Subject(lambda _: nic.empty(0, "m"), (1, 2), traffic=_NIC),
    "console": Subject(_console, (1, 3, 5, 7), traffic=_PORTS),
    "console alone": Subject(lambda stack: _consoles(stack, 1), (1,), traffic=_PORTS),
    "consoles": Subject(lambda stack: _consoles(stack, 2), (1, 3, 5), traffic=_PORTS),
    "rng": Subject(lambda _: RngConfig("r", "s", "/dev/urandom").make()),
    "rng with a limit": Subject(lambda _: RngConfig("r", "s", "/dev/urandom", 1_000_000).make()),
    "balloon": Subject(
        lambda _: BalloonConfig("b", free_page_reporting=True, deflate_on_oom=True).make(),
        (0, 1, 2, 4),
        keeps=(2,),
        traffic={0: _PAGE, 1: _PAGE, 2: _STATISTIC, 4: _FREE},
    ),
    "vsock": Subject(_vsock, (1,), traffic={0: _ROOM, 1: _RST, 2: _INPUT}),
    "python": Subject(_python, (0, 1), traffic={0: (b"abc", 3), 1: (b"", 5)}),
    "vhost-user disk": Subject(
        vhost_user.disk,
        (),
        traffic=dict.fromkeys(range(2), (b"abc", 3)),
        shared=True,
        completes=(0, 1),
    ),
    "vhost-user NIC": Subject(
        vhost_user.nic,
        (vhost_user.CONTROL,),
        traffic={
            **dict.fromkeys(range(vhost_user.CONTROL), _ROOM),
            vhost_user.CONTROL: _PROMISCUOUS,
        },
        shared=True,
        completes=tuple(range(vhost_user.CONTROL + 1)),
    ),
}
