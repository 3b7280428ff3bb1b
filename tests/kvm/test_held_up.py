"""What a guest does to hold a machine up, and storage that hangs: the rest goes on."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio import turn
from pyvirt.devices.virtio.block import BlockConfig
from pyvirt.devices.virtio.queue import DESC, DESC_INDIRECT, DESC_NEXT, DESC_WRITE
from pyvirt.errors import BackendError, PyvirtError
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.execution import RUNNING
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.save import Saver

from ..unit.devices.virtio.bench import RUNNING as DRIVER_RUNS
from ..unit.devices.virtio.stuck import Stuck, stuck
from .support import MEMORY, PATIENCE, Guest
from .test_access import carry_out
from .test_run import wait_for
from .test_virtio_mmio import Access, driver, set_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Make = Callable[..., Guest]

pytestmark = pytest.mark.any_kvm
QUEUE_SIZE = 256
RINGS = 0x30_0000
TABLE, HEADER, DATA = 0x32_0000, 0x33_0000, 0x400_0000
IN = 0


def with_queue_of(size: int, accesses: list[Access]) -> list[Access]:
    register = set_(r.QUEUE_NUM, 0)[1]
    return [
        (name, address, size if address == register else value) for name, address, value in accesses
    ]


def offer_gigabytes(guest: Guest) -> None:
    """Have the rings offer 256 chains that share a table with 4 GiB of room, less a header."""
    assert guest.memory
    parts = [(HEADER, 16, DESC_NEXT)]
    parts += [(DATA, 32 << 20, DESC_NEXT | DESC_WRITE)] * 127 + [(DATA, 31 << 20, DESC_WRITE)]
    guest.memory.write(
        TABLE, b"".join(DESC.pack(*part, place + 1) for place, part in enumerate(parts))
    )
    table = DESC.pack(TABLE, len(parts) * DESC.size, DESC_INDIRECT, 0)
    guest.memory.write(RINGS, table * QUEUE_SIZE)
    heads = range(QUEUE_SIZE)
    guest.memory.write(RINGS + 0x1000, struct.pack(f"<HH{QUEUE_SIZE}H", 0, QUEUE_SIZE, *heads))


def test_gigabytes_of_room_on_an_empty_slot(make: Make) -> None:
    """A device answers without filling it, and heeds a reset between two answers."""
    guest = make("script")
    offer_gigabytes(guest)
    features = r.VERSION_1 | r.INDIRECT_DESC
    carry_out(
        guest,
        *with_queue_of(QUEUE_SIZE, driver(features, rings=RINGS)),
        set_(r.QUEUE_NOTIFY, 0),
        # Another one that breaks meanwhile, and of which the monitor is to tell.
        *driver(features, slot=1, rings=0x7F_FFFF_0000),
        set_(r.STATUS, 0),
    )
    assert guest.slots
    assert guest.slots.transports[0].status == 0
    guest.report()
    assert "disk slot 1: " in guest.log_text()


def with_disk(make: Make, path: Path) -> Guest:
    """Return a guest that counts; the driver of its disk is the test."""
    path.touch()
    os.truncate(path, 1 << 20)
    guest = make("spin", disks=(BlockConfig("d", str(path)),))
    guest.start()
    assert guest.slots
    transport = guest.slots.transports[0]
    for _, address, value in driver(rings=RINGS):
        transport.write(address & (r.PAGE_SIZE - 1), 4, value)
    assert transport.status == DRIVER_RUNS
    return guest


def read_something(guest: Guest) -> None:
    assert guest.memory
    assert guest.slots
    parts = [(HEADER, 16, DESC_NEXT, 1), (DATA, 512, DESC_NEXT | DESC_WRITE, 2)]
    parts += [(HEADER + 16, 1, DESC_WRITE, 0)]
    guest.memory.write(RINGS, b"".join(DESC.pack(*part) for part in parts))
    guest.memory.write(HEADER, struct.pack("<IIQ", IN, 0, 0))
    guest.memory.write(RINGS + 0x1000, struct.pack("<HHH", 0, 1, 0))
    guest.slots.transports[0].kick()


@contextmanager
def hanging(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    """Have the host be at a request of the guest's, and a drain give up soon."""
    monkeypatch.setattr(turn, "LIMIT_S", 0.2)
    assert guest.memory
    with stuck(guest.memory, DATA) as page:
        read_something(guest)
        page.wait_for_somebody()
        yield page


def test_storage_that_hangs_refuses_a_reset_of_the_machine(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what it does in the end would be done to another guest's memory."""
    guest = with_disk(make, tmp_path / "disk")
    with hanging(guest, monkeypatch) as page:
        with pytest.raises(BackendError, match="disk d: the host has not completed its requests"):
            guest.reset()
        assert guest.state == RUNNING
        monkeypatch.undo()
        page.release()
        guest.reset()
    assert guest.state == RUNNING
    guest.close()
    assert not guest.is_kept


def test_storage_that_hangs_refuses_a_snapshot(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest runs on, and its request is completed; then there can be one."""
    guest, folder = with_disk(make, tmp_path / "disk"), tmp_path / "snapshot"
    saver = Saver(guest, Log())
    with hanging(guest, monkeypatch) as page:
        with pytest.raises(BackendError, match="disk d: the host has not completed its requests"):
            saver.start(Folder(str(folder)))
        assert (guest.state, folder.exists()) == (RUNNING, False)
        monkeypatch.undo()
        page.release()
        saver.start(Folder(str(folder)))
        saver.wait()
    assert saver.status == "completed"
    # Its status byte is in the memory that was written.
    assert guest.read(HEADER + 16, 1) == b"\0"
    with open(folder / "memory", "rb") as file:
        file.seek(DATA)
        assert file.read(512) == guest.read(DATA, 512)
    guest.resume()


def end_with_storage_that_hangs(kernel: str, folder: str) -> None:
    """Close a machine whose disk hangs; in a process of its own, which keeps what that uses."""
    turn.LIMIT_S = 0.2

    def make(_: str, **words: Any) -> Guest:
        guest = Guest(MachineConfig(kernel, memory=MEMORY, **words), Path(folder) / "log")
        guest.load()
        return guest

    guest = with_disk(make, Path(folder) / "disk")
    memory = guest.memory
    assert memory
    with stuck(memory, DATA) as page:
        read_something(guest)
        page.wait_for_somebody()
        guest.close()
        assert guest.is_kept
        # It is mapped still: what the host does in the end harms nobody.
        page.release()
        assert memory.read(DATA, 1) == b"\0"
        end = guest.log_file.read_text(encoding="utf-8")
        assert "disk d: the host still has requests; the guest's memory stays" in end


def test_storage_that_hangs_lets_the_machine_end(
    kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    words = f"end_with_storage_that_hangs({str(kernel('spin'))!r}, {str(tmp_path)!r})"
    program = f"from tests.kvm.test_held_up import end_with_storage_that_hangs; {words}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_is_closed_while_its_devices_come_to_a_stand(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither waits for the other, and nothing of the snapshot stays."""
    guest, folder = make("spin"), tmp_path / "snapshot"
    guest.start()
    saver, slots = Saver(guest, Log()), guest.slots
    assert slots
    drains, may_go_on, drain = threading.Event(), threading.Event(), slots.drain

    def slow_drain() -> None:
        drains.set()
        may_go_on.wait(PATIENCE)
        drain()

    def save() -> None:
        with suppress(PyvirtError):
            saver.start(Folder(str(folder)))

    monkeypatch.setattr(slots, "drain", slow_drain)
    threads = [threading.Thread(target=do, daemon=True) for do in (save, guest.close)]
    threads[0].start()
    assert drains.wait(PATIENCE)
    threads[1].start()
    wait_for(lambda: guest.end is not None, "the end of the machine")
    time.sleep(0.1)  # it may well wait for the snapshot by then
    may_go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    saver.wait()
    assert saver.status in {"completed", "canceled", "failed", "none"}
    assert folder.exists() == (saver.status == "completed")
