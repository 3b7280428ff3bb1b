"""Every virtio device can be saved in the middle of its work, and another goes on where it stood.

Nothing that a driver has asked for is lost, or done twice, whatever the moment; and a state that
somebody has changed is refused, or makes a device that works (state.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import BackendError, StateError
from pyvirt.state import Fields

from .bench import RING_STEP, RINGS
from .every_device import EVERY, Subject
from .mutants import mutants
from .queue_bench import DATA, QueueBench
from .test_conformance import SECONDS, TRANSPORT, _ram, _wait_for, check_as_new, offered

ROOM = 0x1000  # of a chain in `DATA`


class Pair:
    """Devices over the same memory, one after the other, and the driver that knows them all."""

    def __init__(self, subject: Subject, stack: ExitStack) -> None:
        self.subject = subject
        self.ram = _ram(stack, shared=subject.shared)
        self._stack = stack
        self._waiting: dict[int, int] = {}  # chains by their queues
        self.now = self.make()
        self.features = offered(self.now) & ~TRANSPORT

    def make(self) -> QueueBench:
        """Return another device, that no driver has touched."""
        bench = QueueBench(self.subject.make(self._stack), self.ram)
        self._stack.callback(bench.close)
        return bench

    def start(self, *, event_idx: bool = True) -> None:
        self.now.start(self.features, event_idx=event_idx, indirect=True)
        self._waiting = dict.fromkeys(self.now.drivers, 0)

    def offer(self, index: int, count: int) -> None:
        """Add chains to a queue, as far as there is room, and tell the device."""
        driver = self.now.drivers[index]
        text, room = self.subject.traffic[index]
        at = DATA + index * 0x4_0000
        for _ in range(count):
            if len(driver.free) < 2:
                break
            place = at + driver.position % 16 * ROOM
            self.ram.view(place, ROOM)[:] = text.ljust(ROOM, b"\0")
            readable = [(place, len(text))] if text else []
            writable = [(place + len(text), room)] if room else []
            driver.add(readable, writable)
            self._waiting[index] += 1
        self.now.publish(index)

    def offer_everywhere(self, count: int) -> None:
        for index in self.subject.traffic:
            if index in self.now.drivers:
                self.offer(index, count)

    def collect(self) -> None:
        """Take back what is used; the driver knows what it has asked for, and once."""
        assert not self.now.broken, self.now.log
        for index, driver in self.now.drivers.items():
            driver.enable_interrupts()
            self._waiting[index] -= len(driver.collect())

    def finish(self) -> None:
        """See that everything comes back of the queues that keep nothing."""
        waited = self.subject.completes
        if waited is None:
            waited = tuple(q for q in self.subject.served if q not in self.subject.keeps)

        def done() -> bool:
            self.collect()
            return not any(self._waiting[index] for index in waited)

        _wait_for(done)

    def save(self) -> dict[str, Any]:
        """Return the state, as a file would have it, of a device that stands."""
        self.now.transport.drain(SECONDS)
        found: dict[str, Any] = json.loads(json.dumps(self.now.transport.save()))
        self._check_standing(found)
        return found

    def _check_standing(self, state: dict[str, Any]) -> None:
        """See that the rings are as the state says, and that nothing is in flight."""
        for index, driver in self.now.drivers.items():
            queue = state["queues"][index]
            assert queue["next_used"] == driver.ring.used_idx == queue["next_avail"]

    def restore(self, state: dict[str, Any]) -> None:
        """Let another device go on."""
        before, self.now = self.now, self.make()
        self.now.drivers = before.drivers
        fields = Fields(state)
        self.now.transport.restore(fields)
        fields.done()
        assert self.now.transport.save() == state
        self.now.transport.resume()


@pytest.fixture(params=EVERY)
def subject(request: pytest.FixtureRequest) -> Subject:
    return EVERY[request.param]


@pytest.fixture
def pair(subject: Subject) -> Iterator[Pair]:
    with ExitStack() as stack:
        pair = Pair(subject, stack)
        yield pair


@pytest.mark.parametrize("event_idx", [False, True])
def test_another_device_goes_on(pair: Pair, event_idx: bool) -> None:
    pair.start(event_idx=event_idx)
    pair.offer_everywhere(3)
    pair.finish()
    for count in range(1, 6):
        pair.offer_everywhere(count)
        pair.restore(pair.save())
        assert pair.now.get(r.INTERRUPT_STATUS) & r.INTERRUPT_USED
        assert pair.now.interrupts() > 0
        pair.finish()
        pair.offer_everywhere(2)
        pair.finish()


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_device_itself_goes_on(pair: Pair, event_idx: bool) -> None:
    pair.start(event_idx=event_idx)
    for count in range(1, 6):
        pair.offer_everywhere(count)
        before = pair.save()
        assert pair.save() == before
        pair.now.transport.resume()
        pair.finish()
        pair.offer_everywhere(2)
        pair.finish()
    # And once more, for it has become another meanwhile.
    pair.restore(pair.save())
    pair.offer_everywhere(2)
    pair.finish()


def test_a_kick_that_came_while_it_stood(pair: Pair) -> None:
    pair.start()
    pair.finish()
    state = pair.save()
    pair.offer_everywhere(3)  # as a vCPU would have just before it stopped
    pair.restore(state)
    pair.finish()


STAGES = [
    0,
    r.ACKNOWLEDGE,
    r.ACKNOWLEDGE | r.DRIVER,
    r.ACKNOWLEDGE | r.DRIVER | r.FEATURES_OK,
    r.ACKNOWLEDGE | r.FAILED,
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_driver_that_has_only_begun(pair: Pair, stage: int) -> None:
    bench = pair.now
    for bit in (r.ACKNOWLEDGE, r.DRIVER, r.FEATURES_OK, r.FAILED):
        if stage & bit:
            if bit == r.FEATURES_OK:
                bench.accept(pair.features | r.VERSION_1)
            bench.set_status(bit)
    bench.set(r.QUEUE_SEL, 1)
    bench.set(r.DEVICE_FEATURES_SEL, 1)
    assert bench.get(r.STATUS) == stage
    page = bytes(bench.map)
    pair.restore(pair.save())
    assert bytes(pair.now.map) == page
    if stage & r.FEATURES_OK:
        # It goes on from there.
        for index in range(len(pair.now.device.queue_sizes)):
            pair.now.set_queue(index, 2)
        pair.now.set_status(r.DRIVER_OK)
        assert not pair.now.broken
    pair.start()
    pair.offer_everywhere(2)
    pair.finish()


def test_a_device_that_needs_a_reset(pair: Pair) -> None:
    pair.start()
    pair.now.transport.break_device("for a test")
    state = pair.save()
    assert state["status"] & r.NEEDS_RESET
    pair.restore(state)
    assert pair.now.broken
    assert pair.now.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG
    pair.start()
    pair.offer_everywhere(2)
    pair.finish()


def test_a_driver_may_begin_anew_after_it(pair: Pair) -> None:
    pair.start()
    pair.offer_everywhere(3)
    pair.restore(pair.save())
    pair.start()
    pair.offer_everywhere(3)
    pair.finish()


def test_a_machine_may_be_reset_before_it_has_begun(pair: Pair) -> None:
    pair.start()
    pair.offer_everywhere(3)
    state = pair.save()
    pair.now = pair.make()
    pair.now.transport.restore(Fields(state))
    pair.now.transport.drain(SECONDS)
    pair.now.transport.reset()
    pair.now.transport.resume()
    assert pair.now.get(r.STATUS) == 0
    pair.start()
    pair.offer_everywhere(3)
    pair.finish()


def test_nothing_happens_before_it_is_resumed(pair: Pair) -> None:
    pair.start()
    pair.offer_everywhere(3)
    state = pair.save()
    rings = bytes(pair.ram.view(RINGS, RING_STEP * len(state["queues"])))
    pair.now = pair.make()
    pair.now.transport.restore(Fields(state))
    for fd in pair.now.kicks:
        pair.now.transport.kick()
        assert fd
    assert bytes(pair.ram.view(RINGS, RING_STEP * len(state["queues"]))) == rings
    assert pair.now.interrupts() == 0


@given(st.sampled_from(sorted(EVERY)), st.data())
@settings(max_examples=150, deadline=None)
def test_a_state_that_somebody_has_changed(name: str, data: st.DataObject) -> None:
    """It is refused in a line, or makes a device that serves, or breaks, and can be reset."""
    with ExitStack() as stack:
        pair = Pair(EVERY[name], stack)
        pair.start()
        pair.offer_everywhere(2)
        state = data.draw(mutants(pair.save()))
        pair.now = pair.make()
        fields = Fields(state)
        try:
            pair.now.transport.restore(fields)
            fields.done()
        except StateError as error:
            assert "\n" not in str(error)  # noqa: PT017
            return
        pair.now.transport.resume()
        pair.now.transport.kick()
        try:
            pair.now.transport.drain(SECONDS)
            pair.now.transport.save()
            pair.now.transport.resume()
        except BackendError as error:
            # A used ring that is elsewhere may say for ever that something is not completed.
            assert "\n" not in str(error)  # noqa: PT017
        check_as_new(pair.now)


QUEUE = {
    "num": 16,
    "ready": True,
    "desc": RINGS,
    "driver": RINGS + 0x4000,
    "device": RINGS + 0x8000,
}
QUEUE |= {"next_avail": 0, "next_used": 0}
PLACE = "virtio-rng r: the driver's queue 0 has a size or an address that cannot be"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device_type": 2}, "device_type: this device is a 4"),
        ({"status": r.DRIVER_OK}, "status: 0x4 is none that a driver comes to"),
        ({"status": 0x1F}, "status: 0x1f is none that a driver comes to"),
        ({"status": 0xD}, "status: 0xd is none that a driver comes to"),
        ({"interrupt_status": 4}, "interrupt_status: 4 is not between 0 and 3"),
        ({"driver_features": 0}, "driver_features: the driver does not accept VERSION_1"),
        (
            {"driver_features": r.VERSION_1 | 1 << 50},
            "driver_features: the guest uses features that there are not here: 0x4000000000000",
        ),
        (
            {"offered": r.EVENT_IDX},
            "driver_features: the guest uses features that there are not here: 0x110000000",
        ),
        ({"driver_strays": True}, "driver_features: the driver accepts features that were not"),
        ({"queues": []}, "queues: has 0 entries, not 1"),
        ({"queues": [QUEUE, QUEUE]}, "queues: has 2 entries, and 1 are the most"),
        ({"queues": [QUEUE | {"num": 3}]}, f"queues: {PLACE}"),
        ({"queues": [QUEUE | {"num": 128}]}, f"queues: {PLACE}"),
        ({"queues": [QUEUE | {"desc": RINGS + 8}]}, f"queues: {PLACE}"),
        ({"queues": [QUEUE | {"device": 1 << 63}]}, f"queues: {PLACE}"),
        (
            {"queues": [QUEUE | {"next_avail": 70000}]},
            "queues.0.next_avail: 70000 is not between 0 and 65535",
        ),
        ({"config": "00"}, "config: has 1 bytes, not 0"),
        ({"device": {"seed": 1}}, "device.seed: is no field that this pyvirt knows"),
        ({"colour": 1}, "colour: is no field that this pyvirt knows"),
    ],
)
def test_a_transport_that_cannot_be(change: dict[str, Any], text: str) -> None:
    with ExitStack() as stack:
        pair = Pair(EVERY["rng"], stack)
        pair.start()
        state = pair.save()
        assert state["queues"] == [QUEUE]
        with pytest.raises(StateError) as caught:
            pair.restore(state | change)
        assert str(caught.value).startswith(f"state: {text}")
