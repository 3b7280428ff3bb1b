"""A watchdog's registers start and stop its timer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from pyvirt.devices.watchdog import AcpiWatchdog, Ib700
from pyvirt.errors import StateError
from pyvirt.state import Fields

PATIENCE = 20.0
S = 10**9


@pytest.fixture
def ib700() -> Iterator[Ib700]:
    dog = Ib700(lambda: None)
    yield dog
    dog.timer.close()


@pytest.fixture
def acpi() -> Iterator[AcpiWatchdog]:
    dog = AcpiWatchdog(lambda: None)
    yield dog
    dog.timer.close()


@pytest.mark.parametrize("value", range(16))
def test_ib700_has_qemus_times(ib700: Ib700, value: int) -> None:
    ib700.write(Ib700.START, 1, 0xF0 | value)
    assert ib700.timer.left() == (30 - 2 * value) * S
    ib700.write(Ib700.STOP, 1, 0)
    assert ib700.timer.left() is None


def test_ib700_has_nothing_between_its_ports(ib700: Ib700) -> None:
    ib700.write(1, 1, 0)
    assert ib700.timer.left() is None
    assert ib700.read(Ib700.START, 1) & 0xFF == 0xFF


def test_acpi_registers(acpi: AcpiWatchdog) -> None:
    def read(register: int) -> int:
        return acpi.read(register, 2)

    assert [read(register) for register in range(8)] == [0, 0, 0, 0, 300, 0, 0, 0]
    acpi.write(AcpiWatchdog.KICK, 1, 1)
    assert read(AcpiWatchdog.RUN) == 0
    acpi.write(AcpiWatchdog.COUNTDOWN, 2, 20)
    acpi.write(AcpiWatchdog.RUN, 1, 1)
    assert (read(AcpiWatchdog.RUN), read(AcpiWatchdog.LEFT), acpi.timer.left()) == (1, 20, 2 * S)
    acpi.write(AcpiWatchdog.COUNTDOWN, 2, 0)
    assert (read(AcpiWatchdog.LEFT), read(AcpiWatchdog.COUNTDOWN)) == (20, 1)
    acpi.write(AcpiWatchdog.KICK, 1, 1)
    assert read(AcpiWatchdog.LEFT) == 1
    acpi.write(AcpiWatchdog.RUN, 1, 0)
    assert (read(AcpiWatchdog.RUN), read(AcpiWatchdog.LEFT)) == (0, 0)
    acpi.write(AcpiWatchdog.COUNTDOWN, 2, 0x1_FFFF)
    assert read(AcpiWatchdog.COUNTDOWN) == 0xFFFF


def test_that_it_has_fired_is_told_after_a_reset() -> None:
    fired = threading.Event()
    dog = AcpiWatchdog(fired.set)
    dog.timer.thaw()
    dog.write(AcpiWatchdog.COUNTDOWN, 2, 1)
    dog.write(AcpiWatchdog.RUN, 1, 1)
    assert fired.wait(PATIENCE)
    assert (dog.read(AcpiWatchdog.FIRED, 1), dog.read(AcpiWatchdog.RUN, 1)) == (1, 0)
    dog.reset()
    assert (dog.read(AcpiWatchdog.FIRED, 1), dog.read(AcpiWatchdog.COUNTDOWN, 2)) == (1, 300)
    dog.write(AcpiWatchdog.FIRED, 1, 0)
    assert dog.read(AcpiWatchdog.FIRED, 1) == 1
    dog.write(AcpiWatchdog.FIRED, 1, 1)
    assert dog.read(AcpiWatchdog.FIRED, 1) == 0
    dog.timer.close()


def test_a_reset_stops_it(ib700: Ib700) -> None:
    ib700.write(Ib700.START, 1, 0)
    ib700.reset()
    assert ib700.timer.left() is None


@pytest.mark.parametrize("runs", [False, True])
def test_state(acpi: AcpiWatchdog, runs: bool) -> None:
    acpi.write(AcpiWatchdog.COUNTDOWN, 2, 7)
    acpi.write(AcpiWatchdog.RUN, 1, runs)
    acpi.has_fired = True
    other = AcpiWatchdog(lambda: None)
    other.write(AcpiWatchdog.RUN, 1, not runs)
    fields = Fields(acpi.save())
    other.restore(fields)
    fields.done()
    assert other.save() == acpi.save()
    other.timer.close()


@pytest.mark.parametrize(
    ("field", "value"), [("left", -1), ("left", 1 << 49), ("count", 0), ("fired", 1), ("runs", "")]
)
def test_a_state_that_cannot_be(acpi: AcpiWatchdog, field: str, value: object) -> None:
    with pytest.raises(StateError, match=field):
        acpi.restore(Fields({**acpi.save(), field: value}))
