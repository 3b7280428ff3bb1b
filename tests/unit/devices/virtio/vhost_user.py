"""A device of a back end, for what must hold for all devices."""

from __future__ import annotations

import contextlib
import tempfile
from contextlib import ExitStack
from pathlib import Path

from pyvirt.devices.vhost_user import protocol as p
from pyvirt.devices.vhost_user.block import BlockConfig
from pyvirt.devices.vhost_user.net import NetConfig
from pyvirt.devices.vhost_user.socket import SocketBackEnd
from pyvirt.devices.virtio.device import Device
from pyvirt.devices.virtio.queue import DriverError

from ..vhost_user.back_end import BackEnd

PAIRS = 2
CONTROL = 2 * PAIRS  # the queue that is the monitor's
_MAC = bytes.fromhex("525400000002")


class _Careful(BackEnd):
    """One that leaves a ring alone when a driver has broken its rules."""

    def _serve(self, index: int) -> None:
        with contextlib.suppress(DriverError):  # and so says each later look at it
            super()._serve(index)


def disk(stack: ExitStack) -> Device:
    """Return a disk; its back end echoes what is in each queue."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    back_end = _Careful(Path(folder, "s"), protocol=p.MQ | p.REPLY_ACK | p.CONFIG)
    stack.callback(back_end.die)
    return BlockConfig("u", SocketBackEnd("-chardev id=c", f"{folder}/s"), queues=2).make()


def nic(stack: ExitStack) -> Device:
    """Return a NIC; its back end echoes what is in each queue."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    back_end = _Careful(Path(folder, "s"), protocol=p.MQ | p.REPLY_ACK)
    stack.callback(back_end.die)
    where = SocketBackEnd("-chardev id=c", f"{folder}/s")
    return NetConfig("u", where, _MAC, pairs=PAIRS).make()
