"""Every virtio device there is, for what must hold for all of them: a new one joins by a line."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from pyvirt.devices import nic
from pyvirt.devices.chardev import RINGBUF, ChardevConfig
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

_MAC = bytes.fromhex("525400000001")


class Subject(NamedTuple):
    """A device under test.

    `make` returns one, and leaves in the stack what is the host's part in it. `served` are the
    queues that it looks at when it is kicked, whatever came before: it must find what is wrong
    with their rings, and complete what is right, but for those that it `keeps` buffers of. Of the
    others it need only survive what is wrong. It needs memory that is `shared`, or not.
    """

    make: Callable[[ExitStack], Device]
    served: tuple[int, ...] = (0,)
    keeps: tuple[int, ...] = ()
    shared: bool = False


class _Echo(PythonDevice):
    device_id = 42
    queue_sizes = (16, 64)
    features = 1 << 3
    config_space = b"0123456789"

    def handle(self, _queue: int, request: Request) -> int:
        return request.write(request.read())


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
    "block": Subject(_block),
    "block of 3 queues": Subject(lambda stack: _block(stack, queues=3), (0, 1, 2)),
    "empty disk slot": Subject(lambda _: Block(None, 0)),
    "net": Subject(
        lambda stack: Net(NetConfig("n", _MAC), Stream(_socket(stack), "s")), (1, 2), keeps=(1,)
    ),
    "empty NIC slot": Subject(lambda _: nic.empty(0, "m"), (1, 2)),
    "console": Subject(_console, (1, 3, 5, 7)),
    "console alone": Subject(lambda stack: _consoles(stack, 1), (1,)),
    "consoles": Subject(lambda stack: _consoles(stack, 2), (1, 3, 5)),
    "rng": Subject(lambda _: RngConfig("r", "s", "/dev/urandom").make()),
    "rng with a limit": Subject(lambda _: RngConfig("r", "s", "/dev/urandom", 1_000_000).make()),
    "balloon": Subject(
        lambda _: BalloonConfig("b", free_page_reporting=True, deflate_on_oom=True).make(),
        (0, 1, 2, 4),
        keeps=(2,),
    ),
    "vsock": Subject(_vsock, (1,)),
    "python": Subject(_python, (0, 1)),
    "vhost-user NIC": Subject(vhost_user.nic, (vhost_user.CONTROL,), shared=True),
}
