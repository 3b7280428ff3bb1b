"""The virtio-mmio transport, version 2: registers, negotiation, and the life of one device.

The register page is the truth for everything a driver may read: it holds the words as they read
at this moment. Where KVM maps it into the guest as read-only memory, reads cost no exit and
Python never sees them; elsewhere `read` answers from the same page. Source: virtio 1.2, 4.2.

The rules for what drivers ought not to do:
- A register is written with 4 bytes at its own address; any other write to one is ignored. The
  configuration space takes writes of any size and alignment. Reads, too, are of bytes.
- Status bits are only ever added, each after the one it follows. A write that would take one
  away, except for the 0 that resets, is ignored; so is everything but that 0 after FAILED.
- FEATURES_OK stays clear when VERSION_1 is not accepted, or a bit that was not offered is.
- Features are taken between DRIVER and FEATURES_OK; queues are set up between FEATURES_OK and
  DRIVER_OK, and those that are ready at DRIVER_OK stay as they are until the reset. A queue's
  registers cannot be written while it is ready. All other writes to these are ignored.
- A queue that does not exist has QueueNumMax 0 and takes no writes.
- A queue that cannot work at DRIVER_OK leaves the device in DEVICE_NEEDS_RESET.
- So does a reset that the host does not let come to its end in LIMIT_S: Status reads as it did, and
  not 0. The device is given up then; a later 0 resets it, once the host has let go.
"""

from __future__ import annotations

import errno
import os

from ...errors import BackendError, ConfigError, GuestError, PyvirtError, unexpected
from ...native import check, ffi, lib
from . import registers as r
from . import turn
from .device import Activation, Queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar

    from .device import Device
    from .fault import Faults


class _QueueRegisters:
    """What the driver said of one queue."""

    __slots__ = ("addresses", "num", "ready")

    def __init__(self) -> None:
        self.num = 0
        self.ready = False
        self.addresses = dict.fromkeys(r.QUEUE_ADDRESSES, 0)  # words by their registers

    def address(self, register: int) -> int:
        """Return the guest-physical address of which `register` has the low word."""
        return self.addresses[register] | self.addresses[register + 4] << 32


class Mmio:
    """One device behind its registers.

    `read` and `write` are for vCPU threads, all else for any; a Turn makes them one at a time.
    `report` and `config_changed` never wait for it, the others LIMIT_S at most (BackendError).
    `close` comes when no vCPU runs any more.
    """

    __slots__ = (
        "_active",
        "_clearable",
        "_config_due",
        "_config_length",
        "_device_features_sel",
        "_driver_features",
        "_driver_features_sel",
        "_driver_strays",
        "_exclusively",
        "_irq",
        "_kicks",
        "_memory",
        "_offered",
        "_page",
        "_queue_sel",
        "_queues",
        "_turn",
        "_warn",
        "_words",
        "device",
        "is_given_up",
        "reads",
        "writes",
    )

    def __init__(
        self,
        device: Device,
        page: memoryview,
        *,
        memory: Any,
        irq_fd: int,
        broken_fd: int,
        kicks: list[int],
        warn: Callable[[str], None],
        place: str = "",
        exclusively: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Put `device` behind an empty register page.

        `page` is 4 KiB, aligned, and stays mapped until `close`, which releases the view.
        `memory` is the struct pv_memory. `irq_fd` is an eventfd of edges; `broken_fd` one that
        becomes readable when `report` has something to say; `kicks` one for each queue. All are
        borrowed, and so is the device. `warn` takes lines for the log, and has the limit that a
        driver needs that does the same thing for ever. `place` is how the device's threads are
        known, whatever is behind it; "": by its name.

        `exclusively`, given where the guest reads the page without an exit, calls a function
        while it cannot. There, a "used buffer" in InterruptStatus stands until the reset: KVM
        itself swallows its acknowledgement.
        """
        self.device = device
        self.reads = self.writes = 0  # accesses that came to Python
        self.is_given_up = False  # the host has not let it come to its reset
        self._page = page
        self._words = page.cast("I")
        self._memory = memory
        self._kicks = kicks
        self._warn = warn
        self._exclusively = exclusively
        self._clearable = (
            r.INTERRUPT_CONFIG if exclusively else r.INTERRUPT_USED | r.INTERRUPT_CONFIG
        )
        self._turn = turn.Turn(device.name, self._show_change)
        self._active: list[Queue | None] | None = None
        self._queues: list[_QueueRegisters] = []
        self._queue_sel = self._driver_features = self._driver_features_sel = 0
        self._driver_strays = False  # bits beyond the 128 that can be offered
        self._offered = self._device_features_sel = 0
        self._config_due = False  # a change that the driver is to be told of at DRIVER_OK
        self._config_length = len(device.config())
        if self._config_length > r.CONFIG_SIZE or len(kicks) != len(device.queue_sizes):
            raise ValueError(f"{device.name}: does not fit its transport")
        with ffi.from_buffer(page) as start:
            irq = ffi.new("struct pv_virtio_irq **")
            check(lib.pv_virtio_irq_new(start, irq_fd, broken_fd, irq), device.name)
        self._irq: Any = ffi.gc(irq[0], lib.pv_virtio_irq_free)
        lib.pv_virtio_irq_set_name(self._irq, (place or device.name).encode(errors="replace"))
        for offset, value in (
            (r.MAGIC_VALUE, r.MAGIC),
            (r.VERSION, 2),
            (r.DEVICE_ID, device.device_type),
            (r.VENDOR_ID, r.VENDOR),
            # No shared memory region has length and base of all ones.
            (r.SHM_LENGTH, r.WORD),
            (r.SHM_LENGTH + 4, r.WORD),
            (r.SHM_BASE, r.WORD),
            (r.SHM_BASE + 4, r.WORD),
        ):
            self._set(offset, value)
        self._forget()
        device.config_changed = self.config_changed
        device.exchange = self.exchange
        device.faults = self.faults

    def _set(self, offset: int, value: int) -> None:
        """Let a register read as `value`; one store of four bytes."""
        self._words[offset // 4] = value

    @property
    def status(self) -> int:
        """Return the Status register."""
        return self._words[r.STATUS // 4]

    def read(self, offset: int, size: int) -> int:
        """Answer a read that did not find the page in the guest's memory."""
        with self._turn:
            self.reads += 1
            return int.from_bytes(self._page[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a write, by the rules above."""
        with self._turn:
            self.writes += 1
            if offset >= r.CONFIG:
                self._write_config(offset - r.CONFIG, value.to_bytes(size, "little"))
            elif size != 4:
                return
            elif offset in self._WRITES:
                self._WRITES[offset](self, value)
            elif offset in r.QUEUE_ADDRESSES:
                self._write_queue_address(offset, value)

    # Features

    def _offer(self) -> None:
        self._offered = self.device.offer() | r.VERSION_1 | self.device.ring_features()
        self._select_device_features(self._device_features_sel)

    def _select_device_features(self, value: int) -> None:
        self._device_features_sel = value
        shown = self._offered >> 32 * value & r.WORD if value < r.FEATURE_WORDS else 0
        self._set(r.DEVICE_FEATURES, shown)

    def _select_driver_features(self, value: int) -> None:
        self._driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        if self.status & (r.DRIVER | r.FEATURES_OK | r.FAILED) != r.DRIVER:
            return
        if self._driver_features_sel >= r.FEATURE_WORDS:
            self._driver_strays = self._driver_strays or value != 0
            return
        shift = 32 * self._driver_features_sel
        self._driver_features = self._driver_features & ~(r.WORD << shift) | value << shift

    def _features_fit(self) -> bool:
        if self._driver_strays or self._driver_features & ~self._offered:
            self._warn(f"{self.device.name}: the driver accepts features that were not offered")
            return False
        if not self._driver_features & r.VERSION_1:
            self._warn(f"{self.device.name}: the driver does not accept VERSION_1 (virtio 1.0)")
            return False
        return True

    # Queues

    def _select_queue(self, value: int) -> None:
        self._queue_sel = value
        there = value < len(self._queues)
        self._set(r.QUEUE_NUM_MAX, self.device.queue_sizes[value] if there else 0)
        self._set(r.QUEUE_READY, int(there and self._queues[value].ready))

    def _queue_in_setup(self) -> _QueueRegisters | None:
        """Return the selected queue if its registers may be written now, QueueReady among them."""
        stage = self.status & (r.FEATURES_OK | r.DRIVER_OK | r.FAILED)
        if stage != r.FEATURES_OK or self._queue_sel >= len(self._queues):
            return None
        return self._queues[self._queue_sel]

    def _write_queue_num(self, value: int) -> None:
        queue = self._queue_in_setup()
        if queue and not queue.ready:
            queue.num = value

    def _write_queue_address(self, register: int, value: int) -> None:
        queue = self._queue_in_setup()
        if queue and not queue.ready:
            queue.addresses[register] = value

    def _write_queue_ready(self, value: int) -> None:
        queue = self._queue_in_setup()
        if queue:
            queue.ready = bool(value & 1)
            self._set(r.QUEUE_READY, int(queue.ready))

    def _notify_queue(self, value: int) -> None:
        # Only where no ioeventfd took the write.
        if value < len(self._kicks):
            os.eventfd_write(self._kicks[value], 1)

    # Status

    def _acknowledge(self, value: int) -> None:
        lib.pv_virtio_irq_ack(self._irq, value & self._clearable)

    def _write_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        now = self.status
        kept = now & ~r.NEEDS_RESET
        if now & r.FAILED or kept & ~value:
            return
        for bit, before in (
            (r.ACKNOWLEDGE, 0),
            (r.DRIVER, r.ACKNOWLEDGE),
            (r.FEATURES_OK, r.DRIVER),
            (r.DRIVER_OK, r.FEATURES_OK),
            (r.FAILED, 0),
        ):
            if value & ~now & bit and self.status & before == before:
                self._advance(bit)

    def _advance(self, bit: int) -> None:
        if bit == r.FEATURES_OK and not self._features_fit():
            return
        lib.pv_virtio_irq_add_status(self._irq, bit)
        if bit == r.DRIVER_OK:
            self._activate()
            if self._config_due:
                self._tell_config()

    def _activate(self) -> None:
        active: list[Queue | None] = []
        self._active = active
        try:
            for index, registers in enumerate(self._queues):
                active.append(self._make_queue(index, registers) if registers.ready else None)
            self.device.activate(Activation(self._driver_features, active, self._irq, self._memory))
        except PyvirtError as error:
            self._free_queues()
            self._warn(f"{error}; it needs a reset")
            lib.pv_virtio_irq_broken(self._irq, ffi.NULL)

    def _make_queue(self, index: int, registers: _QueueRegisters) -> Queue:
        size = registers.num
        config = ffi.new(
            "struct pv_virtqueue_config *",
            {
                "desc": registers.address(r.QUEUE_DESC),
                "avail": registers.address(r.QUEUE_DRIVER),
                "used": registers.address(r.QUEUE_DEVICE),
                # 0 is refused by the C side, as all that is no power of two.
                "size": size if size <= self.device.queue_sizes[index] else 0,
                "event_idx": bool(self._driver_features & r.EVENT_IDX),
                "indirect": bool(self._driver_features & r.INDIRECT_DESC),
            },
        )
        handle = ffi.new("struct pv_virtqueue **")
        result = lib.pv_virtqueue_new(self._memory, config, handle)
        if result == -errno.EINVAL:
            wrong = f"the driver's queue {index} has a size or an address that cannot be"
            raise GuestError(f"{self.device.name}: {wrong}")
        check(result, f"{self.device.name}: queue {index}")
        return Queue(index, handle[0], self._kicks[index])

    def _free_queues(self) -> None:
        for queue in self._active or ():
            if queue:
                lib.pv_virtqueue_free(queue.handle)
        self._active = None

    def _deactivate(self, limit: float) -> bool:
        """Let the device stop; False: it does not, and keeps its queues and the guest's memory."""
        if self._active is None:
            return True
        try:
            self.device.reset(0 if self.is_given_up else limit)
        except BackendError as error:
            if not self.is_given_up:
                self.is_given_up = True
                self._warn(f"{error}; the device is given up until then")
                lib.pv_virtio_irq_broken(self._irq, ffi.NULL)
            return False
        self.is_given_up = False
        self._free_queues()
        return True

    def _reset(self) -> None:
        if self._deactivate(turn.LIMIT_S):
            self._forget()

    def _forget(self) -> None:
        """Let everything that the driver wrote be unwritten."""
        self._driver_features = self._driver_features_sel = 0
        self._driver_strays = False
        self._config_due = False
        self._queues = [_QueueRegisters() for _ in self.device.queue_sizes]
        self._device_features_sel = 0
        self._offer()
        self._select_queue(0)
        self._publish_config()
        lib.pv_virtio_irq_reset(self._irq)

    # Configuration space

    def _publish_config(self) -> None:
        config = self.device.config()
        self._page[r.CONFIG : r.CONFIG + len(config)] = config

    def _write_config(self, offset: int, data: bytes) -> None:
        data = data[: max(0, self._config_length - offset)]
        if data and self.status & (r.FEATURES_OK | r.FAILED) == r.FEATURES_OK:
            self.device.write_config(offset, data)
            self._publish_config()

    def _publish_change(self) -> None:
        self._publish_config()
        self._set(r.CONFIG_GENERATION, self._words[r.CONFIG_GENERATION // 4] + 1 & r.WORD)

    def _show_change(self) -> None:
        """Let the guest find a new configuration and generation, both or none, and tell it."""
        if self._exclusively:
            self._exclusively(self._publish_change)
        else:
            self._publish_change()
        self._tell_config()

    def _tell_config(self) -> None:
        # A driver takes no interrupt before DRIVER_OK, but may have read what has changed.
        stage = self.status & (r.DRIVER | r.DRIVER_OK)
        self._config_due = stage == r.DRIVER
        if stage & r.DRIVER_OK:
            lib.pv_virtio_irq_config(self._irq)

    def config_changed(self) -> None:
        """Show the driver the device's configuration as it is now, with a new generation."""
        self._turn.later()

    def exchange(self, change: Callable[[bool], None]) -> None:
        """Let the device change as Pluggable says, and show the driver what there is then."""
        with self._turn.soon():
            self._check_kept()
            is_bound = bool(self.status & r.DRIVER)
            change(is_bound)
            if not is_bound:
                self._offer()
            self._show_change()

    # The monitor's side

    def report(self) -> None:
        """Log why the device broke, if it did since the last call, and what else it has to say."""
        why = ffi.new(f"char[{lib.PV_VIRTIO_WHY_BYTES}]")
        if lib.pv_virtio_irq_take_reason(self._irq, why):
            text = ffi.string(why).decode(errors="replace")
            self._warn(f"{self.device.name}: {text}; it needs a reset")
        lib.pv_virtio_irq_echo(self._irq)
        try:
            news = self.device.news()
        except Exception as error:  # noqa: BLE001  (one device's fault is not to cost the machine)
            news = unexpected(error)
        if news:
            self._warn(f"{self.device.name}: {news}")

    def faults(self) -> Faults:
        """Return the device's faults."""
        from .fault import Faults  # noqa: PLC0415  (only tests of drivers ask for them)

        return Faults(
            self.device.name,
            self._irq,
            operations=self.device.operations,
            kick=self.kick,
            break_device=self.break_device,
        )

    def kick(self) -> None:
        """Have what serves the queues look at them; any thread."""
        for fd in self._kicks:
            os.eventfd_write(fd, 1)

    def break_device(self, why: str) -> None:
        """Let the device need a reset; ConfigError when no driver is at work. Any thread."""
        with self._turn.soon():
            if not self.status & r.DRIVER_OK:
                raise ConfigError(f"{self.device.name}: no driver is at work on it; start one")
            lib.pv_virtio_irq_broken(self._irq, why.encode())
        self.kick()

    def interrupts(self) -> int:
        """Return how many interrupts the device raised; any thread."""
        return int(lib.pv_virtio_irq_count(self._irq))

    def _check_kept(self) -> None:
        """Raise BackendError as long as the device is given up."""
        if self.is_given_up and self._deactivate(0):
            self._forget()
        if self.is_given_up:
            raise BackendError(
                f"{self.device.name}: the host still has requests from before its reset; "
                "see to what is behind it, then ask again"
            )

    def drain(self, limit: float) -> None:
        """Have the device complete what is in flight and begin no more, before `reset`.

        BackendError after `limit` seconds, and it goes on as before. The other way out is `resume`.
        """
        with self._turn.soon():
            self._check_kept()
            if self._active is not None:
                self.device.drain(limit)

    def resume(self) -> None:
        """Have the device go on after `drain`."""
        with self._turn.soon():
            if self._active is not None:
                self.device.resume()

    def reset(self) -> None:
        """Reset the device as a driver would; it begins anew, unless it is given up."""
        with self._turn.soon():
            self._reset()

    def halt(self) -> None:
        """Begin with `close`; it waits for nothing."""
        if self._active is not None:
            self.device.halt()

    def close(self, limit: float | None = None) -> bool:
        """Bring requests in flight to their end and let go of the device.

        False: the host has not completed them in `limit` seconds (None: LIMIT_S). Then all that was
        borrowed has to stay as it is to the end of the process.
        """
        done = self._deactivate(turn.LIMIT_S if limit is None else limit)
        self.report()
        if done:
            ffi.release(self._irq)
            self._words.release()
            self._page.release()
        return done

    _WRITES: ClassVar[dict[int, Callable[[Mmio, int], None]]] = {
        r.DEVICE_FEATURES_SEL: _select_device_features,
        r.DRIVER_FEATURES: _write_driver_features,
        r.DRIVER_FEATURES_SEL: _select_driver_features,
        r.QUEUE_SEL: _select_queue,
        r.QUEUE_NUM: _write_queue_num,
        r.QUEUE_READY: _write_queue_ready,
        r.QUEUE_NOTIFY: _notify_queue,
        r.INTERRUPT_ACK: _acknowledge,
        r.STATUS: _write_status,
    }
