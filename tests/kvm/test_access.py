"""Port and memory-mapped accesses: to Python devices, and to what nobody claims."""

from __future__ import annotations

import re

import pytest
from pyvirt.native import lib
from pyvirt.vmm import bus

from .conftest import Make
from .support import BUFFER, MAILBOX, MMIO, PORT, Guest

OPERATIONS = (
    ["end"]
    + [f"{kind}{size}" for kind in ("in", "out") for size in (1, 2, 4)]
    + [f"{kind}{size}" for kind in ("read", "write") for size in (1, 2, 4, 8)]
)
STRINGS = ("out1", "out2", "out4", "in1", "in2", "in4")
FREE_PORT = 0x2000
FREE_ADDRESS = MMIO + 0x10_0000
RECORD_WORDS = 4
PAGE = 4096


class Recorder:
    """A Python device that notes each access and answers reads with what it was given."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.reads.append((offset, size))
        return self.answers.pop(0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def carry_out(guest: Guest, *accesses: tuple[str, int, int]) -> list[int]:
    """Let the guest make accesses (operation, address, value); return the words of value."""
    words: list[int] = []
    for operation, address, value in accesses:
        words += (OPERATIONS.index(operation), address, value, 0)
    guest.write_words(MAILBOX, *words, 0)
    assert guest.run() == ("debug-exit", 0)
    after = guest.read_words(MAILBOX, len(words))
    assert after[3::RECORD_WORDS] == [1] * len(accesses)
    return after[2::RECORD_WORDS]


def ones(size: int) -> int:
    return (1 << 8 * size) - 1


def test_unclaimed_ports_read_all_ones_and_swallow_writes(machine: Make) -> None:
    guest = machine("script")
    values = carry_out(
        guest,
        *((f"in{size}", FREE_PORT, 0) for size in (1, 2, 4)),
        *((f"out{size}", FREE_PORT, 0x1234_5678) for size in (1, 2, 4)),
    )
    assert values[:3] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
    stats = guest.stats()
    assert stats.unclaimed == 6
    assert stats.cold == 1  # the debug exit
    assert stats.exits == {lib.KVM_EXIT_IO: 7}
    assert stats.first_run_ns == guest.first_run_ns() > 0


def test_a_port_device_sees_offset_size_and_value(machine: Make) -> None:
    guest = machine("script")
    device = Recorder(0xA1, 0xB1B2, 0xC1C2_C3C4)
    guest.bus.add(bus.PIO, PORT, 8, device)
    values = carry_out(
        guest,
        ("out1", PORT, 0x1122_3344),
        ("out2", PORT + 3, 0x1122_3344),
        ("out4", PORT + 4, 0x1122_3344),
        ("in1", PORT + 7, 0),
        ("in2", PORT + 6, 0),
        ("in4", PORT, 0),
    )
    assert device.writes == [(0, 1, 0x44), (3, 2, 0x3344), (4, 4, 0x1122_3344)]
    assert device.reads == [(7, 1), (6, 2), (0, 4)]
    assert values[3:] == [0xA1, 0xB1B2, 0xC1C2_C3C4]
    assert guest.stats().cold == 7
    assert guest.stats().unclaimed == 0


@pytest.mark.any_kvm
def test_an_answer_wider_than_the_access_is_cut(machine: Make) -> None:
    guest = machine("script")
    guest.bus.add(bus.PIO, PORT, 8, Recorder(0x1_FFAA, -1, -2))
    values = carry_out(guest, ("in1", PORT, 0), ("in2", PORT, 0), ("in4", PORT, 0))
    assert values == [0xAA, 0xFFFF, 0xFFFF_FFFE]


@pytest.mark.parametrize("size", [2, 4])
def test_a_wide_port_access_beyond_a_device_is_nobodys(machine: Make, size: int) -> None:
    guest = machine("script")
    device = Recorder()
    guest.bus.add(bus.PIO, PORT, 1, device)
    values = carry_out(
        guest,
        (f"in{size}", PORT, 0),
        (f"in{size}", PORT - 1, 0),
        (f"out{size}", PORT, 0),
        (f"out{size}", PORT - 1, 0),
    )
    assert values[:2] == [ones(size)] * 2
    assert device.reads == []
    assert device.writes == []
    assert guest.stats().unclaimed == 4


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_memory_device_sees_offset_size_and_value(machine: Make, size: int) -> None:
    value, answer = 0x1122_3344_5566_7788, 0x99AA_BBCC_DDEE_FF00
    guest = machine("script")
    device = Recorder(answer, answer)
    guest.bus.add(bus.MMIO, MMIO, PAGE, device)
    values = carry_out(
        guest,
        (f"write{size}", MMIO, value),
        (f"write{size}", MMIO + PAGE - size, value),
        (f"read{size}", MMIO + 0x100, 0),
        (f"read{size}", MMIO + PAGE - size, 0),
    )
    low = value & ones(size)
    assert device.writes == [(0, size, low), (PAGE - size, size, low)]
    assert device.reads == [(0x100, size), (PAGE - size, size)]
    assert values[2:] == [answer & ones(size)] * 2
    stats = guest.stats()
    assert stats.exits == {lib.KVM_EXIT_MMIO: 4, lib.KVM_EXIT_IO: 1}
    assert stats.cold == 5
    assert stats.unclaimed == 0


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_unclaimed_addresses_read_all_ones_and_swallow_writes(machine: Make, size: int) -> None:
    guest = machine("script")
    values = carry_out(
        guest, (f"read{size}", FREE_ADDRESS, 0), (f"write{size}", FREE_ADDRESS, 0x55)
    )
    assert values[0] == ones(size)
    stats = guest.stats()
    assert stats.unclaimed == 2
    assert stats.exits == {lib.KVM_EXIT_MMIO: 2, lib.KVM_EXIT_IO: 1}


def test_an_access_over_the_end_of_a_memory_device_is_nobodys(machine: Make) -> None:
    """Within a page, so that KVM does not take it apart."""
    guest = machine("script")
    device = Recorder()
    guest.bus.add(bus.MMIO, MMIO, 0x100, device)
    values = carry_out(
        guest,
        ("read8", MMIO + 0xFC, 0),
        ("write4", MMIO + 0xFD, 0),
        ("read2", MMIO - 1 + 0x100, 0),
    )
    assert values[0] == ones(8)
    assert values[2] == ones(2)
    assert device.reads == []
    assert device.writes == []
    assert guest.stats().unclaimed == 3


def test_an_access_over_a_page_boundary_comes_in_two_pieces(machine: Make) -> None:
    """KVM takes it apart there; the pieces need not be powers of two."""
    guest = machine("script")
    left, right = Recorder(0x33_2211), Recorder(0x88_7766_5544)
    guest.bus.add(bus.MMIO, MMIO, PAGE, left)
    guest.bus.add(bus.MMIO, MMIO + PAGE, PAGE, right)
    values = carry_out(
        guest,
        ("write8", MMIO + PAGE - 3, 0x8877_6655_4433_2211),
        ("read8", MMIO + PAGE - 3, 0),
    )
    assert left.writes == [(PAGE - 3, 3, 0x33_2211)]
    assert right.writes == [(0, 5, 0x88_7766_5544)]
    assert left.reads == [(PAGE - 3, 3)]
    assert right.reads == [(0, 5)]
    assert values[1] == 0x8877_6655_4433_2211


def move(
    guest: Guest, which: str, port: int, count: int, address: int, *, down: bool = False
) -> None:
    """Let the guest run a string instruction; check what it leaves in its registers."""
    guest.write_words(MAILBOX, STRINGS.index(which), port, count, address, int(down))
    assert guest.run() == ("debug-exit", 0)
    left, source, target = guest.read_words(MAILBOX + 40, 3)
    size = int(which[-1])
    end = address + (-size if down else size) * count
    assert left == 0
    assert (source, target) == ((end, address) if which.startswith("out") else (address, end))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 700])
def test_string_output_reaches_a_device_in_order(machine: Make, size: int, count: int) -> None:
    guest = machine("string_io")
    device = Recorder()
    guest.bus.add(bus.PIO, PORT, 4, device)
    elements = [(0x0101_0103 * i) & ones(size) for i in range(count)]
    assert guest.memory is not None
    guest.memory.write(BUFFER, b"".join(e.to_bytes(size, "little") for e in elements))
    move(guest, f"out{size}", PORT, count, BUFFER)
    assert device.writes == [(0, size, element) for element in elements]
    assert guest.stats().cold == count + 1


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 700])
def test_string_input_fills_memory_in_order(machine: Make, size: int, count: int) -> None:
    guest = machine("string_io")
    elements = [(0x0101_0103 * i) & ones(size) for i in range(count)]
    device = Recorder(*elements)
    guest.bus.add(bus.PIO, PORT, 4, device)
    move(guest, f"in{size}", PORT, count, BUFFER)
    data = guest.read(BUFFER, size * count)
    assert data == b"".join(e.to_bytes(size, "little") for e in elements)
    assert device.reads == [(0, size)] * count
    assert guest.read(BUFFER + size * count, 8) == bytes(8)


def test_one_exit_can_carry_many_elements(machine: Make) -> None:
    """KVM reads ahead for `rep ins`: all elements of an exit are served before the next run."""
    guest = machine("string_io")
    guest.bus.add(bus.PIO, PORT, 4, Recorder(*range(512)))
    move(guest, "in1", PORT, 512, BUFFER)
    stats = guest.stats()
    assert stats.cold == 513
    assert stats.exits[lib.KVM_EXIT_IO] < 100


def test_string_input_and_output_go_downwards(machine: Make) -> None:
    outwards = machine("string_io")
    written = Recorder()
    outwards.bus.add(bus.PIO, PORT, 4, written)
    assert outwards.memory is not None
    outwards.memory.write(BUFFER, bytes(range(10)))
    move(outwards, "out1", PORT, 10, BUFFER + 9, down=True)
    assert [value for _, _, value in written.writes] == list(range(9, -1, -1))

    inwards = machine("string_io")
    inwards.bus.add(bus.PIO, PORT, 4, Recorder(*range(10)))
    move(inwards, "in2", PORT, 10, BUFFER + 18, down=True)
    data = inwards.read(BUFFER, 20)
    assert [data[i] for i in range(0, 20, 2)] == list(range(9, -1, -1))


def test_string_input_from_nobody_is_all_ones(machine: Make) -> None:
    guest = machine("string_io")
    move(guest, "in4", FREE_PORT, 100, BUFFER)
    assert guest.read(BUFFER, 404) == b"\xff" * 400 + bytes(4)
    assert guest.stats().unclaimed == 100
    assert guest.stats().cold == 1


@pytest.mark.any_kvm
def test_a_failing_device_ends_the_machine_in_one_line(machine: Make) -> None:
    guest = machine("script")
    guest.bus.add(bus.PIO, PORT, 1, Recorder())  # without an answer to give
    guest.write_words(MAILBOX, OPERATIONS.index("in1"), PORT, 0, 0, 0)
    assert guest.run() == ("crash", 1)
    expected = r"pyvirt: vCPU 0: IndexError: pop from empty list \(.*\.py:\d+\); please report\n"
    assert re.fullmatch(expected, guest.log_text())


class Leaving:
    """A device that raises what only ends a thread."""

    def read(self, _offset: int, _size: int) -> int:
        raise SystemExit(3)

    def write(self, _offset: int, _size: int, _value: int) -> None:
        raise SystemExit(3)


@pytest.mark.any_kvm
def test_a_vcpu_thread_that_leaves_ends_the_machine(machine: Make) -> None:
    guest = machine("script")
    guest.bus.add(bus.PIO, PORT, 1, Leaving())
    guest.write_words(MAILBOX, OPERATIONS.index("in1"), PORT, 0, 0, 0)
    assert guest.run() == ("crash", 1)
    assert guest.log_text().startswith("pyvirt: vCPU 0: SystemExit: 3 (")
