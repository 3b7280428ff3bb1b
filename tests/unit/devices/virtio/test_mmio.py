"""The virtio-mmio transport: what a driver may do, must do, and ought not to do.

Each rule of devices/virtio/mmio.py is a test; a state machine of Hypothesis writes what it likes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from struct import pack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyvirt.devices.virtio import registers as r
from pyvirt.errors import BackendError
from pyvirt.native import ffi, lib
from pyvirt.vmm.memory import GuestMemory

from .bench import NEGOTIATED, OFFERED, RING_STEP, RINGS, RUNNING, Bench, Notes, take

REGISTERS = range(0, r.CONFIG, 4)
BROKEN = RUNNING | r.NEEDS_RESET
WHY = ffi.new("char[]", b"the driver did it")


@pytest.fixture
def bench(memory: GuestMemory) -> Iterator[Bench]:
    bench = Bench(memory)
    yield bench
    bench.close()


@pytest.fixture
def spared(memory: GuestMemory) -> Iterator[tuple[Bench, list[bytes]]]:
    """A bench whose guest reads the page without exits, and the page after each change."""
    pages: list[bytes] = []

    def exclusively(change: Callable[[], None]) -> None:
        before = bytes(made.map[:])
        change()
        pages.extend((before, bytes(made.map[:])))

    made = Bench(memory, exclusively=exclusively)
    yield made, pages
    made.close()


def test_identity(bench: Bench) -> None:
    assert bytes(bench.map[:4]) == b"virt"
    assert bench.get(r.VERSION) == 2
    assert bench.get(r.DEVICE_ID) == 42
    assert bench.get(r.VENDOR_ID) == r.VENDOR
    assert bench.get(r.SHM_LENGTH, 8) == bench.get(r.SHM_BASE, 8) == (1 << 64) - 1


def test_after_reset_everything_is_zero_but_the_first_words_of_what_is_selected(
    bench: Bench,
) -> None:
    fresh = bytes(bench.map[: r.CONFIG])
    assert bench.get(r.QUEUE_NUM_MAX) == 256
    assert bench.get(r.DEVICE_FEATURES) == OFFERED & r.WORD
    for offset in (r.STATUS, r.INTERRUPT_STATUS, r.QUEUE_READY, r.CONFIG_GENERATION):
        assert bench.get(offset) == 0
    bench.run(OFFERED)
    for register in (r.QUEUE_SEL, r.DEVICE_FEATURES_SEL, r.DRIVER_FEATURES_SEL):
        bench.set(register, 1)
    lib.pv_virtio_irq_used(bench.device.activation.irq)  # type: ignore[union-attr]
    assert bytes(bench.map[: r.CONFIG]) != fresh
    bench.set(r.STATUS, 0)
    assert bytes(bench.map[: r.CONFIG]) == fresh


# Features


@pytest.mark.parametrize("word", [0, 1, 2, 3, 4, 5, 31, 1 << 31, r.WORD])
def test_device_features_follow_their_selector(bench: Bench, word: int) -> None:
    bench.set(r.DEVICE_FEATURES_SEL, word)
    assert bench.get(r.DEVICE_FEATURES) == (OFFERED >> 32 * word & r.WORD if word < 4 else 0)


def test_features_are_refused_without_version_1(bench: Bench) -> None:
    assert bench.negotiate(OFFERED & ~r.VERSION_1) == r.ACKNOWLEDGE | r.DRIVER
    assert bench.log == ["dev0: the driver does not accept VERSION_1 (virtio 1.0)"]
    assert bench.set_status(r.DRIVER_OK) == r.ACKNOWLEDGE | r.DRIVER


@pytest.mark.parametrize("bit", [bit for bit in range(128) if not OFFERED >> bit & 1])
def test_features_are_refused_with_a_bit_that_was_not_offered(bench: Bench, bit: int) -> None:
    assert bench.negotiate(r.VERSION_1 | 1 << bit) == r.ACKNOWLEDGE | r.DRIVER
    assert bench.log == ["dev0: the driver accepts features that were not offered"]


@pytest.mark.parametrize("selector", [4, 1 << 20, r.WORD])
def test_features_are_refused_with_bits_beyond_all_that_can_be_offered(
    bench: Bench, selector: int
) -> None:
    bench.set_status(r.ACKNOWLEDGE)
    bench.set_status(r.DRIVER)
    bench.accept(r.VERSION_1)
    bench.set(r.DRIVER_FEATURES_SEL, selector)
    bench.set(r.DRIVER_FEATURES, 0)
    bench.set(r.DRIVER_FEATURES, 1)
    assert bench.set_status(r.FEATURES_OK) == r.ACKNOWLEDGE | r.DRIVER


def test_a_word_of_zeros_beyond_all_features_does_no_harm(bench: Bench) -> None:
    bench.set_status(r.ACKNOWLEDGE)
    bench.set_status(r.DRIVER)
    bench.accept(r.VERSION_1)
    bench.set(r.DRIVER_FEATURES_SEL, 4)
    bench.set(r.DRIVER_FEATURES, 0)
    assert bench.set_status(r.FEATURES_OK) == NEGOTIATED


def test_refused_features_can_be_mended(bench: Bench) -> None:
    bench.negotiate(r.VERSION_1 | 1)
    bench.accept(OFFERED)
    assert bench.set_status(r.FEATURES_OK) == NEGOTIATED


def test_features_count_only_between_driver_and_features_ok(bench: Bench) -> None:
    bench.accept(1)
    bench.set_status(r.ACKNOWLEDGE)
    bench.accept(1)
    bench.negotiate(OFFERED)
    bench.accept(r.VERSION_1)
    bench.set_queue(0)
    bench.set_status(r.DRIVER_OK)
    assert bench.device.activation
    assert bench.device.activation.features == OFFERED


def test_a_reset_forgets_the_drivers_features(bench: Bench) -> None:
    bench.negotiate(OFFERED)
    bench.set(r.STATUS, 0)
    bench.set_status(r.ACKNOWLEDGE)
    bench.set_status(r.DRIVER)
    assert bench.set_status(r.FEATURES_OK) == r.ACKNOWLEDGE | r.DRIVER
    bench.set(r.STATUS, 0)
    bench.set(r.DRIVER_FEATURES_SEL, 4)
    bench.set_status(r.ACKNOWLEDGE)
    bench.set_status(r.DRIVER)
    bench.set(r.DRIVER_FEATURES, 1)
    bench.set(r.STATUS, 0)
    assert bench.negotiate() == NEGOTIATED


def test_a_reset_forgets_the_selectors(bench: Bench) -> None:
    bench.set(r.DRIVER_FEATURES_SEL, 1)
    bench.set(r.STATUS, 0)
    bench.set_status(r.ACKNOWLEDGE)
    bench.set_status(r.DRIVER)
    bench.set(r.DRIVER_FEATURES, r.VERSION_1 >> 32)  # bit 0 now, which was not offered
    assert bench.set_status(r.FEATURES_OK) == r.ACKNOWLEDGE | r.DRIVER


# Status


@pytest.mark.parametrize("bit", [r.DRIVER, r.FEATURES_OK, r.DRIVER_OK])
def test_a_status_bit_before_its_time_is_not_taken(bench: Bench, bit: int) -> None:
    assert bench.set_status(bit) == 0
    if bit != r.DRIVER:
        bench.set_status(r.ACKNOWLEDGE)
        assert bench.set_status(bit) == r.ACKNOWLEDGE
    if bit == r.DRIVER_OK:
        bench.set_status(r.DRIVER)
        assert bench.set_status(bit) == r.ACKNOWLEDGE | r.DRIVER
    assert bench.device.calls == []


def test_status_bits_that_come_together_are_taken_in_their_order(bench: Bench) -> None:
    bench.set(r.STATUS, r.ACKNOWLEDGE | r.DRIVER)
    bench.accept(r.VERSION_1)
    bench.set(r.STATUS, RUNNING)
    assert bench.get(r.STATUS) == RUNNING
    assert bench.device.calls == ["activate"]


@pytest.mark.parametrize("bit", [r.ACKNOWLEDGE, r.DRIVER, r.FEATURES_OK, r.DRIVER_OK])
def test_a_status_bit_cannot_be_taken_away(bench: Bench, bit: int) -> None:
    bench.run()
    bench.set(r.STATUS, RUNNING & ~bit | r.FAILED)
    assert bench.get(r.STATUS) == RUNNING
    assert bench.device.calls == ["activate"]


def test_after_failed_only_a_reset_counts(bench: Bench) -> None:
    bench.negotiate()
    assert bench.set_status(r.FAILED) == NEGOTIATED | r.FAILED
    bench.set_queue(0)
    assert bench.get(r.QUEUE_READY) == 0
    assert bench.set_status(r.DRIVER_OK) == NEGOTIATED | r.FAILED
    bench.set(r.STATUS, 0)
    assert bench.run() == RUNNING


@pytest.mark.parametrize("bits", [0x10, 0x20, r.NEEDS_RESET, 1 << 8, 1 << 31])
def test_bits_that_are_not_the_drivers_are_not_taken(bench: Bench, bits: int) -> None:
    assert bench.set_status(bits) == 0
    bench.run()
    assert bench.set_status(bits) == RUNNING


def test_driver_ok_again_changes_nothing(bench: Bench) -> None:
    bench.run()
    assert bench.set_status(r.DRIVER_OK) == RUNNING
    assert bench.device.calls == ["activate"]


# Queues


@pytest.mark.parametrize("index", [2, 3, 1 << 16, r.WORD])
def test_a_queue_that_does_not_exist(bench: Bench, index: int) -> None:
    bench.negotiate()
    bench.set_queue(0)
    bench.set_queue(index)
    assert bench.get(r.QUEUE_NUM_MAX) == bench.get(r.QUEUE_READY) == 0
    bench.set(r.QUEUE_SEL, 1)
    assert bench.get(r.QUEUE_NUM_MAX) == 16
    assert bench.get(r.QUEUE_READY) == 0
    bench.set(r.QUEUE_SEL, 0)
    assert bench.get(r.QUEUE_READY) == 1


def test_queues_cannot_be_set_up_before_features_are_agreed_on(bench: Bench) -> None:
    for bits in (0, r.ACKNOWLEDGE, r.DRIVER):
        bench.set_status(bits)
        bench.set_queue(0)
        assert bench.get(r.QUEUE_READY) == 0
    bench.accept(r.VERSION_1)
    bench.set_status(r.FEATURES_OK)
    bench.set(r.QUEUE_READY, 1)  # with nothing of what was written above
    assert bench.set_status(r.DRIVER_OK) == BROKEN


def queue_fields(bench: Bench) -> list[int]:
    """Return the registers of queue 0 as the transport holds them: they cannot be read back."""
    queue = bench.transport._registers.queues[0]
    return [queue.num, *queue.addresses.values()]


def test_a_queue_is_frozen_while_ready(bench: Bench) -> None:
    bench.negotiate()
    bench.set_queue(0, ready=1)
    before = queue_fields(bench)
    assert before == [16, RINGS, 0, RINGS + 0x4000, 0, RINGS + 0x8000, 0]
    for register in (r.QUEUE_NUM, *r.QUEUE_ADDRESSES):
        bench.set(register, 8)
    assert queue_fields(bench) == before
    bench.set(r.QUEUE_READY, 0)
    assert bench.get(r.QUEUE_READY) == 0
    for register in (r.QUEUE_NUM, *r.QUEUE_ADDRESSES):
        bench.set(register, 8)
    assert queue_fields(bench) == [8] * 7


def test_all_queues_are_frozen_after_driver_ok(bench: Bench) -> None:
    bench.negotiate()
    bench.set_queue(0)
    bench.set_status(r.DRIVER_OK)
    before = queue_fields(bench)
    bench.set_queue(0, size=8, base=RINGS + RING_STEP, ready=0)
    assert bench.get(r.QUEUE_READY) == 1
    assert queue_fields(bench) == before
    bench.set_queue(1)
    assert bench.get(r.QUEUE_READY) == 0


def test_activation_hands_over_the_ready_queues(bench: Bench) -> None:
    bench.negotiate(OFFERED)
    bench.set_queue(1)
    assert bench.set_status(r.DRIVER_OK) == RUNNING
    activation = bench.device.activation
    assert activation
    assert activation.queues[0] is None
    queue = activation.queues[1]
    assert queue
    assert queue.index == 1
    assert queue.kick_fd == bench.kicks[1]
    assert lib.pv_virtqueue_error(queue.handle) == ffi.NULL


def test_ring_features_reach_the_queue(memory: GuestMemory) -> None:
    # With EVENT_IDX the device asks for kicks in the used ring's last word (2.7.10).
    asked = []
    for features in (r.VERSION_1, r.VERSION_1 | r.EVENT_IDX):
        bench = Bench(memory)
        bench.run(features)
        assert bench.device.activation
        queue = bench.device.activation.queues[0]
        assert queue
        used = RINGS + 0x8000
        memory.write(used, b"\xff\xff" + bytes(4 + 16 * 8) + b"\xff\xff")
        lib.pv_virtqueue_enable_kicks(queue.handle)
        asked.append((memory.read(used, 2), memory.read(used + 4 + 16 * 8, 2)))
        bench.close()
        memory.write(used, bytes(4 + 16 * 8 + 2))
    assert asked[0][0] == b"\0\0"
    assert asked[1][1] == b"\0\0"
    assert asked[0] != asked[1]


@pytest.mark.parametrize(
    ("features", "answer"),
    [(r.VERSION_1, -errno.EPROTO), (r.VERSION_1 | r.INDIRECT_DESC, 1)],
)
def test_the_indirect_feature_reaches_the_queue(
    bench: Bench, memory: GuestMemory, features: int, answer: int
) -> None:
    table = RINGS + 0xC000
    memory.write(RINGS, pack("<QIHH", table, 16, 4, 0))
    memory.write(table, pack("<QIHH", table, 16, 0, 0))
    memory.write(RINGS + 0x4000, pack("<HHH", 0, 1, 0))
    bench.run(features)
    assert bench.device.activation
    queue = bench.device.activation.queues[0]
    assert queue
    assert lib.pv_virtqueue_pop(queue.handle, ffi.new("struct pv_chain *")) == answer


@pytest.mark.parametrize(
    ("size", "base"),
    [
        (0, RINGS),
        (3, RINGS),
        (512, RINGS),
        (1 << 16 | 16, RINGS),
        (16, RINGS + 1),
        (16, 128 << 20),
        (16, 0xD000_0000),
        (16, (1 << 64) - 0x10000),
    ],
)
def test_a_queue_that_cannot_be_leaves_the_device_in_need_of_a_reset(
    bench: Bench, size: int, base: int
) -> None:
    bench.negotiate()
    bench.set_queue(0, size, base)
    bench.set_queue(1)
    assert bench.set_status(r.DRIVER_OK) == BROKEN
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
    assert bench.interrupts() == 1
    assert bench.device.calls == []
    bench.transport.report()
    text = "the driver's queue 0 has a size or an address that cannot be; it needs a reset"
    assert bench.log == [f"dev0: {text}"]
    bench.set(r.STATUS, 0)
    assert bench.run() == RUNNING
    assert bench.device.calls == ["activate"]


def test_a_device_that_cannot_run_needs_a_reset(bench: Bench) -> None:
    bench.device.refusal = BackendError("dev0: the disk is gone")
    for _ in range(3):
        assert bench.run() == BROKEN
        bench.set(r.STATUS, 0)
    assert bench.device.calls == []
    assert bench.log == ["dev0: the disk is gone; it needs a reset"] * 3


# Reset


def test_a_hundred_lives(bench: Bench) -> None:
    for _ in range(100):
        assert bench.run() == RUNNING
        bench.set(r.STATUS, 0)
        assert bench.get(r.STATUS) == 0
    assert bench.device.calls == ["activate", "reset"] * 100


def test_a_reset_of_a_device_at_rest_does_not_reach_it(bench: Bench) -> None:
    bench.set(r.STATUS, 0)
    bench.negotiate()
    bench.set(r.STATUS, 0)
    assert bench.device.calls == []


def test_close_resets_but_does_not_close_the_device(memory: GuestMemory) -> None:
    bench = Bench(memory)
    bench.run()
    bench.close()
    assert bench.device.calls == ["activate", "reset"]
    assert bench.device.closed == 0


# Notifications and interrupts


def test_a_notification_kicks_its_queue(bench: Bench) -> None:
    bench.set(r.QUEUE_NOTIFY, 1)
    assert [take(fd) for fd in bench.kicks] == [0, 1]
    for value in (2, r.WORD):
        bench.set(r.QUEUE_NOTIFY, value)
    assert [take(fd) for fd in bench.kicks] == [0, 0]


def test_interrupts_are_acknowledged_bit_by_bit(bench: Bench) -> None:
    bench.run()
    assert bench.device.activation
    irq = bench.device.activation.irq
    lib.pv_virtio_irq_used(irq)
    lib.pv_virtio_irq_config(irq)
    assert bench.interrupts() == bench.transport.interrupts() == 2
    assert bench.get(r.INTERRUPT_STATUS) == 3
    bench.set(r.INTERRUPT_ACK, r.INTERRUPT_USED)
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
    bench.set(r.INTERRUPT_ACK, r.WORD)
    assert bench.get(r.INTERRUPT_STATUS) == 0


def test_used_buffers_stay_announced_where_kvm_swallows_the_acknowledgement(
    spared: tuple[Bench, list[bytes]],
) -> None:
    bench, _ = spared
    bench.run()
    assert bench.device.activation
    irq = bench.device.activation.irq
    lib.pv_virtio_irq_config(irq)
    bench.set(r.INTERRUPT_ACK, 2)
    assert bench.get(r.INTERRUPT_STATUS) == 0
    lib.pv_virtio_irq_used(irq)
    lib.pv_virtio_irq_config(irq)
    bench.set(r.INTERRUPT_ACK, 3)
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_USED
    bench.set(r.STATUS, 0)
    assert bench.get(r.INTERRUPT_STATUS) == 0


def test_a_broken_device_says_so_once_in_a_life(bench: Bench) -> None:
    for life in range(3):
        bench.run()
        assert bench.device.activation
        for _ in range(5):
            lib.pv_virtio_irq_broken(bench.device.activation.irq, WHY)
        assert bench.get(r.STATUS) == BROKEN
        assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
        assert bench.interrupts() == 1
        assert take(bench.broken_fd) == 1
        assert len(bench.log) == life
        bench.transport.report()
        bench.transport.report()
        assert bench.log == ["dev0: the driver did it; it needs a reset"] * (life + 1)
        bench.set(r.STATUS, 0)
        assert bench.get(r.STATUS) == bench.get(r.INTERRUPT_STATUS) == 0


def test_a_driver_that_does_not_know_of_the_break_can_still_give_up(bench: Bench) -> None:
    bench.run()
    assert bench.device.activation
    lib.pv_virtio_irq_broken(bench.device.activation.irq, WHY)
    bench.set(r.STATUS, RUNNING | r.FAILED)
    assert bench.get(r.STATUS) == BROKEN | r.FAILED


def test_close_tells_what_nobody_asked_for(memory: GuestMemory) -> None:
    bench = Bench(memory)
    bench.run()
    assert bench.device.activation
    lib.pv_virtio_irq_broken(bench.device.activation.irq, WHY)
    bench.close()
    assert bench.log == ["dev0: the driver did it; it needs a reset"]


# Configuration space


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("at", [0, 1, 3, 15, 19, 20, 0xEF8])
def test_configuration_is_read_by_bytes(bench: Bench, at: int, size: int) -> None:
    space = bytes(range(20)) + bytes(r.CONFIG_SIZE)
    assert bench.get(r.CONFIG + at, size) == int.from_bytes(space[at : at + size], "little")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("at", [0, 1, 3, 7, 9, 17, 19, 20, 0xEF8])
def test_configuration_is_written_by_bytes(bench: Bench, at: int, size: int) -> None:
    data = bytes(range(0xA1, 0xA1 + size))
    for ready in (False, True):
        bench.set(r.CONFIG + at, int.from_bytes(data, "little"), size)
        expected = bytearray(range(20))
        if ready:
            expected[at : at + size] = data[: max(0, 20 - at)]
            expected[10:] = range(10, 20)
        assert bytes(bench.map[r.CONFIG : r.CONFIG + 20]) == bytes(expected)
        bench.negotiate()
    assert bytes(bench.map[r.CONFIG + 20 :]) == bytes(r.CONFIG_SIZE - 20)


def test_configuration_is_not_written_after_failed(bench: Bench) -> None:
    bench.negotiate()
    bench.set_status(r.FAILED)
    bench.set(r.CONFIG, 99, 1)
    assert bench.get(r.CONFIG, 1) == 0


def test_a_reset_shows_the_configuration_of_the_device(bench: Bench) -> None:
    bench.device.space[0] = 99
    bench.set(r.STATUS, 0)
    assert bench.get(r.CONFIG, 1) == 99


def test_a_changed_configuration_has_a_new_generation(bench: Bench) -> None:
    bench.device.space[19] = 77
    bench.device.config_changed()
    assert bench.get(r.CONFIG + 19, 1) == 77
    assert bench.get(r.CONFIG_GENERATION) == 1
    assert bench.get(r.INTERRUPT_STATUS) == bench.interrupts() == 0  # the driver is not there yet
    bench.run()
    bench.device.config_changed()
    assert bench.get(r.CONFIG_GENERATION) == 2
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG
    assert bench.interrupts() == 1
    bench.set(r.STATUS, 0)
    assert bench.get(r.CONFIG_GENERATION) == 2


def test_the_generation_wraps(bench: Bench) -> None:
    bench.map[r.CONFIG_GENERATION : r.CONFIG] = b"\xff" * 4
    bench.device.config_changed()
    assert bench.get(r.CONFIG_GENERATION) == 0


def test_the_configuration_changes_while_the_guest_cannot_read_the_page(
    spared: tuple[Bench, list[bytes]],
) -> None:
    bench, pages = spared
    bench.run()
    bench.device.space[0] = 55
    bench.device.config_changed()
    before, after = pages
    changed = [at for at in range(r.PAGE_SIZE) if before[at] != after[at]]
    assert changed == [r.CONFIG_GENERATION, r.CONFIG]
    assert bench.get(r.INTERRUPT_STATUS) == r.INTERRUPT_CONFIG


def test_a_configuration_too_large_for_the_page(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="dev0"):
        Bench(memory, Notes(config=bytes(r.CONFIG_SIZE + 1)))


# Accesses that ought not to be


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_registers_take_four_bytes_only(bench: Bench, size: int) -> None:
    bench.negotiate()
    before = bytes(bench.map[:]), queue_fields(bench)
    for offset in REGISTERS:
        bench.set(offset, 1, size)
    assert (bytes(bench.map[:]), queue_fields(bench)) == before
    assert [take(fd) for fd in bench.kicks] == [0, 0]


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_registers_take_nothing_beside_their_address(bench: Bench, shift: int) -> None:
    bench.negotiate()
    before = bytes(bench.map[:]), queue_fields(bench)
    for offset in REGISTERS[:-1]:
        bench.set(offset + shift, 1)
    assert (bytes(bench.map[:]), queue_fields(bench)) == before
    assert [take(fd) for fd in bench.kicks] == [0, 0]


def test_registers_can_be_read_by_bytes(bench: Bench) -> None:
    assert [chr(bench.get(offset, 1)) for offset in range(4)] == list("virt")
    assert bench.get(1, 2) == int.from_bytes(b"ir", "little")
    assert bench.get(2, 8) == int.from_bytes(b"rt\x02\0\0\0\x2a\0", "little")


values = st.one_of(st.integers(0, 255), st.integers(0, r.WORD), st.sampled_from([RINGS, RUNNING]))
offsets = st.one_of(st.sampled_from(REGISTERS), st.integers(0, r.PAGE_SIZE - 8))
writes = st.tuples(offsets, values, st.sampled_from([4, 4, 4, 1, 2, 8]))
scripts = st.lists(st.one_of(writes, st.sampled_from(["negotiate", "queues", "ok"])), max_size=30)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts)
def test_whatever_a_driver_writes_the_rules_hold(
    memory: GuestMemory, script: list[str | tuple[int, int, int]]
) -> None:
    bench = Bench(memory)
    constant = bytes(bench.map[:16])
    lives = 0
    for step in script:
        if step == "negotiate":
            bench.negotiate(OFFERED)
        elif step == "queues":
            bench.set_queue(0)
            bench.set_queue(1, size=4)
        elif step == "ok":
            bench.set_status(r.DRIVER_OK)
        elif isinstance(step, tuple):
            offset, value, size = step
            bench.set(offset, value, size)
        status = bench.get(r.STATUS)
        chain = [r.ACKNOWLEDGE, r.DRIVER, r.FEATURES_OK, r.DRIVER_OK]
        held = [bool(status & bit) for bit in chain]
        assert held == sorted(held, reverse=True)
        assert status & ~(RUNNING | r.NEEDS_RESET | r.FAILED) == 0
        assert bytes(bench.map[:16]) == constant
        running = bool(status & r.DRIVER_OK) and not status & r.NEEDS_RESET
        assert running == (bench.device.activation is not None)
        if status & r.FEATURES_OK:
            features = bench.transport._registers.driver_features
            assert features & r.VERSION_1
            assert features & ~OFFERED == 0
        lives = bench.device.calls.count("activate")
        assert bench.device.calls[:-1].count("reset") in {lives, lives - 1, 0}
    bench.close()
    assert bench.device.calls == ["activate", "reset"] * lives
    assert len(bench.log) == len(set(bench.log))


def test_page_and_descriptors_are_checked(memory: GuestMemory) -> None:
    assert lib.pv_virtio_irq_new(ffi.NULL, -1, -1, ffi.new("struct pv_virtio_irq **")) == (
        -errno.EINVAL
    )
