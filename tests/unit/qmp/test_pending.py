"""Events on their way to the server: what is held back, coalesced and dropped, by a made clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyvirt.qmp import events
from pyvirt.qmp.pending import INTERVAL_S, QUEUE_MAX, Pending


class Bench:
    """Pending events, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pending = Pending(lambda: self.now)

    def put(self, name: str, **data: object) -> bool:
        return self.pending.put(name, data)

    def take(self) -> list[Any]:
        """Return the names and data of what is due."""
        found = [json.loads(event) for event in self.pending.take()]
        return [(event["event"], event["data"]) for event in found]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_first_goes_at_once_and_the_last_when_the_second_is_over(bench: Bench) -> None:
    assert bench.put("GUEST_PANICKED", action=0)
    assert bench.take() == [("GUEST_PANICKED", {"action": 0})]
    assert bench.pending.patience() is None
    woken = [bench.put("GUEST_PANICKED", action=n) for n in range(1, 10_000)]
    assert woken.count(True) == 1, "once, for the time to be kept"
    assert bench.take() == []
    assert bench.pending.patience() == INTERVAL_S
    bench.now += INTERVAL_S / 2
    assert bench.take() == []
    bench.now += INTERVAL_S / 2
    assert bench.pending.patience() == 0
    assert bench.take() == [("GUEST_PANICKED", {"action": 9999})]
    assert bench.take() == []
    assert bench.pending.patience() is None


def test_the_interval_begins_anew_with_each_that_is_told(bench: Bench) -> None:
    told = 0
    for n in range(100):
        bench.put("GUEST_PANICKED", action=n)
        told += len(bench.take())
        bench.now += INTERVAL_S / 10
    assert told == 10


def test_what_is_held_back_stays_the_next_even_if_nobody_takes_it(bench: Bench) -> None:
    for n in range(3):
        bench.put("GUEST_PANICKED", action=n)
    bench.now += 10 * INTERVAL_S
    bench.put("GUEST_PANICKED", action=3)
    assert bench.take() == [("GUEST_PANICKED", {"action": n}) for n in (0, 3)]


def test_one_more_replaces_what_is_due_and_not_taken(bench: Bench) -> None:
    for n in range(2):
        bench.put("GUEST_PANICKED", action=n)
    bench.take()
    bench.now += INTERVAL_S
    bench.put("GUEST_PANICKED", action=2)
    assert bench.take() == [("GUEST_PANICKED", {"action": 2})]


def test_the_first_that_is_due_is_waited_for(bench: Bench) -> None:
    for name in ("net0", "net1"):
        for _ in range(2):
            bench.put("BLOCK_IO_ERROR", device=name)
        bench.now += INTERVAL_S / 2
    assert bench.pending.patience() == 0
    assert len(bench.take()) == 3
    assert bench.pending.patience() == INTERVAL_S / 2


def test_each_device_and_event_has_its_own_second(bench: Bench) -> None:
    sent: list[tuple[str, dict[str, object]]] = [
        ("NIC_RX_FILTER_CHANGED", {"name": "net0", "path": "net0"}),
        ("NIC_RX_FILTER_CHANGED", {"name": "net1", "path": "net1"}),
        ("BLOCK_IO_ERROR", {"device": "net0", "reason": "a"}),
        ("GUEST_PANICKED", {}),
        ("GUEST_CRASHLOADED", {}),
    ]
    for _ in range(3):
        for name, data in sent:
            bench.pending.put(name, data)
    assert bench.take() == sent
    bench.now += INTERVAL_S
    assert bench.take() == sent


@pytest.mark.parametrize("event", events.TABLE, ids=lambda event: event.name)
def test_what_a_guest_can_cause_is_limited(event: Any) -> None:
    by_guest = {
        "BLOCK_IO_ERROR",
        "GUEST_PANICKED",
        "GUEST_CRASHLOADED",
        "NIC_RX_FILTER_CHANGED",
        "BALLOON_CHANGED",
        "WATCHDOG",
    }
    by_clients_or_once = {
        *("STOP", "RESUME", "SHUTDOWN", "RESET", "POWERDOWN"),
        *("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"),
    }
    assert event.name in (by_guest if event.is_limited else by_clients_or_once)
    assert not event.of or event.of in {field.name for field in event.data}


def test_others_are_not_held_back(bench: Bench) -> None:
    for _ in range(10):
        bench.put("STOP")
        bench.put("RESUME")
    assert [name for name, _ in bench.take()] == ["STOP", "RESUME"] * 10


def test_a_full_queue_drops_the_oldest(bench: Bench) -> None:
    for n in range(QUEUE_MAX + 5):
        bench.put("DEVICE_DELETED", device=str(n))
    bench.put("SHUTDOWN")
    found = bench.take()
    assert len(found) == QUEUE_MAX
    assert found[0] == ("DEVICE_DELETED", {"device": "6"})
    assert found[-1] == ("SHUTDOWN", {})
    assert bench.pending.take_dropped() == 6
    assert bench.pending.take_dropped() == 0


def test_what_is_held_back_goes_before_the_end(bench: Bench) -> None:
    for n in range(3):
        bench.put("GUEST_PANICKED", action=n)
    bench.put("SHUTDOWN")
    assert [name for name, _ in bench.take()] == ["GUEST_PANICKED"] * 2 + ["SHUTDOWN"]


def test_ids_that_come_and_go_are_forgotten(bench: Bench) -> None:
    for n in range(10_000):
        bench.put("BLOCK_IO_ERROR", device=f"disk{n}")
        bench.take()
        bench.now += INTERVAL_S / 100
    assert len(bench.pending._held) <= 200


def test_what_is_due_is_not_forgotten(bench: Bench) -> None:
    for _ in range(2):
        bench.put("BLOCK_IO_ERROR", device="due")
    bench.now += INTERVAL_S
    for n in range(100):
        bench.put("BLOCK_IO_ERROR", device=f"disk{n}")
    assert [data["device"] for _, data in bench.take()].count("due") == 2
