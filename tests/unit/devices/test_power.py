"""The registers by which a guest ends itself, and the ports for people who run guests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest
from pyvirt.devices.debug import BochsPowerOff, BootTimer, DebugExit, PanicPort
from pyvirt.devices.power import I8042, AcpiPower, EventDevice
from pyvirt.vmm import layout


class Power:
    """ACPI's registers, addressed by port, and what they did."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.device = AcpiPower(
            lambda: self.done.append("shutdown"), lambda: self.done.append("reset")
        )

    def write(self, port: int, value: int) -> list[str]:
        self.device.write(port - layout.SLEEP_CONTROL, 1, value)
        return self.done


def test_registers_are_where_the_tables_say() -> None:
    assert layout.SLEEP_STATUS == layout.SLEEP_CONTROL + 1
    assert layout.RESET == layout.SLEEP_CONTROL + AcpiPower.SIZE - 1
    assert Power().write(layout.RESET, layout.RESET_VALUE) == ["reset"]
    assert Power().write(layout.SLEEP_CONTROL, layout.SLEEP_CONTROL_S5) == ["shutdown"]


def test_only_s5_with_sleep_enable_shuts_down() -> None:
    done = {value: Power().write(layout.SLEEP_CONTROL, value) for value in range(256)}
    off = [value for value in range(256) if value & 0x20 and value >> 2 & 7 == 5]
    assert done == {value: ["shutdown"] if value in off else [] for value in range(256)}


def test_only_the_reset_value_resets() -> None:
    done = {value: Power().write(layout.RESET, value) for value in range(256)}
    assert done == {value: ["reset"] if value == 1 else [] for value in range(256)}


def test_sleep_status_takes_no_orders() -> None:
    assert not any(Power().write(layout.SLEEP_STATUS, value) for value in range(256))


def test_reading_does_nothing() -> None:
    power = Power()
    assert [power.device.read(offset, 1) for offset in range(AcpiPower.SIZE)] == [0, 0, 0]
    assert power.done == []


def test_keyboard_controller_knows_one_command() -> None:
    resets: list[int] = []
    for value in range(256):
        I8042(partial(resets.append, value)).write(0, 1, value)
    assert resets == [0xFE]


def test_keyboard_controller_is_ready_and_absent() -> None:
    status = I8042(lambda: None).read(0, 1)
    assert status & 2 == 0, "reboot=k waits while the input buffer is full"
    assert status & 1 == 1, "Linux's driver finds output that it cannot empty, and gives up"


@pytest.mark.parametrize(
    ("value", "status"), [(0, 0), (1, 1), (255, 255), (256, 0), (0xFFFF_FF07, 7)]
)
def test_debug_exit_gives_eight_bits(value: int, status: int) -> None:
    seen: list[int] = []
    device = DebugExit(seen.append)
    assert device.read(0, 1) & 0xFF == 0xFF
    device.write(0, 4, value)
    assert seen == [status]


def test_boot_timer_tells_its_stage() -> None:
    seen: list[int] = []
    device = BootTimer(seen.append)
    assert device.read(0, 1) & 0xFF == 0xFF
    device.write(0, 1, BootTimer.INIT)
    device.write(0, 1, 0x102)
    assert seen == [BootTimer.INIT, 2]


@pytest.fixture
def line() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_the_power_button_is_an_edge_and_a_bit_that_a_read_clears(line: int) -> None:
    events = EventDevice(line)
    assert events.read(0, 4) == 0
    events.press_power_button()
    assert os.eventfd_read(line) == 1
    assert events.read(0, 4) == layout.GED_POWER_BUTTON
    assert events.read(0, 4) == 0
    with pytest.raises(BlockingIOError):
        os.eventfd_read(line)


def test_events_stay_until_they_are_read_whole(line: int) -> None:
    events = EventDevice(line)
    events.press_power_button()
    events.write(0, 4, 0xFFFF_FFFF)
    assert [events.read(0, 1), events.read(1, 1), events.read(0, 2)] == [1, 0, 1]
    assert events.read(0, 4) == 1
    events.press_power_button()
    events.reset()
    assert events.read(0, 4) == 0


def test_the_selector_is_where_the_tables_say() -> None:
    assert (EventDevice.SIZE, EventDevice.POWER_BUTTON) == (
        layout.GED_SELECTOR_SIZE,
        layout.GED_POWER_BUTTON,
    )


@pytest.mark.parametrize(
    ("value", "told"), [(0, []), (1, [False]), (2, [True]), (3, [False]), (4, []), (0xFC, [])]
)
def test_a_panic_is_told_with_what_comes_next(value: int, told: list[bool]) -> None:
    seen: list[bool] = []
    device = PanicPort(seen.append)
    assert device.read(0, 1) == PanicPort.PANICKED | PanicPort.CRASH_LOADED
    device.write(0, 1, value)
    assert seen == told


@pytest.mark.parametrize(
    ("word", "times"),
    [(b"Shutdown", 1), (b"SShutdown", 1), (b"ShutShutdown", 1), (b"Shutdow", 0), (b"shutdown", 0),
     (b"ShutdownShutdown", 2), (b"Shutdwn", 0)],
)  # fmt: skip
def test_the_word_that_switches_a_bochs_off(word: bytes, times: int) -> None:
    seen: list[None] = []
    device = BochsPowerOff(lambda: seen.append(None))
    assert device.read(0, 1) & 0xFF == 0xFF
    for letter in word:
        device.write(0, 1, letter)
    assert len(seen) == times


def test_a_new_generation_is_an_event_of_its_own() -> None:
    irq = os.eventfd(0, os.EFD_NONBLOCK)
    events = EventDevice(irq)
    events.tell_generation()
    assert os.eventfd_read(irq) == 1
    assert events.read(0, 4) == layout.GED_GENERATION == EventDevice.GENERATION
    assert events.read(0, 4) == 0
    os.close(irq)
