"""NICs and a disk on one thread of the host, under Linux's own drivers."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

from pyvirt.devices.iothread import IoThread
from pyvirt.devices.nic import NicConfig
from pyvirt.devices.tap import TapConfig
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.harness.guest import kernel
from pyvirt.qmp.listener import UNIX, ListenerConfig
from pyvirt.qmp.machine import MachineHost
from pyvirt.qmp.server import Server
from pyvirt.vmm.log import Log

from .live import live
from .network import interface
from .test_hotplug import MIB, folder
from .test_qmp import Operator
from .test_qmp_net import DONE, carriers, ping, taps, wait_for_carriers

__all__ = ["folder", "taps"]  # fixtures

ADD = '{"execute":"netdev_add","arguments":{"type":"tap","id":"second","ifname":"tap1"}}'
PLUG = (
    '{"execute":"device_add","arguments":{"id":"second","driver":"virtio-net-mmio",'
    '"iothread":"io0"}}'
)
UNPLUG = '{"execute":"device_del","arguments":{"id":"second"}}'
DISK = "dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null"


def tasks() -> set[str]:
    """Return the names of this process's threads."""

    def names() -> Iterator[str]:
        for task in Path("/proc/self/task").iterdir():
            try:
                yield (task / "comm").read_text(encoding="utf-8").strip()
            except OSError:
                continue

    return set(names())


def test_two_nics_and_a_disk_on_one_thread(micro: kernel.Kernel, folder: Path) -> None:
    thread = IoThread("io0")
    image = folder / "disk"
    image.write_bytes(random.Random(1).randbytes(8 * MIB))
    disk = BlockConfig("disk", str(image), iothread=thread)
    nic = NicConfig("first", TapConfig("tap0"), iothread=thread)
    with live(micro, folder, hotplug=True, disks=(disk,), nics=(nic,)) as guest:
        host = MachineHost(guest.machine, iothreads=(thread,))
        path = str(folder / "qmp.sock")
        server = Server(host, [ListenerConfig("-qmp", UNIX, path=path)], Log())
        server.start()
        operator = Operator(path)
        guest.run(interface("eth0", "10.0.0.2/24").replace("\n", "; ") + "true")
        guest.run(interface("eth1", "10.0.1.2/24").replace("\n", "; ") + "true")
        assert carriers(guest) == [1, 0]
        for _ in range(2):
            assert operator.says(ADD) == DONE
            assert operator.says(PLUG) == DONE
            wait_for_carriers(guest, [1, 1])
            guest.run(f"(while :; do {DISK}; done) & echo $! >/reader")
            for number in (0, 1):
                ping(guest, number)
            guest.run("kill $(cat /reader)")
            answer = json.loads(operator.says('{"execute":"query-iothreads"}'))
            assert [(one["id"], one["thread-id"]) for one in answer["return"]] == [
                ("io0", thread.thread_id)
            ]
            assert Path(f"/proc/self/task/{thread.thread_id}").exists()
            assert not any(name.startswith(("net first", "net second")) for name in tasks())
            assert '"DEVICE_DELETED"' in operator.says(UNPLUG)
            assert operator.line() == DONE
            wait_for_carriers(guest, [1, 0])
            ping(guest)
        assert guest.log.read_text() == ""
        operator.close()
        server.close()
        guest.machine.close()
        host.close()
    assert thread.thread_id == 0
    assert os.path.getsize(image) == 8 * MIB
