"""The registers by which a guest ends itself, and the ports for people who run guests."""

from __future__ import annotations

from functools import partial

import pytest
from pyvirt.devices.debug import BootTimer, DebugExit
from pyvirt.devices.power import I8042, AcpiPower
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
