"""A process with a thread of the kind that its first argument names, which is found and signalled.

Each is at work for a device; the report on crashes goes to stderr. Ended by its stdin. With another
argument it is in a sandbox.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from pyvirt.devices.iothread import IoThread
from pyvirt.devices.virtio.balloon import BalloonConfig
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.console import Console, ConsoleConfig
from pyvirt.devices.virtio.net import Net, NetConfig
from pyvirt.devices.virtio.python import PythonDevice
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.native import check, lib
from pyvirt.vmm import sandbox
from pyvirt.vmm.memory import MIB, GuestMemory

from ..devices.virtio.bench import RUNNING, DeviceBench
from ..devices.virtio.nic_bench import SocketBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirt.devices.virtio.device import Device


def _disk(**options: Any) -> Block:
    folder = tempfile.mkdtemp()
    path = f"{folder}/disk.img"
    with open(path, "wb") as file:
        file.truncate(MIB)
    return Block(BlockConfig("root", path, direct=False, **options))


def _python() -> PythonDevice:
    device: PythonDevice = type("Mine", (PythonDevice,), {"device_id": 42})()
    device.prepare("mine0")
    return device


KINDS: dict[str, Callable[[], Device]] = {
    "uring": lambda: _disk(engine="io_uring"),
    "threads": lambda: _disk(engine="threads"),
    "iothread": lambda: _disk(iothread=IoThread("io0")),
    "vacant": lambda: Block(None, 3),
    "net": lambda: Net(NetConfig("net0", bytes(6)), SocketBackend()),
    "ports": lambda: Console(ConsoleConfig("console0", (), 1)),
    "rng": lambda: RngConfig("rng0", "src", "/dev/urandom").make(),
    "balloon": lambda: BalloonConfig("balloon0").make(),
    "python": _python,
}


def main() -> None:
    """Start the thread, say so on stdout, and wait."""
    lib.pv_crash_thread(b"main")
    check(lib.pv_crash_report(2), "crash report")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.argv[2:]:
        sandbox.arm("on")
    memory = GuestMemory(128 * MIB)
    bench = DeviceBench(memory, KINDS[sys.argv[1]]())
    lib.pv_virtio_irq_set_name(bench.transport._irq, b"dev0")
    assert bench.run() == RUNNING
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    os.read(0, 1)


if __name__ == "__main__":
    main()
