"""Virtio slots under a real guest: what costs an exit, what does not, and who gets what."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import ConfigError
from pyvirt.native import ffi, lib
from pyvirt.vmm import layout, slots
from pyvirt.vmm.config import MachineConfig
from pyvirt.vmm.log import BURST

from ..unit.devices.virtio.bench import (
    NEGOTIATED,
    OFFERED,
    OWN_FEATURES,
    RINGS,
    RUNNING,
    Notes,
    take,
)
from .support import MAILBOX, MEMORY, Guest
from .test_access import carry_out

Access = tuple[str, int, int]
Make = Callable[..., Guest]
QUEUE_SIZE = 16
CHANGES, ROUNDS = 500, 50
WHY = ffi.new("char[]", b"the driver did it")


@pytest.fixture(params=["memslot", "exits"])
def read_exits(request: pytest.FixtureRequest) -> bool:
    """Run a test with the registers as memory, and with the plain way."""
    return bool(request.param == "exits")


@pytest.fixture
def make(kernel: Callable[[str], Path], tmp_path: Path, read_exits: bool) -> Iterator[Make]:
    """Return a function that makes a machine with virtio devices, and a guest of guests/*.S."""
    made: list[Guest] = []

    def make(*devices: Notes, guest: str = "script") -> Guest:
        config = MachineConfig(str(kernel(guest)), memory=MEMORY, read_exits=read_exits)
        machine = Guest(config, tmp_path / f"log{len(made)}", virtio=devices)
        made.append(machine)
        machine.load()
        return machine

    yield make
    for machine in made:
        machine.close()


def base(slot: int = 0) -> int:
    return layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_STEP


def set_(register: int, value: int, slot: int = 0) -> Access:
    return "write4", base(slot) + register, value


def get(register: int, slot: int = 0) -> Access:
    return "read4", base(slot) + register, 0


def driver(features: int = r.VERSION_1, slot: int = 0, rings: int = RINGS) -> list[Access]:
    """Return what a driver writes up to DRIVER_OK, with queue 0 of 16 entries at `rings`."""
    accesses = [(r.STATUS, r.ACKNOWLEDGE), (r.STATUS, r.ACKNOWLEDGE | r.DRIVER)]
    for word in (0, 1):
        accesses += [
            (r.DRIVER_FEATURES_SEL, word),
            (r.DRIVER_FEATURES, features >> 32 * word & r.WORD),
        ]
    accesses += [(r.STATUS, NEGOTIATED), (r.QUEUE_SEL, 0), (r.QUEUE_NUM, QUEUE_SIZE)]
    for place, register in enumerate((r.QUEUE_DESC, r.QUEUE_DRIVER, r.QUEUE_DEVICE)):
        accesses += [(register, rings + place * 0x1000), (register + 4, 0)]
    accesses += [(r.QUEUE_READY, 1), (r.STATUS, RUNNING)]
    return [set_(register, value, slot) for register, value in accesses]


def reads(guest: Guest) -> int:
    assert guest.slots
    return sum(transport.reads for transport in guest.slots.transports)


def writes(guest: Guest) -> int:
    assert guest.slots
    return sum(transport.writes for transport in guest.slots.transports)


def test_a_guest_sees_the_page_and_reads_it_for_nothing(make: Make, read_exits: bool) -> None:
    guest = make(Notes(), Notes(config=bytes(range(100, 108))))
    count = 100
    values = carry_out(
        guest,
        get(r.MAGIC_VALUE),
        get(r.VERSION, 1),
        get(r.DEVICE_FEATURES),
        set_(r.DEVICE_FEATURES_SEL, 1),
        get(r.DEVICE_FEATURES),
        ("read8", base(1) + r.CONFIG, 0),
        ("read2", base(1) + r.CONFIG + 1, 0),
        ("read1", base(1) + r.CONFIG + 7, 0),
        *(get(r.INTERRUPT_STATUS) for _ in range(count)),
    )
    assert values[:2] == [r.MAGIC, 2]
    assert values[2] == OFFERED & r.WORD
    assert values[4] == OFFERED >> 32 & r.WORD
    assert OFFERED >> 32 & r.WORD & OWN_FEATURES >> 32
    assert values[5] == int.from_bytes(bytes(range(100, 108)), "little")
    assert values[6:8] == [101 | 102 << 8, 107]
    assert reads(guest) == (7 + count if read_exits else 0)
    assert writes(guest) == 1
    assert guest.stats().exits[lib.KVM_EXIT_MMIO] == reads(guest) + writes(guest)


def test_a_driver_brings_a_device_to_life_and_resets_it(make: Make) -> None:
    device = Notes()
    guest = make(device)
    values = carry_out(
        guest, *driver(OFFERED), get(r.STATUS), set_(r.STATUS, 0), get(r.STATUS), get(r.QUEUE_READY)
    )
    assert values[-4] == RUNNING
    assert values[-2:] == [0, 0]
    assert device.calls == ["activate", "reset"]


def test_devices_do_not_mix(make: Make) -> None:
    devices = [Notes() for _ in range(3)]
    guest = make(*devices)
    values = carry_out(guest, *driver(slot=1), *(get(r.STATUS, slot) for slot in range(3)))
    assert values[-3:] == [0, RUNNING, 0]
    assert [device.calls for device in devices] == [[], ["activate"], []]


def test_notifications_cost_no_exit_and_reach_their_queue(make: Make) -> None:
    device = Notes(queue_sizes=(16, 16, 16))
    guest = make(device)
    assert guest.slots
    kicks = guest.slots.transports[0]._kicks
    carry_out(guest, *(set_(r.QUEUE_NOTIFY, queue) for queue in (0, 2, 2, 2)))
    assert writes(guest) == 0
    assert guest.stats().exits.get(lib.KVM_EXIT_MMIO) is None
    assert [take(fd) for fd in kicks] == [1, 0, 3]


def test_a_notification_of_no_queue_is_swallowed(make: Make) -> None:
    guest = make(Notes())
    carry_out(guest, set_(r.QUEUE_NOTIFY, 2), ("write2", base() + r.QUEUE_NOTIFY, 0))
    assert writes(guest) == 2


def test_used_buffers_are_acknowledged_inside_kvm(make: Make, read_exits: bool) -> None:
    device = Notes()
    guest = make(device)
    assert guest.slots
    irq = guest.slots.transports[0]._irq
    lib.pv_virtio_irq_used(irq)
    values = carry_out(
        guest, *(a for _ in range(50) for a in (get(r.INTERRUPT_STATUS), set_(r.INTERRUPT_ACK, 1)))
    )
    if read_exits:
        assert values[::2] == [1] + [0] * 49
        assert (reads(guest), writes(guest)) == (50, 50)
    else:
        assert values[::2] == [1] * 50
        assert guest.stats().exits.get(lib.KVM_EXIT_MMIO) is None


@pytest.mark.parametrize("acknowledged", [2, 3])
def test_a_changed_configuration_is_acknowledged_by_python(
    make: Make, read_exits: bool, acknowledged: int
) -> None:
    guest = make(Notes())
    assert guest.slots
    irq = guest.slots.transports[0]._irq
    lib.pv_virtio_irq_used(irq)
    lib.pv_virtio_irq_config(irq)
    values = carry_out(
        guest,
        get(r.INTERRUPT_STATUS),
        set_(r.INTERRUPT_ACK, acknowledged),
        get(r.INTERRUPT_STATUS),
    )
    assert values[0] == 3
    assert values[2] == (0 if read_exits and acknowledged == 3 else 1)
    assert writes(guest) == 1


def test_a_configuration_can_change_under_a_running_guest(make: Make, read_exits: bool) -> None:
    device = Notes()
    guest = make(device)
    changes = 20
    for value in range(changes):
        device.space[0] = value
        device.config_changed()
    values = carry_out(guest, get(r.CONFIG_GENERATION), ("read1", base() + r.CONFIG, 0))
    assert values == [changes, changes - 1]
    assert reads(guest) == (2 if read_exits else 0)


def test_no_half_changed_configuration_passes_for_a_whole_one(make: Make) -> None:
    device = Notes(config=bytes(8))
    guest = make(device, guest="generation")
    guest.start()
    rounds = value = 0
    while rounds < ROUNDS or value < CHANGES:
        value += 1
        device.space[:] = 2 * value.to_bytes(4, "little")
        device.config_changed()
        time.sleep(0)
        rounds, torn = guest.read_words(MAILBOX, 2)
        assert torn == 0
    guest.write_words(MAILBOX + 16, 1)
    assert guest.wait().reason == "debug-exit"
    assert guest.read_words(MAILBOX + 8, 1) == [0]


@pytest.mark.any_kvm
def test_what_a_driver_does_wrong_is_one_line_and_the_guest_goes_on(make: Make) -> None:
    guest = make(Notes())
    values = carry_out(guest, *driver(rings=MEMORY - 0x1000), get(r.STATUS))
    assert values[-1] == RUNNING | r.NEEDS_RESET
    assert guest.log_text() == (
        "pyvirt: dev0: the driver's queue 0 has a size or an address that cannot be; "
        "it needs a reset\n"
    )


@pytest.mark.any_kvm
def test_devices_are_reset_and_closed_with_the_machine(make: Make) -> None:
    devices = [Notes(), Notes()]
    guest = make(*devices)
    carry_out(guest, *driver())
    guest.close()
    guest.close()
    assert [device.calls for device in devices] == [["activate", "reset"], []]
    assert [device.closed for device in devices] == [1, 1]


def test_as_many_devices_as_there_are_lines(make: Make) -> None:
    devices = [Notes() for _ in range(slots.SLOTS_MAX)]
    last = slots.SLOTS_MAX - 1
    values = carry_out(make(*devices), *driver(slot=last), get(r.STATUS, last))
    assert values[-1] == RUNNING
    more = [Notes() for _ in range(slots.SLOTS_MAX + 1)]
    with pytest.raises(ConfigError, match="17 virtio devices: at most 16; drop some"):
        make(*more)
    assert [device.closed for device in more] == [1] * len(more)


@pytest.mark.any_kvm
def test_a_device_breaks_and_the_machine_tells(make: Make) -> None:
    guest = make(Notes())
    assert guest.slots
    transport = guest.slots.transports[0]
    lib.pv_virtio_irq_broken(transport._irq, WHY)
    assert os.eventfd_read(guest.notices_fd) == 1
    os.eventfd_write(guest.notices_fd, 1)
    guest.report()
    assert guest.log_text() == "pyvirt: dev0: the driver did it; it needs a reset\n"


class Noisy(Notes):
    """A device whose driver makes it say something else each time, and fail at that."""

    said = 0
    fails = False

    def news(self) -> str:
        self.said += 1
        if self.fails:
            raise ValueError(f"failure {self.said}")
        return f"news {self.said}"


@pytest.mark.any_kvm
def test_what_a_device_says_is_limited_whatever_it_says(make: Make) -> None:
    device, other = Noisy(), Notes()
    guest = make(device, other)
    assert guest.slots
    for _ in range(5000):
        os.eventfd_write(guest.notices_fd, 1)
        guest.report()
    lib.pv_virtio_irq_broken(guest.slots.transports[1]._irq, WHY)
    guest.report()
    lines = guest.log_text().splitlines()
    assert lines[:-1] == [f"pyvirt: dev0: news {n}" for n in range(1, BURST + 1)]
    assert lines[-1] == "pyvirt: dev0: the driver did it; it needs a reset", "the other has its own"


@pytest.mark.any_kvm
def test_a_device_that_raises_costs_its_own_message(make: Make) -> None:
    device, other = Noisy(), Notes()
    guest = make(device, other)
    device.fails = True
    assert guest.slots
    lib.pv_virtio_irq_broken(guest.slots.transports[1]._irq, WHY)
    guest.report()
    first, second = guest.log_text().splitlines()
    assert re.fullmatch(r"pyvirt: dev0: ValueError: failure 1 \(.*\.py:\d+\)", first)
    assert second == "pyvirt: dev0: the driver did it; it needs a reset"
