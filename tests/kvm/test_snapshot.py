"""Snapshots of tiny guests: they go on elsewhere with every register and byte that they had."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyvirt.errors import KvmError, StateError
from pyvirt.native import ffi
from pyvirt.qmp.client import CommandError
from pyvirt.vmm import bus, kvm, layout
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.execution import PAUSED
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot import clock, ioctls, state_file, structs, vcpu
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.restore import open_folder
from pyvirt.vmm.snapshot.save import Saver

from .conftest import Make
from .support import BUFFER, MAILBOX, PATIENCE, PORT, Guest
from .test_life import Face, Ledger, counting_on_all, wait_until, wait_until_all_run
from .test_qmp_run import Monitored
from .test_run import command

COUNT, FLAG, TSC = MAILBOX, MAILBOX + 8, MAILBOX + 16
KEPT = 42


def save(guest: Guest, folder: Path) -> None:
    saver = Saver(guest, Log())
    saver.start(Folder(str(folder)))
    saver.wait()
    assert (saver.status, saver.error) == ("completed", "")
    assert guest.state == PAUSED


class Restored:
    """Machines from snapshots; all are closed at the end."""

    def __init__(self, kernel: Callable[[str], Path], logs: Path) -> None:
        self._kernel = kernel
        self._logs = logs
        self.made: list[Guest] = []

    def close(self) -> None:
        """End those there are; others may be made."""
        for guest in self.made:
            guest.close()
        self.made.clear()

    def make(self, name: str, folder: Path, *, mapped: bool = True, **words: Any) -> Guest:
        """Make a machine, and restore it; it does not run yet."""
        incoming = open_folder(str(folder), mapped=mapped)
        try:
            words.setdefault("memory", incoming.shape.memory)
            words.setdefault("topology", incoming.shape.topology)
            vcpus = words.setdefault("vcpus", incoming.shape.topology.vcpus)
            assert vcpus
            for slot, disk in enumerate(words.get("disks", ())):
                disk.layers = incoming.layers.get(slot, ())
            content = incoming if mapped else None
            config = MachineConfig(str(self._kernel(name)), content=content, **words)
            guest = Guest(config, self._logs / f"restored{len(self.made)}")
            self.made.append(guest)
            log = Log()
            log.open(str(guest.log_file))
            try:
                incoming.restore(guest, log)
            finally:
                os.close(log.fd)
        finally:
            incoming.close()
        return guest


@pytest.fixture
def restored(kernel: Callable[[str], Path], tmp_path: Path) -> Iterator[Restored]:
    restored = Restored(kernel, tmp_path)
    yield restored
    restored.close()


def at_work(machine: Make, name: str = "keep") -> Guest:
    guest = machine(name)
    guest.start()
    wait_until(lambda: guest.read_words(COUNT, 1)[0] > 100, "the guest counts")
    return guest


def saved(machine: Make, folder: Path, *, flag: int = 1) -> Guest:
    """Return a guest that was saved, and finds its flag when it goes on."""
    guest = at_work(machine)
    guest.pause()
    guest.write_words(FLAG, flag)
    save(guest, folder)
    return guest


@pytest.mark.parametrize("mapped", [True, pytest.param(False, marks=pytest.mark.any_kvm)])
def test_every_register_is_kept(
    machine: Make, restored: Restored, tmp_path: Path, mapped: bool
) -> None:
    folder = tmp_path / "snapshot"
    guest = saved(machine, folder)
    again = restored.make("keep", folder, mapped=mapped)
    assert again.read_words(COUNT, 1) == guest.read_words(COUNT, 1)
    assert again.run() == ("debug-exit", KEPT)
    # The one that was saved goes on as well.
    guest.resume()
    end = guest.wait()
    assert (end.reason, end.status) == ("debug-exit", KEPT)


def test_floating_point_is_kept(machine: Make, restored: Restored, tmp_path: Path) -> None:
    """Set from outside, as an emulating KVM has no instructions of the x87."""
    guest = at_work(machine)
    guest.pause()
    fpu = ffi.new("struct kvm_fpu *")
    ioctls.GET_FPU(guest.vcpus[0].fd, fpu)
    for place, register in enumerate(fpu.fpr):
        ffi.memmove(register, bytes([place + 1] * 10), 10)
    fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr = 0x27F, 0x3800, 0xFF, 0x1FA0
    kvm.SET_FPU(guest.vcpus[0].fd, fpu)
    ioctls.GET_FPU(guest.vcpus[0].fd, fpu)
    assert any(fpu.fpr[7])
    save(guest, tmp_path / "snapshot")
    again = restored.make("keep", tmp_path / "snapshot")
    found = ffi.new("struct kvm_fpu *")
    ioctls.GET_FPU(again.vcpus[0].fd, found)
    assert structs.save(found) == structs.save(fpu)


def test_what_xsave_shows_is_kept(machine: Make, restored: Restored, tmp_path: Path) -> None:
    """The upper halves of the AVX registers, where this KVM has them."""
    guest = at_work(machine)
    guest.pause()
    vcpu_fd, size = guest.vcpus[0].fd, kvm.extension(guest.vm.fd, "KVM_CAP_XSAVE2")
    has_xsave = kvm.extension(guest.kvm_fd, "KVM_CAP_XSAVE")
    area = ffi.new("char[]", max(size, 4096))
    read = ioctls.GET_XSAVE2 if size > 4096 else ioctls.GET_XSAVE
    if has_xsave:
        read(vcpu_fd, area)
        # Intel SDM, volume 1, 13.4: XSTATE_BV at 512, YMM_Hi128 at 576.
        ffi.buffer(area)[512] = bytes([ffi.buffer(area)[512][0] | 4])
        ffi.buffer(area)[576 : 576 + 256] = bytes(range(256))
        with contextlib.suppress(KvmError):  # a processor without AVX
            ioctls.SET_XSAVE(vcpu_fd, area)
        read(vcpu_fd, area)
    save(guest, tmp_path / "snapshot")
    again = restored.make("keep", tmp_path / "snapshot")
    found = ffi.new("char[]", len(area))
    if has_xsave:
        read(again.vcpus[0].fd, found)
    assert bytes(ffi.buffer(found)) == bytes(ffi.buffer(area))


def test_a_debuggers_breakpoints_are_kept(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    """One of the guest's own, in the processor's registers."""
    guest = at_work(machine)
    guest.pause()
    ours = ffi.new("struct kvm_debugregs *")
    ioctls.GET_DEBUGREGS(guest.vcpus[0].fd, ours)
    for place in range(4):
        ours.db[place] = 0x10_0000 + 16 * place
    ours.dr6, ours.dr7 = 0xFFFF_0FF1, 0xD01_04FF
    ioctls.SET_DEBUGREGS(guest.vcpus[0].fd, ours)
    ioctls.GET_DEBUGREGS(guest.vcpus[0].fd, ours)
    assert ours.dr7 & 0xFF
    save(guest, tmp_path / "snapshot")
    again = restored.make("keep", tmp_path / "snapshot")
    found = ffi.new("struct kvm_debugregs *")
    ioctls.GET_DEBUGREGS(again.vcpus[0].fd, found)
    assert structs.save(found) == structs.save(ours)


def test_a_timer_that_is_armed_fires(machine: Make, restored: Restored, tmp_path: Path) -> None:
    guest = at_work(machine, "timer")
    save(guest, tmp_path / "snapshot")
    again = restored.make("timer", tmp_path / "snapshot")
    again.write_words(FLAG, 1)
    assert again.run() == ("debug-exit", KEPT)


@pytest.mark.any_kvm
def test_in_other_processes_twice_at_once(
    machine: Make, kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "a,b"
    saved(machine, folder)
    words = command(kernel("keep"))
    place = words.index("run")
    words = [*words[: place + 1], "-incoming", f"file:{tmp_path}/a,,b", "-accel", "kvm"]
    runs = [
        subprocess.Popen([*words, "-serial", "none"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for run in runs:
        _, told = run.communicate(timeout=PATIENCE)
        assert (run.returncode, told) == (KEPT, "")


def completed(guest: Monitored) -> bool:
    status = guest.client.execute("query-migrate")["status"]
    assert status in {"active", "completed"}
    return bool(status == "completed")


@pytest.mark.any_kvm
def test_by_qmp_as_stratovirt_has_it(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    """Also with what there is for hot-plug, and with devices that no driver has found."""
    words = ("-device", "virtio-balloon-device", "-smp", "2")
    with Monitored(kernel("spin"), *words) as guest:
        assert guest.client.execute("query-migrate") == {"status": "none"}
        assert guest.client.execute("migrate", {"uri": f"file:{tmp_path}/template"}) == {}
        assert guest.names() == ["STOP"]
        wait_until(lambda: completed(guest), "all is written")
        assert guest.client.execute("query-status")["status"] == "paused"
        with pytest.raises(CommandError, match="is not empty; name a new folder"):
            guest.client.execute("migrate", {"uri": f"file:{tmp_path}/template"})
        stands = guest.mailbox()
        guest.client.execute("cont")
        wait_until(lambda: guest.mailbox() != stands, "the guest goes on")
    with Monitored(kernel("spin"), *words, "-incoming", f"file:{tmp_path}/template") as again:
        assert completed(again)
        wait_until(lambda: int(again.mailbox(), 16) > int(stands, 16), "its copy goes on")
    frozen = (*words, "-S", "-incoming", f"file:{tmp_path}/template,mapped=off")
    with Monitored(kernel("spin"), *frozen) as again:
        assert again.mailbox() == stands
        assert again.client.execute("query-status")["status"] == "paused"


@pytest.mark.any_kvm
def test_a_guest_that_runs_is_stopped_and_told(machine: Make, tmp_path: Path) -> None:
    guest = at_work(machine)
    events: list[str] = []
    guest.listeners.append(lambda name, _: events.append(name))
    save(guest, tmp_path / "snapshot")
    assert events == ["STOP"]
    stands = guest.read_words(COUNT, 1)
    guest.resume()
    wait_until(lambda: guest.read_words(COUNT, 1) != stands, "the guest goes on")


def test_four_vcpus_go_on_where_each_of_them_was(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshot"
    guest, ledgers = counting_on_all(machine)
    guest.start()
    wait_until_all_run(ledgers)
    save(guest, folder)
    again = restored.make("count_smp", folder)
    reached = [ledger.accesses for ledger in ledgers]
    for index, accesses in enumerate(reached):
        ledgers[index] = ledger = Ledger(2)
        ledger.accesses = accesses
        again.bus.add(bus.PIO, PORT + 8 * index, 8, Face(ledger, "port "))
    again.start()
    wait_until(
        lambda: all(now.accesses > then for now, then in zip(ledgers, reached, strict=True)),
        "all vCPUs go on",
    )
    again.close()
    assert [ledger.wrong for ledger in ledgers] == [[]] * len(ledgers)


@pytest.mark.any_kvm
def test_a_snapshot_of_one_that_was_restored(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    saved(machine, tmp_path / "first", flag=0)
    second = restored.make("keep", tmp_path / "first")
    before = second.read_words(COUNT, 1)[0]
    second.start()
    wait_until(lambda: second.read_words(COUNT, 1)[0] > before + 100, "the guest goes on")
    second.pause()
    second.write_words(FLAG, 1)
    save(second, tmp_path / "second")
    third = restored.make("keep", tmp_path / "second")
    assert third.read_words(COUNT, 1) == second.read_words(COUNT, 1)
    assert third.run() == ("debug-exit", KEPT)


def test_time_goes_on_by_what_has_passed(machine: Make, restored: Restored, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    saved(machine, folder, flag=0)
    before = json.loads((folder / "state").read_bytes().split(b"\n", 1)[1])["clock"]
    assert abs(time.time_ns() - before["realtime"]) < PATIENCE * 1e9
    # As if it had been saved an hour ago.
    hour = 3600 * 10**9
    change(folder, lambda state: state["clock"].update(realtime=before["realtime"] - hour))
    again = restored.make("keep", folder)
    after = clock.save(again.vm)
    assert hour <= after["clock"] - before["clock"] < hour + 4 * PATIENCE * 1e9
    passed = (after["tsc"][0] - before["tsc"][0]) * 1_000_000 // before["tsc_khz"]
    # A KVM that emulates the processor may have the host's TSC and no other.
    assert passed >= hour or vcpu.tsc_offset(again.vcpus[0]) == 0
    assert passed < hour + 4 * PATIENCE * 1e9


@pytest.mark.any_kvm
def test_each_one_learns_that_it_is_another(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshot"
    guests = [saved(machine, folder), *(restored.make("keep", folder) for _ in range(2))]
    ids = {guest.read(layout.GENERATION_ID, layout.GENERATION_ID_SIZE) for guest in guests}
    assert len(ids) == 3
    pending = [guest.parts["events"].save()["pending"] for guest in guests]
    assert pending == [0, layout.GED_GENERATION, layout.GED_GENERATION]
    # One that was booted without ACPI does not look there.
    change(folder, lambda state: state["machine"].update(acpi=False))
    guests.append(restored.make("keep", folder))
    assert guests[3].read(layout.GENERATION_ID, layout.GENERATION_ID_SIZE) in ids
    assert guests[3].parts["events"].save()["pending"] == 0


def test_a_restored_machine_can_be_reset(machine: Make, restored: Restored, tmp_path: Path) -> None:
    saved(machine, tmp_path / "snapshot")
    guest = restored.make("keep", tmp_path / "snapshot")
    guest.write_words(BUFFER, 7)
    guest.reset()
    assert guest.read_words(BUFFER, 1) == guest.read_words(FLAG, 1) == [0]
    guest.start()
    wait_until(lambda: guest.read_words(COUNT, 1)[0] > 100, "it begins anew")


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change what a state says, its checksum as well."""
    path = folder / "state"
    state = json.loads(path.read_bytes().split(b"\n", 1)[1])
    how(state)
    del state["pyvirt"]
    path.write_bytes(state_file.encode(state))


def test_registers_that_a_kvm_does_not_take_are_refused(
    machine: Make, restored: Restored, tmp_path: Path
) -> None:
    saved(machine, tmp_path / "snapshot")
    # Paging without protection.
    change(tmp_path / "snapshot", lambda state: state["vcpus"][0]["sregs"].update(cr0=1 << 31))
    with pytest.raises(StateError, match=r"vcpus\.0\.sregs: is not what this"):
        restored.make("keep", tmp_path / "snapshot")
