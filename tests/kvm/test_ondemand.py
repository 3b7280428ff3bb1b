"""Slots that come with their devices, offered to a guest that takes them, or does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.devices.virtio.block import RO, Block, BlockConfig
from pyvirt.devices.virtio.device import Device
from pyvirt.errors import ConfigError, PyvirtError, StateError
from pyvirt.state import Fields
from pyvirt.vmm import demand, layout, slots
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.end import End
from pyvirt.vmm.log import Log
from pyvirt.vmm.snapshot import shape
from pyvirt.vmm.snapshot.folder import Folder
from pyvirt.vmm.snapshot.restore import open_folder
from pyvirt.vmm.snapshot.save import Saver
from pyvirt.vmm.steps import finish
from pyvirt.vmm.topology import Topology

from .ondemand import Client, bind, start, transports
from .support import MAILBOX, MEMORY, Guest
from .test_access import carry_out
from .test_life import wait_until
from .test_snapshot import save
from .test_virtio_mmio import driver, get

pytestmark = pytest.mark.any_kvm

Make = Callable[..., Guest]
RUBBISH = 7
SILENT = "the guest's ACPI has not answered within 0.5 s, and the guest does not get the device"


def test_there_are_no_empty_slots(on_demand: Any) -> None:
    guest, _ = on_demand()
    assert transports(guest) == 0
    assert guest.slots.windows() == []


def test_what_is_plugged_is_offered_and_taken(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    for count in range(1, 4):
        assert user.plug(f"d{count}") == {}
        assert transports(guest) == count
    wait_until(lambda: guest.read_words(MAILBOX, 1) == [3], "it has taken three")
    assert guest.read(MAILBOX + 16, 4) == b"SSDT"
    assert guest.read(layout.PLUG_TABLE, layout.PLUG_TABLE_SIZE) == bytes(layout.PLUG_TABLE_SIZE)
    gsis = [window.gsi for window in guest.slots.windows()]
    assert gsis == list(layout.VIRTIO_GSIS[:3])


def test_as_many_as_there_are_lines_and_no_more(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    for index in range(slots.DEMAND_SLOTS_MAX):
        assert user.plug(f"d{index}") == {}
    files = set(os.listdir("/proc/self/fd"))
    user.ask("netdev_add", id="n", ifname="absent")
    user.image("more")
    answer = user.ask("device_add", id="more", driver="virtio-blk-mmio")
    assert answer == (
        "A maximum of 64 block replaceable devices are supported. Send device_del for one."
    )
    assert user.ask("blockdev-del", **{"node-name": "more"}) == {}
    assert set(os.listdir("/proc/self/fd")) == files
    with pytest.raises(ConfigError, match="all 64 slots are taken; unplug a device"):
        finish(guest.demand.plug(Block(None, 0), "block", 64))


def test_features_are_those_of_the_disk(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    user.image("d", readonly=True)
    more = {"num-queues": 4, "queue-size": "512", "logical_block_size": 1024, "serial": "number"}
    assert user.ask("device_add", id="d", driver="virtio-blk-mmio", **more) == {}
    device = guest.slot("block", 0)
    assert isinstance(device, Block)
    assert device.offer() & RO
    assert device.queue_sizes == (512,) * 4
    assert device.config()[20:24] == (1024).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"num-queues": 0}, "`num-queues` 0: give a number from 1 to 64"),
        ({"num-queues": True}, "`num-queues` True: give a number from 1 to 64"),
        ({"num-queues": "-1"}, "`num-queues` -1: give a number from 1 to 64"),
        ({"queue-size": 3}, "`queue-size` 3: give a power of two from 2 to 1024"),
        ({"logical_block_size": 8192}, "`logical_block_size` 8192: give a power of two from 512"),
        ({"logical_block_size": 4096, "physical_block_size": 512}, "is less than"),
    ],
)
def test_a_shape_that_cannot_be(on_demand: Any, more: dict[str, Any], text: str) -> None:
    guest, user = on_demand()
    start(guest)
    assert text in user.plug("d", **more)
    assert transports(guest) == 0
    assert user.ask("device_add", id="d", driver="virtio-blk-mmio") == {}


def test_blocks_that_do_not_divide_the_disk(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand()
    start(guest)
    user.image("d")
    user.ask("blockdev-del", **{"node-name": "d"})
    os.truncate(tmp_path / "d", 512 * 3)
    file = {"driver": "file", "filename": str(tmp_path / "d")}
    assert user.ask("blockdev-add", **{"node-name": "d", "file": file}) == {}
    answer = user.ask("device_add", id="d", driver="virtio-blk-mmio", logical_block_size=1024)
    assert "the image's size is no multiple of it; run: truncate -s %1024" in answer
    assert user.ask("device_add", id="d", driver="virtio-blk-mmio") == {}


def test_a_guest_that_does_not_answer_does_not_get_it(
    on_demand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, user = on_demand("spin")
    monkeypatch.setattr(demand, "LIMIT_S", 0.5)
    start(guest)
    wait_until(lambda: guest.read_words(MAILBOX, 1) != [0], "it runs")
    user.image("d")
    files = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        answer = user.ask("device_add", id="d", driver="virtio-blk-mmio")
        assert answer.startswith(SILENT)
        assert transports(guest) == 0
        assert set(os.listdir("/proc/self/fd")) == files
        assert guest.read(layout.PLUG_TABLE, 4) == bytes(4)
    assert user.ask("blockdev-del", **{"node-name": "d"}) == {}


def test_rubbish_is_no_answer(on_demand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, user = on_demand()
    start(guest, adds=RUBBISH)
    text = "the guest has not taken the device within 0.5 s, and does not get it"
    with monkeypatch.context() as patch:
        patch.setattr(demand, "LIMIT_S", 0.5)
        assert user.plug("d").startswith(text)
    assert transports(guest) == 0
    guest.write_words(MAILBOX, 0, 0)
    assert user.ask("device_add", id="d", driver="virtio-blk-mmio") == {}


def test_a_paused_guest_is_told_when_it_runs_on(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    guest.pause()
    assert [user.plug(f"d{index}") for index in range(3)] == [{}] * 3
    assert user.ask("device_del", id="d1") == {}
    assert transports(guest) == 2
    guest.resume()
    wait_until(lambda: guest.read_words(MAILBOX, 1) == [2], "it has taken two")
    wait_until(lambda: not guest.demand.port.is_waiting, "nothing is left")


def plug_while(guest: Guest, user: Client, act: Callable[[], None]) -> list[Any]:
    """Act when a disk is on offer that nobody takes; return what who plugged it was told."""
    assert guest.demand is not None
    port = guest.demand.port
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(user.plug("d")))
    thread.start()
    wait_until(lambda: port.is_waiting, "it is offered")
    act()
    thread.join()
    return answers


def test_a_reset_before_the_answer(on_demand: Any) -> None:
    guest, user = on_demand("spin")
    start(guest)
    answers = plug_while(guest, user, guest.reset)
    assert answers == [{}]
    assert len(guest.slots.windows()) == 1
    image = guest.read(layout.ACPI, layout.ACPI_END - layout.ACPI)
    assert image.count(b"LNRO0005") == 1


def test_a_disk_is_plugged_after_a_reset(on_demand: Any) -> None:
    """The VM is another one then."""
    guest, user = on_demand("spin")
    start(guest)
    guest.reset()
    guest.pause()
    assert user.plug("d") == {}
    guest.resume()
    guest.reset()
    assert len(guest.slots.windows()) == 1


def test_an_end_before_the_answer(on_demand: Any) -> None:
    guest, user = on_demand("spin")
    start(guest)
    answers = plug_while(guest, user, lambda: guest.finish(End("host")))
    assert answers == ["the machine has ended; start another"]
    assert transports(guest) == 0


def test_a_disk_whose_driver_has_let_go_goes_with_its_slot(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand()
    start(guest)
    for cycle in range(2 * slots.DEMAND_SLOTS_MAX):
        assert user.plug("d") == {}
        assert user.ask("device_del", id="d") == {}
        assert transports(guest) == 0, cycle
        with open(tmp_path / "d", "r+b"):
            pass
    assert user.events == ["DEVICE_DELETED"] * 2 * slots.DEMAND_SLOTS_MAX


def test_a_disk_whose_driver_has_not_stays_empty_until_it_does(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    assert user.plug("d") == {}
    (transport,) = guest.slots.transports
    bind(transport)
    assert user.ask("device_del", id="d") == {}
    assert guest.slots.transports == [transport]
    assert int.from_bytes(transport.device.config()[:8], "little") == 0
    with pytest.raises(ConfigError, match="slot 0: there are 1 of kind block"):
        guest.slot("block", 0)
    assert user.plug("other") == {}
    assert len(guest.slots.transports) == 2
    # As Linux leaves it.
    for status in (0, r.ACKNOWLEDGE):
        transport.write(r.STATUS, 4, status)
    assert user.plug("third") == {}
    assert [one.device.backend for one in guest.slots.transports] == ["other", "third"]
    assert user.events == ["DEVICE_DELETED"]


def test_a_machine_that_is_full_uses_an_empty_disk_again(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    for index in range(slots.DEMAND_SLOTS_MAX):
        assert user.plug(f"d{index}") == {}
    bound = guest.slots.transports[3]
    bind(bound)
    assert user.ask("device_del", id="d3") == {}
    assert transports(guest) == slots.DEMAND_SLOTS_MAX
    assert user.plug("again") == {}
    assert guest.slot("block", 3) is bound.device
    assert guest.slot("block", 3).backend == "again"


def test_nobody_is_told_without_room_for_the_number(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    guest.demand.port._number = guest.demand.port._most
    assert "the guest has been told of 4000 devices since it started" in user.plug("d")
    assert transports(guest) == 0


def test_an_absent_device_reads_as_nothing(on_demand: Any) -> None:
    guest, _ = on_demand("script")
    values = carry_out(guest, get(r.MAGIC_VALUE, 3), *driver(slot=3), get(r.STATUS, 3))
    assert values[0] == values[-1] == 0


def test_a_machine_without_acpi_has_prepared_slots(on_demand: Any) -> None:
    guest, user = on_demand(discovery="cmdline")
    assert guest.demand is None
    assert transports(guest) == slots.BLOCK_SLOTS + slots.NET_SLOTS
    assert not user.host.on_demand


def test_the_end_of_a_guest_with_a_device_that_it_has_not_taken(on_demand: Any) -> None:
    guest, user = on_demand()
    start(guest)
    guest.pause()
    assert user.plug("d") == {}
    guest.close()
    with pytest.raises(PyvirtError, match="has ended"):
        finish(guest.demand.detach("block", 0))


class Notes(Device):
    """A device that notes its end."""

    def __init__(self) -> None:
        super().__init__("notes", device_type=42, features=0, queue_sizes=(16,))
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class NotesConfig:
    """It, as it was asked for."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.device = Notes()

    def make(self) -> Notes:
        """Return it."""
        return self.device


def make_notes(user: Client) -> list[NotesConfig]:
    """Let drivers make such devices; return what was asked for."""
    asked: list[NotesConfig] = []

    def maker(driver: str, members: Any, chardevs: Any) -> NotesConfig:
        assert driver == "virtio-rng-device"
        asked.append(NotesConfig(members["id"]))
        return asked[-1]

    user.host._maker = maker
    return asked


def test_another_device_is_unplugged_when_no_driver_has_it(on_demand: Any) -> None:
    guest, user = on_demand()
    asked = make_notes(user)
    start(guest)
    assert user.ask("device_add", id="n", driver="virtio-rng-device", rng="o") == {}
    answer = user.ask("device_add", id="n", driver="virtio-rng-device", rng="o")
    assert answer == "Device n is plugged already; send device_del first"
    (transport,) = guest.slots.transports
    bind(transport)
    answer = user.ask("device_del", id="n")
    assert answer.startswith("Device n: a driver of the guest has it; unbind that there first")
    assert user.events == ["DEVICE_UNPLUG_GUEST_ERROR"]
    assert [one.device.is_closed for one in asked] == [False]
    transport.write(r.STATUS, 4, 0)
    assert user.ask("device_del", id="n") == {}
    assert user.events[1:] == ["DEVICE_DELETED"]
    assert [one.device.is_closed for one in asked] == [True]
    assert transports(guest) == 0


def test_another_device_for_a_guest_that_does_not_answer(
    on_demand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, user = on_demand("spin")
    monkeypatch.setattr(demand, "LIMIT_S", 0.5)
    asked = make_notes(user)
    start(guest)
    assert user.ask("device_add", id="n", driver="virtio-rng-device").startswith(SILENT)
    assert [one.device.is_closed for one in asked] == [True]
    assert transports(guest) == 0


def test_another_device_in_a_machine_with_prepared_slots(make: Make, tmp_path: Path) -> None:
    user = Client(make("spin"), tmp_path)
    answer = user.ask("device_add", id="n", driver="virtio-rng-device")
    assert answer == "Unsupported replaceable device type."
    user.host.close()


def restore(kernel: Any, folder: Path, log: Path, **words: Any) -> Guest:
    """Return a machine that goes on from a snapshot, with what `words` say."""
    incoming = open_folder(str(folder))
    try:
        config = MachineConfig(
            str(kernel("plug")),
            memory=incoming.shape.memory,
            topology=incoming.shape.topology,
            content=incoming,
            hotplug=True,
            on_demand=incoming.shape.places is not None,
            places=incoming.shape.places or (),
            **words,
        )
        guest = Guest(config, log)
        try:
            incoming.restore(guest, Log())
        except BaseException:
            guest.close()
            raise
    finally:
        incoming.close()
    return guest


def test_what_was_plugged_is_in_its_slot_when_restored(
    on_demand: Any, kernel: Any, tmp_path: Path
) -> None:
    guest, user = on_demand()
    start(guest)
    for name in ("d0", "d1", "d2"):
        assert user.plug(name) == {}
    assert user.ask("device_del", id="d1") == {}
    folder = tmp_path / "saved"
    save(guest, folder)
    windows = [(one.base, one.gsi) for one in guest.slots.windows()]
    guest.close()
    user.host.close()
    disks = tuple(BlockConfig(name, str(tmp_path / name)) for name in ("d0", "d2"))
    again = restore(kernel, folder, tmp_path / "again", disks=disks)
    try:
        assert again.slots
        assert again.slots.places() == (0, 2)
        assert [(one.base, one.gsi) for one in again.slots.windows()] == windows
        other = Client(again, tmp_path)
        again.start()
        again.resume()
        assert other.plug("more") == {}
        assert again.slots.places() == (0, 2, 1)
        # Its name is no other's of those that the guest has loaded.
        assert again.demand
        assert again.demand.port.save()["number"] == 4
        other.host.close()
    finally:
        again.close()


def test_a_guest_with_other_devices_is_not_restored(
    on_demand: Any, kernel: Any, tmp_path: Path
) -> None:
    guest, user = on_demand()
    start(guest)
    assert user.plug("d0") == {}
    folder = tmp_path / "saved"
    save(guest, folder)
    with pytest.raises(StateError, match="had 1 virtio devices, and here are 0"):
        restore(kernel, folder, tmp_path / "again")


def test_what_has_no_end_yet_is_not_saved(on_demand: Any, tmp_path: Path) -> None:
    guest, user = on_demand()
    start(guest)
    assert user.plug("d") == {}
    (transport,) = guest.slots.transports
    bind(transport)
    assert user.ask("device_del", id="d") == {}
    saver = Saver(guest, Log())
    with pytest.raises(PyvirtError, match="a driver of the guest still has it"):
        saver.start(Folder(str(tmp_path / "saved")))
    transport.write(r.STATUS, 4, 0)
    guest.pause()
    assert user.plug("e") == {}
    with pytest.raises(PyvirtError, match="has not yet taken a device that was plugged"):
        saver.start(Folder(str(tmp_path / "saved")))


@pytest.mark.parametrize("slots_", [[64], [-1], [0, 0], "0", list(range(65))])
def test_slots_that_cannot_be_in_a_state(slots_: Any) -> None:
    fields = shape.Shape(MEMORY, Topology(1), pit=True, hotplug=True, acpi=True, places=(3,)).save()
    assert shape.read(Fields(fields)).places == (3,)
    with pytest.raises(StateError, match="slots"):
        shape.read(Fields({**fields, "slots": slots_}))
