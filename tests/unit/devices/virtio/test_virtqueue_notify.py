"""Notifications, both ways, with flags and with event indexes; for C and Python."""

from __future__ import annotations

from typing import Any

import pytest

from .device_side import SIDES, DeviceSide, serve, take
from .mock_driver import Driver, Layout, Ram

QUEUE = 0x1000
BUFFER = 0x8000


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Any:
    """Return the implementation under test."""
    return SIDES[request.param]


@pytest.fixture
def ram() -> Ram:
    return Ram([(0, 0x10000)])


def advance(driver: Driver, device: DeviceSide, count: int) -> None:
    """Serve `count` chains, so that all indexes stand there."""
    size = driver.ring.layout.size
    while count > 0:
        batch = min(size, count)
        for _ in range(batch):
            driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        device.needs_notify()
        driver.collect()
        count -= batch


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
class TestInterrupts:
    """Used buffer notifications (virtio 1.2, section 2.7.7)."""

    @staticmethod
    def queue(side: Any, ram: Ram, event_idx: bool) -> tuple[Driver, DeviceSide]:
        layout = Layout.at(QUEUE, 8, event_idx=event_idx)
        return Driver(ram, layout), side(ram, layout)

    def test_none_without_a_completion(self, side: Any, ram: Ram, event_idx: bool) -> None:
        driver, device = self.queue(side, ram, event_idx)
        driver.add([(BUFFER, 1)])
        driver.publish()
        device.publish()
        assert not device.needs_notify()
        [head] = take(device)
        device.push(head, 0)
        assert not device.needs_notify()

    def test_the_first_completion_is_told_of(self, side: Any, ram: Ram, event_idx: bool) -> None:
        driver, device = self.queue(side, ram, event_idx)
        driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        assert device.needs_notify()

    def test_once_for_a_batch(self, side: Any, ram: Ram, event_idx: bool) -> None:
        driver, device = self.queue(side, ram, event_idx)
        for _ in range(8):
            driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        assert device.needs_notify()
        assert not device.needs_notify()

    def test_none_when_the_driver_wants_none(self, side: Any, ram: Ram, event_idx: bool) -> None:
        driver, device = self.queue(side, ram, event_idx)
        driver.disable_interrupts()
        for _ in range(100):
            driver.add([(BUFFER, 1)])
            driver.publish()
            serve(device)
            assert not device.needs_notify()
            driver.collect()
        driver.enable_interrupts()
        driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        assert device.needs_notify()

    def test_the_other_suppression_is_not_looked_at(
        self, side: Any, ram: Ram, event_idx: bool
    ) -> None:
        driver, device = self.queue(side, ram, event_idx)
        if event_idx:
            driver.ring.avail_flags = 1
        else:
            driver.ring.used_event = 0x8000
        driver.add([(BUFFER, 1)])
        driver.publish()
        serve(device)
        assert device.needs_notify()


class TestEventIndex:
    """VIRTIO_F_EVENT_IDX, at each place of the circle."""

    @pytest.mark.parametrize("start", [0, 1, 7, 0x7FFC, 0xFFF8, 0xFFFC, 0xFFFF])
    def test_interrupt_at_the_entry_asked_for(self, side: Any, ram: Ram, start: int) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=True)
        driver, device = Driver(ram, layout), side(ram, layout)
        advance(driver, device, start)
        for batch in range(1, 9):
            for event in range(-9, 18):
                position = driver.position
                driver.ring.used_event = position + event
                for _ in range(batch):
                    driver.add([(BUFFER, 1)])
                driver.publish()
                serve(device)
                assert device.needs_notify() == (0 <= event < batch)
                driver.collect()

    @pytest.mark.parametrize("start", [0, 5, 0xFFFE, 0xFFFF])
    def test_kick_at_the_next_entry(self, side: Any, ram: Ram, start: int) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=True)
        driver, device = Driver(ram, layout), side(ram, layout)
        advance(driver, device, start)
        for _ in range(5):
            assert not device.enable_kicks()
            assert driver.ring.avail_event == driver.position & 0xFFFF
            driver.add([(BUFFER, 1)])
            assert driver.publish()
            device.disable_kicks()
            driver.add([(BUFFER, 1)])
            assert not driver.publish()
            serve(device)
            driver.collect()

    def test_flags_stay_zero(self, side: Any, ram: Ram) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=True)
        driver, device = Driver(ram, layout), side(ram, layout)
        device.disable_kicks()
        assert driver.ring.used_flags == 0
        device.enable_kicks()
        assert driver.ring.used_flags == 0


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
class TestKicks:
    """Available buffer notifications (virtio 1.2, section 2.7.10)."""

    def test_the_first_chain_is_kicked_for(self, side: Any, ram: Ram, event_idx: bool) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=event_idx)
        driver, _ = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 1)])
        assert driver.publish()

    def test_none_while_disabled(self, side: Any, ram: Ram, event_idx: bool) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=event_idx)
        driver, device = Driver(ram, layout), side(ram, layout)
        advance(driver, device, 1)
        device.disable_kicks()
        for _ in range(20):
            driver.add([(BUFFER, 1)])
            assert not driver.publish()
            serve(device)
            driver.collect()
        assert not device.enable_kicks()
        driver.add([(BUFFER, 1)])
        assert driver.publish()

    def test_what_came_meanwhile_is_told(self, side: Any, ram: Ram, event_idx: bool) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=event_idx)
        driver, device = Driver(ram, layout), side(ram, layout)
        assert not device.enable_kicks()
        device.disable_kicks()
        driver.add([(BUFFER, 1)])
        driver.publish()
        assert device.enable_kicks()
        serve(device)
        assert not device.enable_kicks()

    def test_what_is_known_and_not_taken_is_told(
        self, side: Any, ram: Ram, event_idx: bool
    ) -> None:
        layout = Layout.at(QUEUE, 8, event_idx=event_idx)
        driver, device = Driver(ram, layout), side(ram, layout)
        driver.add([(BUFFER, 1)])
        driver.add([(BUFFER, 1)])
        driver.publish()
        assert device.pop()
        driver.ring.avail_idx = 1
        assert device.enable_kicks()
