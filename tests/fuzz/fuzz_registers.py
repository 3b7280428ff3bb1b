"""The registers of virtio-mmio, written and read by a driver that keeps no rule.

Instructions: what is done and, for an access, its place, size and value.
"""

from __future__ import annotations

import functools

from pyvirt.devices.virtio import registers as r
from pyvirt.vmm.memory import GuestMemory

from ..unit.devices.virtio.bench import OFFERED, RUNNING, Bench, take
from .input import Input

_REGISTERS = (
    *(r.DEVICE_FEATURES_SEL, r.DRIVER_FEATURES, r.DRIVER_FEATURES_SEL, r.QUEUE_SEL, r.QUEUE_NUM),
    *(r.QUEUE_READY, r.QUEUE_NOTIFY, r.INTERRUPT_ACK, r.STATUS, *r.QUEUE_ADDRESSES),
)
_STEPS = (r.ACKNOWLEDGE, r.DRIVER, r.FEATURES_OK, r.DRIVER_OK)
_SIZES = (1, 2, 4, 8)


@functools.cache
def memory() -> GuestMemory:
    return GuestMemory(16 << 20)


def access(bench: Bench, source: Input, *, writes: bool) -> None:
    choice = source.take(1)
    size = 4 if choice < 128 else _SIZES[choice % 4]
    place = _REGISTERS[choice % len(_REGISTERS)] if choice & 1 else source.take(2) % r.PAGE_SIZE
    place = min(place, r.PAGE_SIZE - size)
    if writes:
        bench.set(place, source.take(size), size)
    else:
        bench.get(place, size)


def set_queue(bench: Bench, source: Input) -> None:
    """Describe a queue as a driver does that means well, in part."""
    choice = source.take(1)
    base = None if choice < 128 else source.take(2) << 12
    bench.set_queue(choice % 3, 1 << choice // 4 % 10, base, ready=choice // 64 & 1 ^ 1)


def check(bench: Bench, before: int) -> None:
    status = bench.transport.status
    assert status == 0 or before & ~status == 0
    reached = [bool(status & bit) for bit in _STEPS]
    assert reached == sorted(reached, reverse=True)
    activation = bench.device.activation
    if activation is not None:
        assert status & RUNNING == RUNNING
        assert activation.features & ~OFFERED == 0
        assert activation.features & r.VERSION_1
        assert len(activation.queues) == len(bench.device.queue_sizes)
    elif status & r.DRIVER_OK:
        assert status & r.NEEDS_RESET


def fuzz(data: bytes) -> None:
    source = Input(data)
    bench = Bench(memory())
    try:
        while source:
            before = bench.transport.status
            what = source.take(1) % 8
            if what < 3:
                access(bench, source, writes=True)
            elif what == 3:
                access(bench, source, writes=False)
            elif what == 4:
                bench.set(r.STATUS, before | _STEPS[source.take(1) % 4])
            elif what == 5:
                bench.accept(source.take(2) << 20 & OFFERED | r.VERSION_1)
            elif what == 6:
                set_queue(bench, source)
            elif source.take(1) % 2:
                bench.device.space[15] ^= 1
                bench.transport.config_changed()
            else:
                bench.transport.reset()
            check(bench, before)
        bench.transport.report()
        assert all("\n" not in line for line in bench.log)
        take(bench.irq_fd)
    finally:
        bench.close()
