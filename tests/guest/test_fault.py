"""What Linux's own drivers make of faults, and of a device that is thirty lines of Python."""

from __future__ import annotations

import random
import re
import select
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyvirt.harness.guest.kernel import Kernel
from pyvirt.harness.vm.faults import Faults
from pyvirt.qmp.client import Client
from pyvirt.qmp.listener import UNIX, ListenerConfig
from pyvirt.qmp.machine import MachineHost
from pyvirt.qmp.server import Server
from pyvirt.vmm.log import Log

from .conftest import Boot
from .live import Live, live
from .test_hotplug import MIB, make, wait_for_sizes

READ = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct"
EXAMPLE = Path(__file__).resolve().parents[2] / "docs/python-devices.md"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def guest(micro: Kernel, folder: Path) -> Iterator[Live]:
    """A guest with a disk, of whose faults nothing is left after a test."""
    disks = (make(folder / "own", 16, random.Random(1).randbytes(MIB)),)
    with live(micro, folder, hotplug=True, disks=disks) as guest:
        yield guest


@pytest.fixture(scope="module")
def client(guest: Live, folder: Path) -> Iterator[Client]:
    path = str(folder / "qmp.sock")
    host = MachineHost(guest.machine)
    config = ListenerConfig("-qmp", UNIX, path=path, throttled=False)
    server = Server(host, [config], Log())
    host.tell(server.emit)
    server.start()
    client = Client(path, lambda _: None)
    yield client
    client.close()
    server.close()


@pytest.fixture
def faults(guest: Live, client: Client) -> Iterator[Faults]:
    guest.machine.report()
    guest.events.clear()
    faults = Faults(client)
    yield faults
    faults.clear()


def refused(guest: Live, command: str) -> str:
    """Return what a command says that ends with another status than 0."""
    guest.begin(f"{command} 2>&1")
    output, status = guest.finish()
    assert status != 0
    return output


def test_a_read_that_fails(guest: Live, faults: Faults) -> None:
    with faults.block("vda").fail("read", errno="EIO", after=1, count=1) as disk:
        guest.run(READ)
        assert "Input/output error" in refused(guest, READ)
        assert disk.hits == 1
        guest.run(READ)
    assert "I/O error, dev vda, sector 0 op 0x0:(READ)" in guest.run("dmesg | tail -n 5")


def test_a_range_of_sectors_that_is_bad(guest: Live, faults: Faults) -> None:
    with faults.block("vda").fail("read", sectors=(80, 87)):
        guest.run(f"{READ} skip=9")
        assert "Input/output error" in refused(guest, f"{READ} skip=10")
        guest.run(f"{READ} skip=11")


def test_a_full_disk_behind_the_guests(guest: Live, faults: Faults) -> None:
    write = "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct"
    told: list[dict[str, object]] = []
    until = time.monotonic() + 10
    with faults.block().fail("write", errno="ENOSPC"):
        # Of a second's failures the first is told, which may be a read's of the test before.
        while not told:
            assert time.monotonic() < until, guest.events
            assert "Input/output error" in refused(guest, write)
            guest.machine.report()
            told += [data for _, data in guest.events if data["operation"] == "write"]
    assert [(name, data["nospace"]) for name, data in guest.events if data in told] == [
        ("BLOCK_IO_ERROR", True)
    ]
    guest.run(write)


def test_a_slow_flush_takes_its_time(guest: Live, faults: Faults) -> None:
    flush = "dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync 2>/dev/null"
    guest.run(flush)
    with faults.block("vda").delay("500ms", ops="flush") as disk:
        start = time.monotonic()
        guest.begin(flush)
        # Whatever else the disk does goes on.
        guest.finish()
        assert time.monotonic() - start >= 0.5
        assert disk.hits >= 1


def test_a_wrong_byte(guest: Live, faults: Faults) -> None:
    words = "dd if=/dev/vda bs=4k count=1 iflag=direct 2>/dev/null | md5sum"
    right = guest.run(words)
    with faults.block("vda").corrupt(4095):
        assert guest.run(words) != right
    assert guest.run(words) == right


def background(guest: Live) -> None:
    """Begin a read beside the shell; /tmp/done is there when it is complete."""
    guest.run(f"rm -f /tmp/done; ({READ} 2>/dev/null && echo >/tmp/done) & :")


def is_done(guest: Live) -> bool:
    return guest.run("[ ! -e /tmp/done ] || echo done") == "done"


def wait_for_hit(disk: object) -> None:
    until = time.monotonic() + 10
    while disk.hits == 0:  # type: ignore[attr-defined]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_lost_request(guest: Live, faults: Faults) -> None:
    with faults.block("vda").drop("read", count=1) as disk:
        background(guest)
        wait_for_hit(disk)
        guest.run(f"{READ} skip=1")
        assert not is_done(guest)
    guest.run("until [ -e /tmp/done ]; do sleep 0.1; done")


@pytest.mark.parametrize("way", ["clear", "configuration"])
def test_a_lost_interrupt(guest: Live, faults: Faults, way: str) -> None:
    disk = faults.block("vda").interrupts.drop(1)
    background(guest)
    wait_for_hit(disk)
    guest.run("sleep 0.5")
    assert not is_done(guest)
    if way == "clear":
        disk.clear()
    else:
        faults.block("vda").resize("32M")
    guest.run("until [ -e /tmp/done ]; do sleep 0.1; done")


def interrupts(guest: Live) -> int:
    found = re.search(r"^ *\d+: +(\d+) .*virtio0$", guest.run("cat /proc/interrupts"), re.MULTILINE)
    assert found
    return int(found[1])


def test_doubled_interrupts_do_no_harm(guest: Live, faults: Faults) -> None:
    with faults.block("vda").interrupts.double() as disk:
        before = interrupts(guest)
        for _ in range(5):
            guest.run(READ)
            assert select.select([guest.machine.notices_fd], [], [], 10)[0]
            guest.machine.report()
        assert disk.hits == 5
        assert interrupts(guest) >= before + 10


def test_a_disk_grows_and_shrinks(guest: Live, faults: Faults) -> None:
    for mib in (64, 4, 16):
        faults.block("vda").resize(f"{mib}M")
        wait_for_sizes(guest, [mib * MIB // 512, 0, 0, 0, 0, 0])
        assert re.search(rf" {mib * 1024} vda$", guest.run("cat /proc/partitions"), re.MULTILINE)
        guest.run(f"{READ} skip={mib * 256 - 1}")


def test_a_device_that_needs_a_reset(guest: Live, faults: Faults) -> None:
    faults.block("vda").break_device()
    assert select.select([guest.machine.notices_fd], [], [], 10)[0]
    guest.machine.report()
    assert re.search(r"DEVICE_NEEDS_RESET; it needs a reset$", guest.log.read_text(), re.MULTILINE)
    # Linux's driver takes no notice, until it begins anew.
    driver = "/sys/bus/virtio/drivers/virtio_blk"
    guest.run(f"echo virtio0 >{driver}/unbind; echo virtio0 >{driver}/bind")
    guest.run(READ)


def test_an_entropy_device_in_python(boot: Boot, shm: Path) -> None:
    """The page's example, under the driver that every kernel has."""
    found = re.search(r"```python\n(.*?)```", EXAMPLE.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    file = shm / "entropy.py"
    file.write_text(found[1])
    script = (
        "echo current: $(cat /sys/class/misc/hw_random/rng_current); "
        "for i in 1 2; do echo sum: $(head -c 1000 /dev/hwrng | md5sum); done; "
        "echo bytes: $(head -c 1000 /dev/hwrng | wc -c)"
    )
    ended = boot(script, "-device", f"python,file={file},most=64")
    assert (ended.status, ended.messages) == (0, "")
    assert "current: virtio_rng" in ended.console
    assert "bytes: 1000\n" in ended.console
    first, second = re.findall(r"^sum: ([0-9a-f]{32}) ", ended.console, re.MULTILINE)
    assert first != second
