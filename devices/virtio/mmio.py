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

import os

from ...errors import BackendError, ConfigError, GuestError, PyvirtError, unexpected
from ...native import check, ffi, lib
from . import registers as r
from . import turn
from .device import Activation, Queue
from .register_page import STEPS, RegisterPage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar

    from ...state import Fields
    from .device import Device
    from .fault import Faults
    from .queue_registers import QueueRegisters

_TRANSPORT = r.VERSION_1 | r.INDIRECT_DESC | r.EVENT_IDX


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
        "_exclusively",
        "_irq",
        "_is_dormant",
        "_is_standing",
        "_kicks",
        "_memory",
        "_page",
        "_registers",
        "_turn",
        "_warn",
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
        self._is_standing = False  # by `drain`
        self._is_dormant = False  # restored, and not yet begun
        self._page = page
        self._registers = RegisterPage(page, device.device_type, device.queue_sizes)
        self._memory = memory
        self._kicks = kicks
        self._warn = warn
        self._exclusively = exclusively
        self._clearable = (
            r.INTERRUPT_CONFIG if exclusively else r.INTERRUPT_USED | r.INTERRUPT_CONFIG
        )
        self._turn = turn.Turn(device.name, self._show_change)
        self._active: list[Queue | None] | None = None
        self._config_due = False  # a change that the driver is to be told of at DRIVER_OK
        self._config_length = len(device.config())
        if self._config_length > r.CONFIG_SIZE or len(kicks) != len(device.queue_sizes):
            raise ValueError(f"{device.name}: does not fit its transport")
        with ffi.from_buffer(page) as start:
            irq = ffi.new("struct pv_virtio_irq **")
            check(lib.pv_virtio_irq_new(start, irq_fd, broken_fd, irq), device.name)
        self._irq: Any = ffi.gc(irq[0], lib.pv_virtio_irq_free)
        lib.pv_virtio_irq_set_name(self._irq, (place or device.name).encode(errors="replace"))
        self._forget()
        device.config_changed = self.config_changed
        device.exchange = self.exchange
        device.faults = self.faults

    @property
    def status(self) -> int:
        """Return the Status register."""
        return self._registers.status

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
            else:
                self._registers.write(offset, value)

    def _features(self) -> int:
        """Return what a driver is offered that begins now."""
        return self.device.offer() | r.VERSION_1 | self.device.ring_features()

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
        for bit, before in STEPS:
            if value & ~now & bit and self.status & before == before:
                self._advance(bit)

    def _advance(self, bit: int) -> None:
        if bit == r.FEATURES_OK and (misfit := self._registers.misfit()):
            self._warn(f"{self.device.name}: {misfit}")
            return
        lib.pv_virtio_irq_add_status(self._irq, bit)
        if bit == r.DRIVER_OK:
            self._activate()
            if self._config_due:
                self._tell_config()

    def _activate(self) -> None:
        try:
            self._begin(self._make_queues())
        except PyvirtError as error:
            self._free_queues()
            self._break(error)

    def _break(self, error: PyvirtError) -> None:
        self._warn(f"{error}; it needs a reset")
        lib.pv_virtio_irq_broken(self._irq, ffi.NULL)

    def _make_queues(self) -> list[Queue | None]:
        active: list[Queue | None] = []
        self._active = active
        for index, registers in enumerate(self._registers.queues):
            active.append(self._make_queue(index, registers) if registers.ready else None)
        return active

    def _begin(self, active: list[Queue | None]) -> None:
        features = self._registers.driver_features
        self.device.activate(Activation(features, active, self._irq, self._memory))

    def _make_queue(self, index: int, registers: QueueRegisters) -> Queue:
        most, name = self.device.queue_sizes[index], self.device.name
        features = self._registers.driver_features
        ring = registers.make_ring(
            self._memory, features, most, f"{name}: the driver's queue {index}"
        )
        return Queue(index, ring, self._kicks[index])

    def _free_queues(self) -> None:
        for queue in self._active or ():
            if queue:
                lib.pv_virtqueue_free(queue.handle)
        self._active = None
        self._is_standing = self._is_dormant = False

    def _deactivate(self, limit: float) -> bool:
        """Let the device stop; False: it does not, and keeps its queues and the guest's memory."""
        if self._active is None and not self._is_dormant:
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
        self._config_due = False
        self._registers.forget(self._features())
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
        before = self._registers.get(r.CONFIG_GENERATION)
        self._registers.set(r.CONFIG_GENERATION, before + 1 & r.WORD)

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
            if self._is_standing:
                raise BackendError(f"{self.device.name}: stands to be saved; ask again later")
            is_bound = bool(self.status & r.DRIVER)
            change(is_bound)
            if not is_bound:
                self._registers.offer(self._features())
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
        """Have the device complete what is in flight and begin no more, before `save` or `reset`.

        BackendError after `limit` seconds, and it goes on as before. The other way out is `resume`.
        """
        with self._turn.soon():
            self._check_kept()
            if self._active is not None and not self._is_standing:
                self.device.drain(limit)
                self._is_standing = True

    def resume(self) -> None:
        """Have the device go on after `drain`, or begin after `restore`.

        One that cannot needs a reset then, and the log says why.
        """
        with self._turn.soon():
            is_standing, self._is_standing = self._is_standing, False
            try:
                if self._is_dormant:
                    self._wake()
                elif is_standing:
                    self.device.resume()
            except PyvirtError as error:
                self._break(error)

    def _wake(self) -> None:
        """Begin where another device stood; drivers get the interrupts that it may have missed."""
        self._is_dormant = False
        if self.status & r.NEEDS_RESET:
            lib.pv_virtio_irq_broken(self._irq, ffi.NULL)
        elif self._registers.get(r.INTERRUPT_STATUS) & r.INTERRUPT_CONFIG:
            lib.pv_virtio_irq_config(self._irq)
        if self._active is None:
            self.device.reset(turn.LIMIT_S)
            return
        try:
            self._begin(self._active)
        except PyvirtError:
            self._free_queues()
            raise
        lib.pv_virtio_irq_used(self._irq)

    def save(self) -> dict[str, object]:
        """Return registers, queues and the device's own fields; after `drain`, no vCPU runs.

        PyvirtError: the device has a state that cannot be saved.
        """
        with self._turn.soon():
            rings = [queue.handle if queue else ffi.NULL for queue in self._active or ()]
            rings += [ffi.NULL] * (len(self._kicks) - len(rings))
            return {
                "device_type": self.device.device_type,
                **self._registers.save(rings),
                "config": self._page[r.CONFIG : r.CONFIG + self._config_length].hex(),
                "config_generation": self._registers.get(r.CONFIG_GENERATION),
                "config_due": self._config_due,
                "device": self.device.save(),
            }

    def restore(self, fields: Fields) -> None:
        """Take what `save` returned, on a device that no driver has touched; `resume` begins.

        StateError: it is not of this device, or cannot be; only `close` may follow.
        """
        with self._turn.soon():
            if fields.integer("device_type", 0, r.WORD) != self.device.device_type:
                raise fields.wrong("device_type", f"this device is a {self.device.device_type}")
            self.device.restore(fields.section("device"))
            places = self._registers.restore(fields, self._offer_again)
            if self.status & (r.DRIVER_OK | r.NEEDS_RESET) == r.DRIVER_OK:
                self._restore_queues(fields, places)
            self._restore_config(fields)
            self._is_dormant = True

    def _offer_again(self, features: int) -> int:
        ours = r.VERSION_1 | self.device.ring_features()
        return features & ours | self.device.offer_again(features & ~_TRANSPORT)

    def _restore_queues(self, fields: Fields, places: list[tuple[int, int]]) -> None:
        try:
            active = self._make_queues()
        except GuestError as error:
            self._free_queues()
            raise fields.wrong("queues", str(error)) from None
        for queue, place in zip(active, places, strict=True):
            if queue:
                lib.pv_virtqueue_restore(queue.handle, *place)
        self._is_standing = True

    def _restore_config(self, fields: Fields) -> None:
        before = fields.data("config", self._config_length)
        registers = self._registers
        registers.set(r.CONFIG_GENERATION, fields.integer("config_generation", 0, r.WORD))
        self._config_due = fields.flag("config_due")
        if before == self.device.config():
            self._publish_config()
            return
        self._publish_change()
        self._config_due |= self.status & (r.DRIVER | r.DRIVER_OK) == r.DRIVER
        if self.status & r.DRIVER_OK:
            pending = registers.get(r.INTERRUPT_STATUS)
            registers.set(r.INTERRUPT_STATUS, pending | r.INTERRUPT_CONFIG)

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
            self._registers.release()
            self._page.release()
        return done

    _WRITES: ClassVar[dict[int, Callable[[Mmio, int], None]]] = {
        r.QUEUE_NOTIFY: _notify_queue,
        r.INTERRUPT_ACK: _acknowledge,
        r.STATUS: _write_status,
    }
