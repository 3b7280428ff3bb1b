"""What has no snapshot and goes on from none, by which line; and the formats of before."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.devices.virtio.block import Block, BlockConfig
from pyvirt.devices.virtio.rng import RngConfig
from pyvirt.errors import BackendError, KvmError, PyvirtError, StateError
from pyvirt.vmm import kvm
from pyvirt.vmm.cpu_model import FEATURES, CpuModel
from pyvirt.vmm.execution import RUNNING
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot import clock, state_file
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.save import Saver

from ..unit.file_limit import file_limit
from .conftest import Make
from .support import MEMORY, PATIENCE, Guest
from .test_life import wait_until
from .test_snapshot import COUNT, KEPT, Restored, at_work, change, restored, save, saved

__all__ = ["restored"]  # a fixture

pytestmark = pytest.mark.any_kvm


def refused(restored: Restored, folder: Path, **words: Any) -> str:
    with pytest.raises(StateError) as info:
        restored.make("keep", folder, **words)
    message = str(info.value)
    assert message.startswith(f"-incoming file:{folder}: state: ")
    assert "\n" not in message
    return message


def test_other_machines_are_refused(machine: Make, restored: Restored, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    guest = saved(machine, folder)
    assert guest.end is None
    message = refused(restored, folder, devices=(RngConfig("rng0", "rng0", "/dev/urandom"),))
    assert "the guest had 0 virtio devices, and here are 1" in message
    leaf = next(entry for entry in guest.vcpus[0].cpuid if entry.function == 1)
    name = next(
        name for name, (function, _, register, bit) in FEATURES.items()
        if function == 1 and getattr(leaf, register) >> bit & 1 and name != "fpu"
    )  # fmt: skip
    message = refused(restored, folder, cpu=CpuModel(off=(name,)))
    assert f"the guest's processor has {name}, which this one lacks" in message
    other = "AuthenticAMD" if b"Intel" in leaf_vendor(guest) else "GenuineIntel"
    message = refused(restored, folder, cpu=CpuModel(vendor=other))
    assert f"and this one {other}" in message


def leaf_vendor(guest: Guest) -> bytes:
    entry = guest.vcpus[0].cpuid[0]
    words = (entry.ebx, entry.edx, entry.ecx)
    return b"".join(word.to_bytes(4, "little") for word in words)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda s: s["vcpus"].pop(), "vcpus: 0 of 1 are there"),
        (lambda s: s.pop("clock"), "clock: is missing"),
        (lambda s: s["parts"]["events"].clear(), "parts.events.pending: is missing"),
        (lambda s: s["parts"].update(more={}), "parts: this machine has no more"),
        (lambda s: s["vcpus"][0].update(lapic="00"), "vcpus.0.lapic: has 1 bytes, not 1024"),
        (lambda s: s.update(more=1), "more: is no field that this pyvirt knows"),
        (lambda s: s["clock"].update(tsc_khz=s["clock"]["tsc_khz"] * 2), "TSC runs at"),
        (lambda s: s["clock"]["tsc"].pop(), "clock.tsc: has 0 entries, and the machine 1 vCPUs"),
    ],
    ids=range(8),
)
def test_states_that_cannot_be(
    machine: Make,
    restored: Restored,
    tmp_path: Path,
    how: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    folder = tmp_path / "snapshot"
    saved(machine, folder)
    change(folder, how)
    assert message in refused(restored, folder)


def disk(path: Path, size: int = 1 << 20) -> tuple[BlockConfig, ...]:
    """Return a disk on an image of `size`, last written to at a time that is known."""
    path.touch()
    os.truncate(path, size)
    os.utime(path, ns=(0, 10**18))
    return (BlockConfig("d", str(path)),)


@pytest.fixture
def with_disk(make: Make, tmp_path: Path) -> Path:
    """Return the snapshot of a guest with a disk, whose image is beside it."""
    guest = make("spin", disks=disk(tmp_path / "disk"))
    guest.start()
    save(guest, tmp_path / "snapshot")
    guest.close()
    return tmp_path / "snapshot"


def test_a_disk_that_is_as_it_was(with_disk: Path, restored: Restored) -> None:
    disks = disk(with_disk.with_name("disk"))
    guest = restored.make("spin", with_disk, hotplug=True, disks=disks)
    assert guest.log_text() == ""


@pytest.mark.parametrize(("size", "moment"), [(1 << 20, 10**18 + 10**9), (2 << 20, 10**18)])
def test_a_disk_that_was_written_to_since_is_told(
    with_disk: Path, restored: Restored, size: int, moment: int
) -> None:
    image = with_disk.with_name("disk")
    disks = disk(image, size)
    os.utime(image, ns=(0, moment))
    guest = restored.make("spin", with_disk, hotplug=True, disks=disks)
    second = 41 if moment > 10**18 else 40
    assert guest.log_text().endswith(
        f"disk d: its image ({size} bytes, last written 2001-09-09 01:46:{second}.000 UTC) was "
        "written to since the snapshot (1048576 bytes, 2001-09-09 01:46:40.000 UTC), or is a copy; "
        "to the guest a file system there may be damaged\n"
    )


def test_other_disks_are_refused(with_disk: Path, restored: Restored) -> None:
    short, image = with_disk.with_name("short"), with_disk.with_name("disk")
    message = refused(restored, with_disk, hotplug=True, disks=disk(short, 512))
    assert "disk d had 1048576 bytes, and its image has 512; give the image that" in message
    message = refused(restored, with_disk, hotplug=True)
    assert "the guest had a disk in slot 0, which is empty here; give one there" in message
    message = refused(restored, with_disk, disks=disk(image))
    assert "the guest had 8 virtio devices, and here are 1; give the same ones" in message


@pytest.mark.parametrize(("register", "bit"), [("efer", 12), ("cr4", 13)])  # SVME, VMXE
def test_a_guest_that_runs_guests_is_refused(
    machine: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: str, bit: int
) -> None:
    """Its KVM says so here: not every processor could."""
    guest = at_work(machine)

    def read(fd: int, sregs: Any) -> None:
        monkeypatch.undo()
        kvm.GET_SREGS(fd, sregs)
        setattr(sregs, register, getattr(sregs, register) | 1 << bit)

    monkeypatch.setattr(kvm, "GET_SREGS", read)
    saver = Saver(guest, Log())
    with pytest.raises(PyvirtError, match="vCPU 0: its guest uses virtualization itself"):
        saver.start(Folder(str(tmp_path / "snapshot")))
    assert (guest.state, (tmp_path / "snapshot").exists()) == (RUNNING, False)
    save(guest, tmp_path / "snapshot")


def leaves(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, (*way, key))
    yield way


def test_no_state_does_more_than_be_refused(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshot"
    saved(machine, folder)
    body = (folder / "state").read_bytes().split(b"\n", 1)[1]
    ways = [way for way in leaves(json.loads(body)) if way]
    others: st.SearchStrategy[Any] = (
        st.integers(-1, 1 << 64) | st.none() | st.text(max_size=4) | st.just([]) | st.just({})
    )

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(ways), others)
    def check(way: tuple[Any, ...], value: Any) -> None:
        state = json.loads(body)
        inner = state
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = value
        state.pop("pyvirt", None)
        (folder / "state").write_bytes(state_file.encode(state))
        with contextlib.suppress(StateError, KvmError):
            restored.make("keep", folder)
        restored.close()

    check()


def test_a_full_disk_leaves_nothing_and_the_guest_goes_on(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    saver = Saver(guest, Log())
    with file_limit(MEMORY // 2):
        saver.start(Folder(str(tmp_path / "snapshot")))
        saver.wait()
    assert saver.status == "failed"
    assert "File too large" in saver.error
    assert not (tmp_path / "snapshot").exists()
    stands = guest.read_words(COUNT, 1)
    guest.resume()
    wait_until(lambda: guest.read_words(COUNT, 1) != stands, "the guest goes on")
    save(guest, tmp_path / "snapshot")


def test_what_is_refused_at_once_leaves_the_guest_running(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    saver = Saver(guest, Log())
    with pytest.raises(BackendError, match="is not empty"):
        saver.start(Folder(str(tmp_path)))
    assert guest.state == RUNNING


def test_nothing_changes_while_it_is_written(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    guest.begin_save(lambda: None)
    for what in (guest.resume, guest.reset, lambda: guest.begin_save(lambda: None)):
        with pytest.raises(PyvirtError, match="a snapshot of the machine is being written"):
            what()
    guest.end_save()
    guest.resume()
    assert guest.state == RUNNING


def test_the_end_cancels_it(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    saver = Saver(guest, Log())
    saver.start(Folder(str(tmp_path / "snapshot")))
    guest.close()
    saver.wait()
    assert saver.status in {"completed", "canceled"}
    assert (tmp_path / "snapshot").exists() == (saver.status == "completed")


FORMATS = Path(__file__).parents[1] / "unit/vmm/snapshot"


@pytest.mark.parametrize("version", range(1, state_file.FORMAT + 1))
def test_a_state_of_each_format_is_restored(
    machine: Make, restored: Restored, tmp_path: Path, version: int
) -> None:
    """It knows the processor on which it was made; what identifies that becomes this host's."""
    archive = FORMATS / f"format{version}.tar.xz"
    subprocess.run(["tar", "-xJf", str(archive), "-C", str(tmp_path)], check=True, timeout=PATIENCE)
    here = machine("keep")
    rows = [{name: getattr(e, name) for name in e.__slots__} for e in here.vcpus[0].cpuid]
    khz = clock.save(here.vm)["tsc_khz"]

    def move(state: dict[str, Any]) -> None:
        vcpu = state["vcpus"][0]
        vcpu["cpuid"] = rows
        if "PYVIRT_LAB" in os.environ:  # its processor has none
            vcpu["xsave"] = vcpu["xcrs"] = None
        else:
            area = bytearray.fromhex(vcpu["xsave"]["area"])
            area[512:520] = (area[512] & 3, *bytes(7))  # x87 and SSE, which all processors have
            vcpu["xsave"]["area"] = area.hex()
        state["clock"]["tsc_khz"] = khz

    change(tmp_path, move)
    disks = disk(tmp_path / "image") if version >= 3 else ()
    for one in disks:
        one.overlay = "memory"
    devices = (RngConfig("rng0", "rng0", "/dev/urandom"),)
    guest = restored.make("keep", tmp_path, devices=devices, disks=disks)
    assert guest.run() == ("debug-exit", KEPT)
    assert guest.slots
    first = guest.slots.transports[0].device
    layers = first.freeze() if isinstance(first, Block) else ()
    # Sector 3 of the disk is the guest's.
    assert [os.pread(fd, 512, 3 * 512) for fd in layers] == [b"A" * 512] * len(disks)
