"""C queue and Python model under the same traffic, honest and hostile: the same in every byte.

Two memories are written alike, and one queue serves each. After every step results, reasons and
all bytes of both memories must be equal; of honest traffic, every chain must arrive as it was sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from pyvirt.devices.virtio.queue import DESC_INDIRECT, DESC_NEXT, DESC_WRITE

from ....effort import tries
from .device_side import BrokenError, DeviceSide, ModelSide, NativeSide, Popped
from .mock_driver import Descriptor, Driver, Layout, Ram, Span, indirect_table

HIGH = 0x100000
REGIONS = [(0, 0x3000), (HIGH, 0x800), (HIGH + 0x800, 0x800)]
TABLES = 0x2000  # 16 indirect tables of 128 bytes
TABLE_SIZE = 128
BUFFERS = 0x2800

EDGES = [0, BUFFERS, 0x3000, HIGH, HIGH + 0x800, HIGH + 0x1000, 1 << 32, (1 << 64) - 16]
ADDRESSES = st.one_of(
    st.integers(BUFFERS, 0x2FFF),
    st.builds(lambda edge, by: (edge + by) % (1 << 64), st.sampled_from(EDGES), st.integers(-9, 9)),
    st.integers(0, (1 << 64) - 1),
)
LENGTHS = st.one_of(
    st.integers(0, 64), st.sampled_from([0x7FF, 0x800, 0x801, 1 << 31, (1 << 32) - 1])
)
KNOWN = DESC_NEXT | DESC_WRITE | DESC_INDIRECT
FLAGS = st.one_of(st.integers(0, 3), st.integers(0, KNOWN), st.integers(0, 0xFFFF))
INDEXES = st.one_of(st.integers(0, 17), st.integers(0, 0xFFFF))
GOOD_SPANS = st.one_of(
    st.tuples(st.integers(BUFFERS, 0x2F00), st.integers(0, 0x100)),
    st.tuples(st.integers(HIGH, HIGH + 0x700), st.integers(0, 0x100)),
)
SPANS = st.one_of(GOOD_SPANS, GOOD_SPANS, st.tuples(ADDRESSES, LENGTHS))
# Of a chain that is right but here and there.
NEARLY_NEXT = st.one_of(
    st.sampled_from([DESC_NEXT, DESC_NEXT | DESC_WRITE]), st.just(DESC_NEXT | DESC_WRITE), FLAGS
)
NEARLY_LINKED = st.one_of(st.just(1), st.just(1), st.integers(-1, 1), INDEXES)
LINKED = st.lists(st.tuples(SPANS, NEARLY_NEXT, NEARLY_LINKED), min_size=1, max_size=6)


def link(spans: list[tuple[Span, int, int]], start: int, ends: bool) -> list[Descriptor]:
    """Return descriptors from number `start` on, each followed by the next, nearly."""
    descriptors = []
    for place, (span, flags, follow) in enumerate(spans):
        kept = ~DESC_NEXT if ends and place + 1 == len(spans) else ~0
        following = start + place + follow if abs(follow) <= 1 else follow
        descriptors.append((*span, flags & kept, following & 0xFFFF))
    return descriptors


class Device(RuleBasedStateMachine):
    """One queue, twice, and what a device does with it."""

    honest = False

    rams: list[Ram]
    drivers: list[Driver]
    devices: list[DeviceSide]
    in_flight: list[Popped]
    sent: list[Popped]

    @initialize(
        bits=st.integers(0, 4),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        base=st.sampled_from([0, 0x10, 0x1000]),
    )
    def make(self, bits: int, event_idx: bool, indirect: bool, base: int) -> None:
        self.layout = Layout.at(base, 1 << bits, event_idx=event_idx, indirect=indirect)
        self.reset()

    @precondition(lambda self: self.devices[0].error)
    @rule()
    def reset(self) -> None:
        self.rams = [Ram(REGIONS), Ram(REGIONS)]
        self.drivers = [Driver(ram, self.layout) for ram in self.rams]
        self.devices = [NativeSide(self.rams[0], self.layout), ModelSide(self.rams[1], self.layout)]
        self.in_flight = []
        self.sent = []

    def both(self, act: Callable[[Any], Any], of: list[Any]) -> Any:
        """Do the same to both and return the one result."""
        first, second = (act(one) for one in of)
        assert first == second
        return first

    @rule()
    def pop(self) -> None:
        chain = self.both(pop_or_reason, self.devices)
        if isinstance(chain, str):
            assert not self.honest, chain
            event(re.sub(r"0x[0-9a-f]+|\d+", "#", chain))
        elif chain is not None:
            self.in_flight.append(chain)
            if self.honest:
                assert chain == self.sent.pop(0)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), fill=st.binary(min_size=1, max_size=1))
    def push(self, data: st.DataObject, fill: bytes) -> None:
        chain = data.draw(st.sampled_from(self.in_flight))
        self.in_flight.remove(chain)
        for ram in self.rams:
            for address, length in chain.writable:
                ram.view(address, length)[:] = fill * length
        written = sum(length for _, length in chain.writable)
        assert self.both(lambda device: device.push(chain.head, written), self.devices)

    @rule(head=INDEXES)
    def push_what_may_not_be_in_flight(self, head: int) -> None:
        chains = [chain for chain in self.in_flight if chain.head == head]
        assert self.both(lambda device: device.push(head, 1), self.devices) == bool(chains)
        for chain in chains:
            self.in_flight.remove(chain)

    @rule()
    def publish(self) -> None:
        self.both(lambda device: device.publish(), self.devices)
        self.both(lambda device: device.needs_notify(), self.devices)

    @rule()
    def enable_kicks(self) -> None:
        self.both(lambda device: device.enable_kicks(), self.devices)

    @rule()
    def disable_kicks(self) -> None:
        self.both(lambda device: device.disable_kicks(), self.devices)

    @rule(wanted=st.booleans())
    def want_interrupts(self, wanted: bool) -> None:
        for driver in self.drivers:
            if wanted:
                driver.enable_interrupts()
            else:
                driver.disable_interrupts()

    @invariant()
    def alike(self) -> None:
        if hasattr(self, "rams"):
            assert self.rams[0].buffer == self.rams[1].buffer
            self.both(lambda device: device.error, self.devices)
            in_flight = self.both(lambda device: device.in_flight, self.devices)
            assert in_flight == len(self.in_flight) <= self.layout.size


class HonestDriver(Device):
    """Every chain is foretold, and none is refused."""

    honest = True

    @precondition(lambda self: self.drivers[0].free)
    @rule(spans=st.lists(st.tuples(GOOD_SPANS, st.booleans()), min_size=1, max_size=6))
    def add(self, spans: list[tuple[Span, bool]]) -> None:
        free = self.drivers[0].free
        table = TABLES + free[-1] * TABLE_SIZE if self.layout.indirect else None
        if len(spans) <= len(free) and len(spans) % 2:
            table = None
        if table is None:
            del spans[len(free) :]
        readable = [span for span, write in spans if not write]
        writable = [span for span, write in spans if write]
        head = self.both(lambda driver: driver.add(readable, writable, table), self.drivers)
        self.sent.append(Popped(head, not_empty(readable), not_empty(writable)))

    @rule()
    def publish_chains(self) -> None:
        self.both(lambda driver: driver.publish(), self.drivers)

    @rule()
    def collect(self) -> None:
        self.both(lambda driver: driver.collect(), self.drivers)


class HostileDriver(Device):
    """Nearly right, in any field and in any place, gets furthest."""

    def offer(self, head: int, *, popped: bool = True) -> None:
        """Put a head into the ring as if all were well."""
        for driver in self.drivers:
            driver.ring.offer(driver.ring.avail_idx, head)
            driver.ring.avail_idx += 1
        if popped:
            self.pop()

    @rule(start=st.integers(0, 15), spans=LINKED, ends=st.booleans())
    def offer_chain(self, start: int, spans: list[tuple[Span, int, int]], ends: bool) -> None:
        size = self.layout.size
        start %= size
        for place, descriptor in enumerate(link(spans[:size], start, ends)):
            for driver in self.drivers:
                driver.ring.describe((start + place) % size, *descriptor)
        self.offer(start)

    @rule(
        head=st.integers(0, 15),
        table=st.integers(0, 15),
        spans=LINKED,
        ends=st.booleans(),
        more=st.sampled_from([0, 0, 0, 1, 8, 16, 32]),
    )
    def offer_table(
        self, head: int, table: int, spans: list[tuple[Span, int, int]], ends: bool, more: int
    ) -> None:
        address = TABLES + table * TABLE_SIZE
        for ram, driver in zip(self.rams, self.drivers, strict=True):
            size = indirect_table(ram, address, link(spans, 0, ends)) + more
            driver.ring.describe(head % self.layout.size, address, size, DESC_INDIRECT)
        self.offer(head % self.layout.size)

    @rule(index=st.integers(0, 15), span=SPANS, flags=FLAGS, following=INDEXES)
    def scribble_descriptor(self, index: int, span: Span, flags: int, following: int) -> None:
        for driver in self.drivers:
            driver.ring.describe(index % self.layout.size, *span, flags, following)

    @rule(head=INDEXES)
    def offer_again(self, head: int) -> None:
        self.offer(head, popped=False)

    @rule(by=st.one_of(st.integers(-1, 3), st.integers(0, 0xFFFF)))
    def jump(self, by: int) -> None:
        for driver in self.drivers:
            driver.ring.avail_idx += by

    @rule(address=st.integers(0, 0x2FF8), data=st.binary(min_size=1, max_size=8))
    def scribble(self, address: int, data: bytes) -> None:
        for ram in self.rams:
            ram.view(address, len(data))[:] = data

    @rule(start=st.integers(0, 15), length=st.integers(1, 6), write=st.booleans())
    def offer_loop(self, start: int, length: int, write: bool) -> None:
        size = self.layout.size
        length = min(length, size)
        flags = DESC_NEXT | DESC_WRITE * write
        for place in range(length):
            following = (start + (place + 1) % length) % size
            for driver in self.drivers:
                driver.ring.describe((start + place) % size, BUFFERS, 1, flags, following)
        self.offer(start % size)

    @rule(used_event=st.one_of(st.integers(0, 6), st.integers(0, 0xFFFF)), flags=st.integers(0, 3))
    def scribble_suppression(self, used_event: int, flags: int) -> None:
        for driver in self.drivers:
            driver.ring.used_event = used_event
            driver.ring.avail_flags = flags


def not_empty(spans: list[Span]) -> list[Span]:
    """Return what a device sees of them."""
    return [span for span in spans if span[1]]


def pop_or_reason(device: DeviceSide) -> Popped | str | None:
    """Return the chain, None, or the reason why the queue is broken."""
    try:
        return device.pop()
    except BrokenError as error:
        return str(error)


TestHonestDriver = HonestDriver.TestCase
TestHonestDriver.settings = settings(max_examples=tries(60), stateful_step_count=80)

TestHostileDriver = HostileDriver.TestCase
TestHostileDriver.settings = settings(max_examples=tries(200), stateful_step_count=30)
